"""Directory <-> module: the Hugging Face layout, by name match and strict."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mengya.errors import UserError
from mengya.model.native.config import ModelConfig, from_hf, model_type, to_hf
from mengya.model.native.families import from_disk, to_disk
from mengya.model.native.moe import Router
from mengya.model.native.transformer import CausalLM

WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"


def _read_json(directory: Path) -> dict:
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is no model directory (it has no config.json); give one that a stage wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold an object; copy the model again")
    return content


def read_config(directory: Path) -> ModelConfig:
    """The shape that config.json describes; UserError if the directory is no model of ours."""
    return from_hf(_read_json(directory), str(directory))


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    index = directory / SHARD_INDEX
    names = [WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, torch.Tensor] = {}
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory} lacks {name}; copy the model again")
        try:
            state |= load_file(directory / name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{directory / name} cannot be read ({error}); copy the model again") from error
    return state


def load_weights(model: CausalLM, directory: Path) -> None:
    """Copy a directory's weights into `model`, which keeps its own dtype. UserError on any mismatch."""
    state = _read_weights(Path(directory))
    if model.config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state.get("model.embed_tokens.weight", torch.empty(0)))
    state = {name: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}
    state = from_disk(state, model.config, _read_json(directory)["model_type"], str(directory))
    own = model.state_dict()
    wrong = [f"{n}: missing" for n in own if n not in state] + [f"{n}: unexpected" for n in state if n not in own]
    wrong += [
        f"{n}: {tuple(state[n].shape)} in the file, {tuple(own[n].shape)} in the model"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"the weights in {directory} do not fit the model: {'; '.join(wrong[:5])}{more}; use its own config"
        )
    model.load_state_dict(state, strict=True)


def load_model(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalLM:
    """A model from any directory of a family that we implement, in evaluation mode. Routers stay float32."""
    config = read_config(directory)
    with torch.device("meta"):
        model = CausalLM(config)
    model = model.to(dtype)
    _widen_routers(model)
    model.to_empty(device=device)
    if config.tie_word_embeddings:  # to_empty gives each name its own storage
        model.lm_head.weight = model.model.embed_tokens.weight
    load_weights(model, directory)
    return model.eval()


def assemble(config: ModelConfig, weights: dict[str, torch.Tensor]) -> CausalLM:
    """A model around these very tensors, in evaluation mode; a tied output projection is not among them.

    RuntimeError if names or shapes are not the model's.
    """
    with torch.device("meta"):
        model = CausalLM(config)
    if config.tie_word_embeddings:
        weights = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    model.load_state_dict(weights, strict=True, assign=True)
    if config.tie_word_embeddings:  # assigning gives each name its own parameter
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def _widen_routers(model: CausalLM) -> None:
    """Rounded to half precision, close decisions between experts would fall differently."""
    for module in model.modules():
        if isinstance(module, Router):
            module.float()


def _narrows(name: str) -> bool:
    return ".mlp.gate." not in name


def save_model(
    model: CausalLM,
    directory: Path,
    dtype: torch.dtype | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
) -> None:
    """Write config.json, model.safetensors and generation_config.json; `dtype` None keeps that of the weights."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().to("cpu", dtype if _narrows(name) else None) for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    name = str(state["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    state = to_disk(state, model.config, model_type(model.config))
    save_file({n: t.contiguous() for n, t in state.items()}, directory / WEIGHTS, metadata={"format": "pt"})
    config = to_hf(model.config, name, eos_token_id, pad_token_id)
    generation: dict = {"bos_token_id": None, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    generation |= {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    for file, value in (("config.json", config), ("generation_config.json", generation)):
        (directory / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
