"""The files of weights in a model directory: one or several of safetensors, as Hugging Face lays them out."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mengya import hub
from mengya.errors import UserError

WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")


def weight_files(directory: Path) -> list[Path]:
    """UserError if one is missing, or if there are only pickles, which can run any code."""
    index = directory / SHARD_INDEX
    names = [WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif not (directory / WEIGHTS).is_file() and (pickles := [n for n in _PICKLES if (directory / n).is_file()]):
        raise UserError(
            f"{directory} holds its weights as pickles ({pickles[0]}), which can run any code and are not read; "
            'convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
            f'M.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"'
        )
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory} lacks {name}; {hub.remedy(directory)}")
    return [directory / name for name in names]


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {hub.remedy(path.parent)}") from error


def check_weights(directory: Path) -> None:
    """UserError if files are missing or cut off; only their headers are read."""
    for path in weight_files(directory):
        with _explained(path), safe_open(path, "pt"):
            pass


def read_weights(directory: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path in weight_files(directory):
        with _explained(path):
            state |= load_file(path)
    return state
