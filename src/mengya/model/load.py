"""From a directory in Hugging Face's layout to a model; the implementation is chosen here and nowhere else."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mengya import hub
from mengya.errors import UserError
from mengya.manifest import read_object
from mengya.model.adapters import (
    Lora,
    attach,
    base_of,
    embedding_of,
    is_adapter,
    make_room,
    merge,
    quantized_in,
    read_adapter,
    rows_in,
    scale,
)
from mengya.model.language_model import PARTS, LanguageModel, Unsupported
from mengya.model.native.config import FAMILIES
from mengya.model.native.transformer import CausalLM
from mengya.model.weight_files import check_weights

Implementation = Literal["auto", "native", "transformers"]
"""auto: ours where it can, that of the transformers library otherwise."""
IMPLEMENTATIONS: dict[str, Callable[[], type]] = dict.fromkeys(FAMILIES, lambda: CausalLM)
"""model_type of config.json -> a function that gives (and may import) the class of ours that implements it."""


def check_is_model(directory: Path) -> None:
    """UserError for a directory that holds neither a model nor an adapter."""
    if not is_adapter(directory) and not (directory / "config.json").is_file():
        raise _no_model(directory)


def _no_model(directory: Path) -> UserError:
    what = "is not a model directory (it has no config.json); give one that a stage wrote"
    return UserError(f"{directory} {what}{such_as_below(directory)}")


def such_as_below(directory: Path) -> str:
    """The newest model right below a directory, as that of a run has them, at the end of a sentence; "" if none is."""
    newest = max(directory.glob("*/config.json"), key=lambda path: path.stat().st_mtime, default=None)
    return f", such as {newest.parent}" if newest else ""


def _read_json(directory: Path) -> dict:
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise _no_model(path.parent)
    content = read_object(path, hub.remedy(path.parent))
    if content.get("auto_map") and any(Path(directory).glob("*.py")):
        content["_name_or_path"] = str(directory)  # where its code is
    return content


def _ours(kind: str, source: str | Path) -> type[LanguageModel]:
    """Our class for a model_type. UserError if it lacks a part."""
    found = IMPLEMENTATIONS[kind]()
    look = inspect.getattr_static
    missing = [] if issubclass(found, LanguageModel) else ["LanguageModel as its base class"]
    for name, words in PARTS.items():
        if look(found, name, None) in (None, look(LanguageModel, name)):
            missing.append(f"{name} ({words})")
    if missing:
        raise UserError(
            f"{source}: the class {found.__name__} of model_type {kind!r} lacks {', '.join(missing)}; "
            "add what mengya.model.language_model.LanguageModel says of them"
        )
    return found


def _comes_with_code(content: dict) -> bool:
    return "AutoModelForCausalLM" in (content.get("auto_map") or {})


def _theirs(content: dict, source: str | Path, trust_remote_code: bool) -> type[LanguageModel]:
    """The class around the transformers library. UserError if that has no such model, or is not installed."""
    from mengya.model.foreign import Foreign, WithItsCode, knows

    kind = content.get("model_type")
    if knows(kind):
        return Foreign
    if _comes_with_code(content):
        if trust_remote_code:
            return WithItsCode
        raise UserError(
            f"{source}: model_type {kind!r} is implemented by code that comes with the model (auto_map). Read it; if "
            "you trust it, set trust_remote_code = true (--trust-remote-code), or use an architecture that "
            "transformers has"
        )
    raise UserError(f"{source}: model_type {kind!r} is implemented neither here nor in the transformers library")


def _made(
    content: dict,
    source: str | Path,
    wanted: Implementation,
    trust_remote_code: bool,
    make: Callable[[type[LanguageModel]], LanguageModel],
) -> LanguageModel:
    """What `make` makes of the class that is wanted. UserError if there is none that can."""
    kind = content.get("model_type")
    if wanted == "transformers" or kind not in IMPLEMENTATIONS:
        if wanted == "native":
            raise UserError(f"{source}: model_type {kind!r} is none of ours: {', '.join(IMPLEMENTATIONS)}")
        return make(_theirs(content, source, trust_remote_code))
    try:
        return make(_ours(kind, source))
    except Unsupported as error:
        if wanted == "native":
            raise
        try:
            return make(_theirs(content, source, trust_remote_code))
        except UserError as why:
            raise UserError(f"{error}; {why}") from error


def outline(
    content: dict,
    source: str | Path = "config.json",
    implementation: Implementation = "auto",
    device: str = "meta",
    lora: Lora | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """The float32 model that `content` of config.json describes, without weights, and with a new adapter if there is
    `lora`. UserError if it is not supported."""

    def make(cls: type[LanguageModel]) -> LanguageModel:
        model = cls.empty(content, str(source), torch.float32, device)
        if lora is not None:
            attach(model, lora, Path(source))
        return model

    return _made(content, source, implementation, trust_remote_code, make)


def describe(directory: Path) -> dict:
    """The content of config.json of the model in a directory. UserError if it is not supported, or if files of weights
    are missing or cut off, of which only the headers are read. Code that comes with a model is not run for this."""
    directory = Path(directory)
    base = base_of(directory) if is_adapter(directory) else directory
    content = _read_json(base)
    foreign = content.get("model_type") not in IMPLEMENTATIONS
    if not (foreign and _comes_with_code(content)):
        model = outline(content, base)
        content = model.description()
        if base != directory:
            content["vocab_size"] = rows_in(model, directory)
    check_weights(base)
    return content


def load_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    implementation: Implementation = "auto",
    lora: Lora | None = None,
    as_trained: bool = False,
    trust_remote_code: bool = False,
    change: Callable[[LanguageModel], None] = lambda model: None,
    base: Path | None = None,
) -> LanguageModel:
    """A model from any directory that has an implementation, or one with the adapter that the directory holds, in
    evaluation mode; `lora` gives it a new adapter. UserError if its weights do not fit.

    `as_trained`: an adapter whose model was in 4 bits gets it so again, to be trained further; else whole.
    `trust_remote_code`: run the code that comes with a model, if nobody else has such a model. `change`: what is done
    to the model before it gets the new adapter. `base`: where the model of the adapter is; None: where that says.

    What must not be rounded, such as routers, stays float32.
    """
    directory = Path(directory)
    base = base_of(directory, base) if is_adapter(directory) else directory
    content = _read_json(base)
    quantize = lora.quantize if lora else quantized_in(directory) if as_trained else "none"

    def make(cls: type[LanguageModel]) -> LanguageModel:
        check_weights(base)
        model = cls.load(base, content, dtype, device) if quantize == "none" else cls.load_in_4_bits(base, content)
        if base != directory:
            read_adapter(model, directory, base)
        change(model)
        if lora is not None:
            attach(model, lora, directory)
        return model.eval()

    return _made(content, base, implementation, trust_remote_code, make)


def load_merged(
    directories: Sequence[Path],
    weights: Sequence[float] | None = None,
    trust_remote_code: bool = False,
    base: Path | None = None,
) -> LanguageModel:
    """The model of adapters' directories in float32, the sum of what they add, by `weights`, added to its own.
    `base`: where the model is; None: where the first adapter says.

    UserError if one is no adapter, or that of another model; and if several, or weights, do more than add.
    """
    lone = len(directories) == 1
    for directory in directories:
        if not is_adapter(directory):
            raise UserError(f"{directory} has no adapter to merge; give the directory of a stage with the table lora")
    first = directories[0]
    place = base_of(first, base)
    model = load_model(first, trust_remote_code=trust_remote_code, base=base)
    for directory, weight in zip(directories, weights or [1.0] * len(directories), strict=True):
        if model.adapter is None:
            if base_of(directory, base).resolve() != place.resolve():
                raise UserError(f"{directory} and {first} are adapters of different models; merge those of one model")
            read_adapter(model, directory, place)
        scale(model, weight, directory, lone)
        merge(model)
    return model


def assemble(
    directory: Path,
    tensors: Mapping[str, Tensor],
    base: Path | None,
    lora: Lora | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """The model of a checkpoint: config.json of `directory`, `tensors`, and the frozen weights of the model in `base`.
    An adapter, as `lora` or the base has it, is merged into them.

    UserError if weights are missing or do not fit.
    """
    if base is not None and (lora is not None or is_adapter(base)):
        whole = lora and dataclasses.replace(lora, quantize="none")
        model = load_model(base, lora=whole, trust_remote_code=trust_remote_code)
        name, embedding = embedding_of(model)
        make_room(model, len(tensors.get(name, embedding)))
        model.overlay(tensors)
        merge(model)
        return model
    model = outline(_read_json(directory), directory, device="cpu", trust_remote_code=trust_remote_code)
    frozen = [name for name in model.weights() if name not in tensors]
    if frozen:
        if base is None:
            raise UserError(
                f"{directory} lacks {len(frozen)} weights that were frozen ({', '.join(frozen[:3])}), and the model "
                "that it was trained from is not known; put it back into its run, or let the run finish"
            )
        given = load_model(base, trust_remote_code=trust_remote_code).weights()
        lost = [name for name in frozen if name not in given]
        if lost:
            raise UserError(f"{base} lacks weights that were frozen in {directory}: {', '.join(lost[:3])}")
        model.overlay({name: given[name] for name in frozen})
    model.overlay(tensors)
    return model.eval()
