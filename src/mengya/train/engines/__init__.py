"""Engines: one interface for training in one process, with PyTorch's DDP and FSDP2, and with DeepSpeed.

An engine is applied to a plain model from outside. Its choice changes neither the loop, nor what a checkpoint holds:
fp32 weights and AdamW's moments under the model's own names.
"""

import torch

from mengya import ranks, runtime
from mengya.model.language_model import LanguageModel
from mengya.train.engines.ddp import Replicated
from mengya.train.engines.deepspeed import Zero
from mengya.train.engines.fsdp import Fsdp, Sharded
from mengya.train.engines.single import Engine
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim

__all__ = ["Engine", "make_engine"]


def make_engine(
    model: LanguageModel, objective: Objective, optim: Optim, parallel: str, fsdp: Fsdp, deepspeed: dict
) -> Engine:
    """The engine called `parallel`, around a prepared model; `deepspeed`: what `read_settings` gives, if it is that."""
    if not ranks.launched():
        return Engine(model, objective, optim)
    device = torch.device(runtime.pick_device())
    if parallel == "fsdp":
        return Sharded(model, objective, optim, device, fsdp)
    if parallel == "deepspeed":
        return Zero(model, objective, optim, device, deepspeed)
    return Replicated(model, objective, optim)
