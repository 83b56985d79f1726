"""Small random models of architectures whose code comes with the model, as Hugging Face directories."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES = {
    "baichuan": (
        {"AutoConfig": "configuration_baichuan.BaichuanConfig"}
        | {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, model_max_length=256),
    ),
    "qwen": (
        {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, seq_length=256),
    ),
}


def write(kind: str, directory: Path, vocab_size: int) -> Path:
    """Returns the directory."""
    directory.mkdir(parents=True)
    for path in (Path(__file__).parent / kind).glob("*.py"):
        shutil.copy(path, directory)
    auto_map, shape = SHAPES[kind]
    content = {"model_type": kind, "vocab_size": vocab_size, "auto_map": auto_map} | shape
    (directory / "config.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(directory)
    return directory
