"""Adapters (LoRA) by the peft library, in its own format: a few weights beside those of a model that stays as it is.

A directory of one holds adapter_config.json and adapter_model.safetensors, which peft reads, and adapter_base.json:
where the model lies that it was made for, and how its weights are told from others.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mengya.errors import UserError
from mengya.manifest import read_object
from mengya.model.language_model import LanguageModel, Unsupported
from mengya.model.weight_files import weight_files
from mengya.schema import Count, Natural, config

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
INSTALL = "pip install 'mengya[models]'"
_PREFIX = "base_model.model."
"""Before the names of weights in peft's files."""
_UNKNOWN = (
    "alora_invocation_tokens", "layer_replication", "arrow_config", "use_bdlora", "use_qalora", "monteclora_config"
)  # fmt: skip
"""Kinds of LoRA that are more than products added to weights, by their keys in peft."""
_ROUTERS = ("gate", "router", "shared_expert_gate")
_SAMPLES, _SAMPLE = 64, 1 << 16
"""How many pieces of a file of weights are looked at, and their bytes."""


@config
class Lora:
    """Train an adapter instead of the model's weights (LoRA; Hu et al. 2021, arXiv:2106.09685). It needs the memory of
    few gradients, and its file is small; the stage merge makes a whole model of both."""

    r: Count = 16
    """Rank: the width of the adapter."""
    alpha: Natural = 0
    """The adapter's output is multiplied by alpha / r; 0: twice r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] = dataclasses.field(default_factory=list)
    """Layers that get one, by the ends of their names, e.g. ["q_proj", "v_proj"]; empty: all linear ones of the blocks,
    whatever the architecture calls them, and all experts, but no router."""
    modules_to_save: list[str] = dataclasses.field(default_factory=list)
    """Layers that are trained and saved whole, e.g. ["embed_tokens", "lm_head"] where a vocabulary has grown."""
    rslora: bool = False
    """Multiply by alpha / sqrt(r) instead (rsLoRA; Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Learn the length of each row of weights by itself (DoRA; Liu et al. 2024, arXiv:2402.09353)."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: keep the model's own weights in 4 bits while the adapter is trained (QLoRA; Dettmers et al. 2023,
    arXiv:2305.14314), with double quantisation; a quarter of the memory, and slower. Merging takes the whole ones."""


class Adapter:
    """What a model with an adapter knows of it, as `LanguageModel.adapter`."""

    def __init__(self, peft_config: Any, whole: list[str], base: Path, quantize: str):
        self._config, self._base, self._quantize = peft_config, base, quantize
        self.whole = whole
        """Layers that are trained whole."""
        self.uses_dora = bool(peft_config.use_dora)
        kinds = (
            (whole, f"trained {', '.join(whole)} whole"),
            (self.uses_dora, "is DoRA"),
            (peft_config.bias != "none", "trained biases"),
            (peft_config.trainable_token_indices, "trained rows of the embedding"),
            (getattr(peft_config, "kasa_config", None), "is KaSA"),
        )
        self.more: str = next((told for found, told in kinds if found), "")
        """What it does beside adding to weights; "" if nothing."""

    def __str__(self) -> str:
        """As messages name it."""
        return f"an adapter of rank {self._config.r}" + (" on 4-bit weights" if self._quantize != "none" else "")

    def save(self, model: LanguageModel, directory: Path) -> None:
        state = _peft().get_peft_model_state_dict(model.adapted, save_embedding_layers=False)
        names = _inside(model, self.whole)
        state |= {name: tensor for name, tensor in model.adapted.state_dict().items() if name in names}
        files = {
            _PREFIX + n.removeprefix(_PREFIX): t.detach().to("cpu", copy=True).contiguous() for n, t in state.items()
        }
        save_file(files, directory / WEIGHTS, metadata={"format": "pt"})
        content = self._config.to_dict() | {
            "base_model_name_or_path": os.path.abspath(self._base),
            "modules_to_save": self.whole or None,
            "inference_mode": True,
        }
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in content.items()}
        (directory / CONFIG).write_text(json.dumps(plain, indent=2, default=str) + "\n", encoding="utf-8")
        note = {"base": Path(os.path.relpath(self._base, directory)).as_posix(), "weights": fingerprint(self._base)}
        note["quantize"] = self._quantize
        (directory / BASE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def make_room(model: LanguageModel, rows: int) -> None:
    """Grow the vocabulary of a model to so many entries, whose weights are then read."""
    if rows > model.vocab_size:
        model.grow_vocabulary(model.vocab_size, [[]] * (rows - model.vocab_size))


def embedding_of(model: LanguageModel) -> tuple[str, Tensor]:
    """Name and weight (V, C) of the input embedding."""
    owner = model.input_embedding
    return next((name, tensor) for name, tensor in model.adapted.named_parameters() if tensor is owner.weight)


def holds_vocabulary(model: LanguageModel) -> bool:
    """Whether new entries of the vocabulary are trained and saved: all weights are, or these with the adapter."""
    return model.adapter is None or (embedding_of(model)[1].requires_grad and model.output_weight.requires_grad)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"adapters need the peft library; {INSTALL}") from error
    return peft


def is_adapter(directory: Path) -> bool:
    return (directory / CONFIG).is_file()


def fingerprint(directory: Path) -> str:
    """Of the weights of a model directory: sizes, and pieces spread over each file."""
    found = hashlib.sha256()
    for path in weight_files(directory):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE) // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE))
    return found.hexdigest()


def base_of(directory: Path, given: Path | None = None) -> Path:
    """The model that an adapter belongs to; `given`: where it is said to be. UserError if it is not there, or is
    another one by now."""
    note = read_object(directory / BASE, "copy the adapter again") if (directory / BASE).is_file() else {}
    named = read_object(directory / CONFIG, "copy the adapter again").get("base_model_name_or_path") or ""
    candidates = [directory / note["base"]] if "base" in note else []
    candidates += [Path(named), directory / named] if named else []
    candidates = [given] if given else candidates
    base = next((path for path in candidates if (path / "config.json").is_file()), None)
    if base is None:
        raise UserError(
            f"{directory} is an adapter, and the model that it belongs to ({note.get('base') or named or 'not named'}) "
            f"is not there; put it back, or write its place into {directory / CONFIG} (base_model_name_or_path)"
        )
    if "weights" in note and note["weights"] != fingerprint(base):
        raise UserError(
            f"{directory} is an adapter of another model than the one that is now in {base}: the weights differ; put "
            "back the model that it was trained on"
        )
    return Path(os.path.normpath(base))


def quantized_in(directory: Path) -> str:
    """How the weights of the model were kept while the adapter in this directory was trained."""
    path = directory / BASE
    return read_object(path, "copy the adapter again").get("quantize", "none") if path.is_file() else "none"


def attach(model: LanguageModel, settings: Lora, base: Path) -> None:
    """Give a model, loaded from `base`, a new adapter, which alone is trained from then on."""
    if model.adapter is not None:
        raise UserError(
            f"{base} has an adapter already; leave out the table lora to train that one further, or merge it first"
        )
    linear = _linear_names(model)
    if unknown := [n for n in settings.target_modules if not any(f".{name}".endswith(f".{n}") for name in linear)]:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(f"lora.target_modules: no layer is called {', '.join(unknown)}; there are {', '.join(ends)}")
    targets = settings.target_modules or sorted({name.rpartition(".")[2] for name in linear})
    experts = [] if settings.target_modules else _expert_names(model)
    if experts and settings.dora:
        raise UserError(
            "peft has no DoRA for experts; name other layers in lora.target_modules, or set lora.dora = false"
        )
    peft_config = _peft().LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha or 2 * settings.r,
        lora_dropout=settings.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        task_type="CAUSAL_LM",
    )
    whole = settings.modules_to_save
    _inject(model, peft_config, [*whole, *_tied_to(model, whole)], base, settings.quantize)


def _linear_names(model: LanguageModel) -> list[str]:
    """The linear layers of the blocks, under their names in the model; Conv1D is that of GPT-2."""
    inside = {id(module) for block in model.blocks() for module in block.modules()}
    return [
        name
        for name, module in model.adapted.named_modules()
        if id(module) in inside
        and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and name.rpartition(".")[2] not in _ROUTERS
    ]


def _expert_names(model: LanguageModel) -> list[str]:
    """The ends of the names of experts' weights: those of all experts of a layer are one parameter."""
    inside = {id(parameter) for block in model.blocks() for parameter in block.parameters() if parameter.ndim == 3}
    names = [name for name, parameter in model.adapted.named_parameters() if id(parameter) in inside]
    return sorted({".".join(name.split(".")[-3:]) for name in names if ".experts." in name})


def _inside(model: LanguageModel, layers: list[str]) -> set[str]:
    """The names of the weights in layers that are called so. UserError for one that is not there."""
    names = [name for name in model.adapted.state_dict() if "lora_" not in name]
    found: set[str] = set()
    for layer in layers:
        own = {name for name in names if f".{layer}." in f".{name}"}
        if not own:
            raise UserError(f"lora.modules_to_save: no layer is called {layer!r}")
        found |= own
    return found


def _tied_to(model: LanguageModel, layers: list[str]) -> list[str]:
    """The other layers that have the same weights as these."""
    named = _inside(model, layers)
    pairs = list(model.adapted.named_parameters(remove_duplicate=False))
    shared = {id(parameter) for name, parameter in pairs if name in named}
    return [name.split(".")[-2] for name, parameter in pairs if id(parameter) in shared and name not in named]


def _inject(model: LanguageModel, peft_config: Any, whole: list[str], base: Path, quantize: str) -> None:
    if model.has_experts and model.implementation == "native":
        raise Unsupported(f"{base}: experts get an adapter in the transformers library's model")
    model.requires_grad_(False)
    try:
        _peft().inject_adapter_in_model(peft_config, model.adapted)
    except Exception as error:  # other people's code, and other people's adapters
        raise UserError(f"peft cannot give {base} this adapter: {error}") from error
    names = _inside(model, whole)
    shared = {id(p) for name, p in model.adapted.named_parameters(remove_duplicate=False) if name in names}
    for parameter in model.adapted.parameters():
        if id(parameter) in shared:
            parameter.requires_grad_(True)
    model.adapter = Adapter(peft_config, whole, base, quantize)


def rows_in(model: LanguageModel, directory: Path) -> int:
    """Entries of the vocabulary of a model, which may lack weights, with the adapter in `directory`: more than its own
    if the vocabulary grew while the embedding was trained whole."""
    name, embedding = embedding_of(model)
    with contextlib.suppress(SafetensorError, OSError), safe_open(directory / WEIGHTS, "pt") as file:
        if _PREFIX + name in file.keys():  # noqa: SIM118  it is no mapping
            return file.get_slice(_PREFIX + name).get_shape()[0]
    return len(embedding)


def read_adapter(model: LanguageModel, directory: Path, base: Path) -> None:
    """Give a model, loaded from `base`, the adapter in `directory`. UserError if it does not fit."""
    peft = _peft()
    make_room(model, rows_in(model, directory))
    try:
        peft_config = peft.PeftConfig.from_pretrained(directory)
        state = load_file(directory / WEIGHTS)
    except Exception as error:  # other people's code
        raise UserError(f"{directory} cannot be read ({error}); copy the adapter again") from error
    if peft_config.peft_type != "LORA":
        raise UserError(f"{directory} is an adapter of the kind {peft_config.peft_type}; LoRA is what is supported")
    whole = list(peft_config.modules_to_save or ())
    tied = model.input_embedding.weight is model.output_weight
    others = ["trainable_token_indices"] if tied else []
    if unknown := [name for name in (*_UNKNOWN, *others) if getattr(peft_config, name, None)]:
        raise UserError(f"{directory} is LoRA with {unknown[0]}, which is not supported here; merge it with peft")
    if apart := _tied_to(model, whole):
        raise UserError(
            f"{directory} has weights of its own for {', '.join(whole)}, which {base} has in common with "
            f"{', '.join(apart)} (tie_word_embeddings): the two cannot differ here"
        )
    peft_config.modules_to_save, peft_config.inference_mode = None, False
    _inject(model, peft_config, whole, base, quantized_in(directory))
    if tied and any(len(getattr(module, "lora_embedding_A", ())) for module in model.adapted.modules()):
        raise UserError(
            f"{directory} adapts the embedding, which {base} has in common with its output (tie_word_embeddings): the "
            "two cannot differ here"
        )
    own = peft.get_peft_model_state_dict(model.adapted, save_embedding_layers=False)
    saved = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in own.items()}
    names = _inside(model, whole) | {name for name in saved if name.endswith(".base_layer.weight")}  # peft saves these
    own |= {name: tensor for name, tensor in model.adapted.state_dict().items() if name in names}
    wrong = [f"{name}: missing" for name in own if name not in saved]
    wrong += [f"{name}: unexpected" for name in saved if name not in own]
    wrong += [
        f"{name}: {tuple(saved[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    if wrong or not own:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"the adapter in {directory} does not fit {base}: {'; '.join(wrong[:5])}{more}")
    _fill(model, own, saved)


@torch.no_grad()
def _fill(model: LanguageModel, own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(saved[name])  # the state's tensors are the live ones


def scale(model: LanguageModel, weight: float, source: Path, lone: bool) -> None:
    """Multiply what the adapter from `source` adds. UserError if it does more than add, and is not `lone`."""
    if lone and weight == 1:
        return
    from peft.tuners.lora import LoraLayer

    adapter = model.adapter
    assert isinstance(adapter, Adapter)
    if adapter.more:
        raise UserError(f"{source} {adapter.more}, so that it is no sum with others; merge it alone")
    for module in model.adapted.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(weight)


def merge(model: LanguageModel) -> None:
    """Add the adapter to the weights, in their type; the model then has none. UserError if a number overflows."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    root, outer = model.adapted, ""
    for name, module in list(root.named_modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        try:
            module.merge(safe_merge=True)
        except (ValueError, RuntimeError, NotImplementedError) as error:  # as peft says it
            raise UserError(f"{name} cannot be merged: {error}") from error
        if not (outer and name.startswith(f"{outer}.")):  # one that is around others is replaced with all of them
            parent, _, child = name.rpartition(".")
            setattr(root.get_submodule(parent), child, module.get_base_layer())
            outer = name
    del root.peft_config
    model.adapter = None
    model.adopt()
