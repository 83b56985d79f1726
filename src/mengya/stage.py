"""What a stage is: a value that says how one directory is filled, and all that the rest of the house may know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Inputs = Mapping[str, list[Path]]
"""Input field of a config (dotted if it stands in a nested table) -> the paths that it names."""


@dataclass(frozen=True)
class Promise:
    """What is known of a directory, or of a file, before any stage runs. 0, None or "" where nothing is known."""

    path: Path | None = None
    """Where it is, if it is there already: a directory, or the files that a path or a pattern names."""
    vocab_size: int = 0
    """Entries of the tokenizer in it."""
    tokenizer: Path | None = None
    """A directory that is there and has the same tokenizer."""
    template: Path | None = None
    """A directory that is there and has the same chat template; None: the template is ours."""
    model: dict | None = None
    """The content of its config.json; its `vocab_size` is 0 while that is not known."""
    rows: str = ""
    """What each row of a file is: "text", "conversation", "preference" or "question"."""
    files: Mapping[str, "Promise"] = field(default_factory=dict)
    """The files in it that other stages may read, by name."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Files that are in it with other settings -> why not now, and the remedy."""


Promises = Mapping[str, list[Promise]]
"""Input field -> what is known of each of its values."""


@dataclass(frozen=True)
class Training:
    """What a training stage will do."""

    parameters: int
    active_parameters: int
    """Those that work on one token."""
    tokens: float
    steps: int
    flops: float
    tokens_per_second: float | None
    """None: not measured, because this machine has too little memory."""
    memory: float | None
    """Bytes: of the GPU, or without one of the process. None: not known here."""
    on_gpus: Mapping[int, float] = field(default_factory=dict)
    """Number of GPUs -> bytes on each, counted."""


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
    estimate: Callable[[Any, Sources, Promise], Estimate]
    """estimate(config, sources, promise): what it will need; `promise` is its own."""
    promise: Callable[[Any, Promises], Promise] | None = None
    """promise(config, inputs): what is known of the directory before it is filled; UserError if it cannot be filled."""
    checks: tuple[Callable[[Any, Promises], None], ...] = ()
    """Each check(config, inputs) raises UserError for one fault that can be known before any stage runs."""
    ready: Callable[[Any], None] | None = None
    """ready(config): UserError if the processes that were started cannot run it, though others could."""
    progress: Callable[[Path], bool] | None = None
    """Whether a half-filled directory holds something that took time to make, from which a continued run goes on; None:
    the stage always begins anew."""
    distributed: bool = False
    """All ranks run it together; otherwise rank 0 alone does."""
    scratch: tuple[str, ...] = ()
    """Folders in the directory that only a continued run needs; deleted once the manifest is written."""
