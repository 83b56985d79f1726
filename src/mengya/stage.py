"""What a stage is: a value that says how one directory is filled, and all that the rest of the house may know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Inputs = Mapping[str, list[Path]]
"""Input field of a config (dotted if it stands in a nested table) -> the paths that it names."""


@dataclass(frozen=True)
class Training:
    """What a training stage will do."""

    parameters: int
    active_parameters: int
    """Those that work on one token."""
    tokens: float
    steps: int
    flops: float
    tokens_per_second: float
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class Estimate:
    """What a stage will need, and the size of what it makes; 0 or None where a number does not apply."""

    seconds: float = 0
    disk: float = 0
    """Bytes."""
    text: float = 0
    """Bytes of text that a corpus, or a file of rows, will hold."""
    rows: int = 0
    files: Mapping[str, "Estimate"] = field(default_factory=dict)
    """Files beside the main result that other stages may read."""
    tokens: float = 0
    vocab_size: int = 0
    model: Any = None
    """The shape of the model that comes out."""
    training: Training | None = None


Sources = Mapping[str, list[Estimate | Path]]
"""Input field -> for each value what the stage above will make, or the path if it is there already."""


@dataclass(frozen=True)
class Stage:
    """One kind of stage. Each file of `stages/` has one, called STAGE."""

    config: type
    run: Callable[[Any, Inputs, Path], None]
    """run(config, inputs, out) fills the directory `out` and does nothing else."""
    makes: tuple[str, ...]
    """What the directory can be used as: "corpus", "tokenizer", "shards", "model", "report"."""
    estimate: Callable[[Any, Sources], Estimate]
    check: Callable[[Any, Inputs], None] | None = None
    """check(config, inputs) raises UserError for what can be known before any stage runs. The inputs are those that
    are there already."""
    missing: Callable[[Any, str], str | None] | None = None
    """missing(config, file): why the directory will not hold that file, though another config's would; None if it may.
    """
    progress: Callable[[Path], bool] | None = None
    """Whether a half-filled directory holds something that took time to make, from which a continued run goes on; None:
    the stage always begins anew."""
    distributed: bool = False
    """All ranks run it together; otherwise rank 0 alone does."""
    scratch: tuple[str, ...] = ()
    """Folders in the directory that only a continued run needs; deleted once the manifest is written."""
