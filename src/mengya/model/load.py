"""From a directory in Hugging Face's layout to a model; the implementation is chosen here and nowhere else."""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mengya.errors import UserError
from mengya.manifest import read_object
from mengya.model.language_model import PARTS, WEIGHTS, LanguageModel
from mengya.model.native.config import FAMILIES
from mengya.model.native.transformer import CausalLM

SHARD_INDEX = "model.safetensors.index.json"

IMPLEMENTATIONS: dict[str, Callable[[], type]] = dict.fromkeys(FAMILIES, lambda: CausalLM)
"""model_type of config.json -> a function that gives (and may import) the class that implements it."""


def _read_json(directory: Path) -> dict:
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a model directory (it has no config.json); give one that a stage wrote")
    return read_object(path, "copy the model again")


def implementation_of(content: dict, source: str | Path) -> type[LanguageModel]:
    """The class that implements what config.json describes. UserError if there is none, or if it lacks a part."""
    kind = content.get("model_type")
    if kind not in IMPLEMENTATIONS:
        raise UserError(f"{source}: model_type {kind!r} is not implemented; use one of {', '.join(IMPLEMENTATIONS)}")
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


def outline(content: dict, source: str | Path = "config.json") -> LanguageModel:
    """The model that `content` of config.json describes, without weights. UserError if it is not supported."""
    return implementation_of(content, source).empty(content, str(source), torch.float32, "meta")


def check_model(directory: Path) -> LanguageModel:
    """The model of a directory, without its weights. UserError if it is not supported, or if files of weights are
    missing or cut off; only their headers are read."""
    model = outline(_read_json(directory), directory)
    for path in _weight_files(Path(directory)):
        with _explained(path), safe_open(path, "pt"):
            pass
    return model


def _weight_files(directory: Path) -> list[Path]:
    index = directory / SHARD_INDEX
    names = [WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory} lacks {name}; copy the model again")
    return [directory / name for name in names]


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the model again") from error


def _read_weights(directory: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in _weight_files(directory):
        with _explained(path):
            state |= load_file(path)
    return state


def load_model(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LanguageModel:
    """A model from any directory that has an implementation, in evaluation mode. UserError if its weights do not fit.

    What must not be rounded, such as routers, stays float32.
    """
    directory = Path(directory)
    content = _read_json(directory)
    model = implementation_of(content, directory).empty(content, str(directory), dtype, device)
    state, own = model.from_disk(_read_weights(directory), content, str(directory)), model.weights()
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
    model.overlay(state)
    return model.eval()


def assemble(directory: Path, tensors: Mapping[str, Tensor], base: Path | None) -> LanguageModel:
    """The model of a checkpoint: config.json of `directory`, `tensors`, and the frozen weights of the model in `base`.

    UserError if weights are missing or do not fit.
    """
    content = _read_json(directory)
    model = implementation_of(content, directory).empty(content, str(directory), torch.float32, "cpu")
    frozen = [name for name in model.weights() if name not in tensors]
    if frozen:
        if base is None:
            raise UserError(
                f"{directory} lacks {len(frozen)} weights that were frozen ({', '.join(frozen[:3])}), and the model "
                "that it was trained from is not known; put it back into its run, or let the run finish"
            )
        given = load_model(base).weights()
        lost = [name for name in frozen if name not in given]
        if lost:
            raise UserError(f"{base} lacks weights that were frozen in {directory}: {', '.join(lost[:3])}")
        model.overlay({name: given[name] for name in frozen})
    model.overlay(tensors)
    return model.eval()
