"""Engines: one interface for training in one process, with PyTorch's DDP and FSDP2, and with DeepSpeed.

An engine is applied to a plain model from outside. Its choice changes neither the loop, nor what a checkpoint holds:
fp32 weights and AdamW's moments under the model's own names.
"""
