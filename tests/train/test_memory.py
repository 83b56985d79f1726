"""What is counted of a training's memory: what is kept for the backward pass against what torch keeps, and shares."""

import json

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from mengya.model.adapters import Lora
from mengya.model.load import outline
from mengya.model.native import float_products
from mengya.train.engines.fsdp import Fsdp
from mengya.train.memory import memory_per_device, on_gpus
from mengya.train.settings import TrainingConfig

LLAMA = dict(
    model_type="llama", vocab_size=500, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=320, max_position_embeddings=256, rms_norm_eps=1e-6, hidden_act="silu",
    tie_word_embeddings=True,
)  # fmt: skip
MOE = LLAMA | dict(
    model_type="ernie4_5_moe", moe_num_experts=8, moe_k=2, moe_intermediate_size=96, moe_num_shared_experts=1,
    moe_layer_start_index=1, moe_layer_interval=1, use_bias=False,
)  # fmt: skip
GPT2 = dict(model_type="gpt2", vocab_size=500, n_embd=128, n_layer=4, n_head=4, n_positions=256)
ROW = dict(seq_len=128, batch_tokens=1024, compile=False)


def settings(**keys):
    return TrainingConfig(**ROW | keys)


def kept_by_torch(model, rows, length):
    """Bytes that autograd holds after a forward pass of the blocks."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train().hidden(input_ids=ids)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize(("content", "lora"), [(LLAMA, None), (MOE, None), (GPT2, None), (LLAMA, Lora(r=4))])
def test_what_is_kept_is_about_what_torch_keeps(content, lora, monkeypatch):
    monkeypatch.setattr(float_products, "uses_kernel", lambda *_: False)  # as on a GPU: that of CPUs keeps less
    model = outline(content, device="cpu", lora=lora)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    few, many = (
        memory_per_device(model, settings(micro_batch=rows, dtype="float32"), 1, "cpu", half=False) for rows in (1, 8)
    )
    found = kept_by_torch(model, 8, 128) - kept_by_torch(model, 1, 128)
    assert 0.55 * found < many - few < 1.6 * found


def test_shares():
    """Of a model whose weights are most of it."""
    model = outline(LLAMA | dict(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, vocab_size=32000))
    size = model.all_parameters()

    def needed(gpus=1, **keys):
        return memory_per_device(model, settings(micro_batch=1, **keys), gpus, "cuda", half=True)

    whole = needed()
    assert 18 * size < whole < 20 * size  # 4 each for weights, gradients, two moments; 2 for a copy
    assert needed(4) == whole
    assert needed(4, parallel="fsdp") < 0.35 * whole
    assert needed(4, parallel="fsdp", fsdp=Fsdp(cpu_offload=True)) < 0.1 * whole
    assert needed(activation_checkpointing=True) < whole


def test_zero(tmp_path):
    model = outline(LLAMA | dict(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, vocab_size=32000))
    path = tmp_path / "ds.json"

    def needed(**zero):
        path.write_text(json.dumps({"zero_optimization": zero}))
        return memory_per_device(
            model, settings(micro_batch=1, parallel="deepspeed", deepspeed=str(path)), 4, "cuda", half=True
        )

    by_stage = [needed(stage=stage) for stage in (1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True) and by_stage[2] < 0.6 * by_stage[0]
    assert needed(stage=3, offload_optimizer={"device": "cpu"}) < 0.6 * by_stage[2]


def test_rows_at_once_are_those_of_the_device():
    """On a CPU float32 has fewer of them."""
    model, wide = outline(LLAMA), settings(batch_tokens=8192, dtype="float32")
    on_cpu, on_gpu = (memory_per_device(model, wide, 1, device, half=False) for device in ("cpu", "cuda"))
    assert on_gpu > on_cpu and on_gpus(model, wide)[1] == on_gpu


def test_four_bits_and_adapters():
    content = LLAMA | dict(hidden_size=5120, intermediate_size=13696, num_hidden_layers=40, vocab_size=64000)
    whole, quantized = (Lora(r=8), Lora(r=8, quantize="nf4"))
    sizes = {}
    for name, lora in (("all", None), ("lora", whole), ("qlora", quantized)):
        model = outline(content | {"tie_word_embeddings": False}, lora=lora)
        sizes[name] = memory_per_device(
            model, settings(micro_batch=1, lora=lora, activation_checkpointing=True), 1, "cuda", half=True
        )
    assert sizes["all"] > 200e9 and 60e9 < sizes["lora"] < 90e9 and 9e9 < sizes["qlora"] < 16e9


def test_only_numbers_of_gpus_that_divide_a_step():
    model = outline(LLAMA)
    assert set(on_gpus(model, settings(batch_tokens=512))) == {1, 2, 4}
