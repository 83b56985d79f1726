"""`mengya plan`: what a recipe will need, from its shapes and from a few seconds of real steps on this machine."""

import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE
from rich.table import Table

from mengya import runtime
from mengya.batch import Batch, Source
from mengya.data import schoolbook
from mengya.data.files import raw_bytes
from mengya.data.shards import Shards
from mengya.errors import UserError
from mengya.metrics import console, format_count, format_seconds, say
from mengya.model.load import read_config
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM, count_active_parameters, count_parameters, flops_per_token
from mengya.recipe import Recipe, StageSpec
from mengya.train.loop import Guard, fit
from mengya.train.objectives import Objective, dpo, language_modeling
from mengya.train.settings import TrainingConfig, engine_for, prepare_model

_BYTES_PER_TOKEN = 3.6
"""Of a tokenizer that does not exist yet; measured on Chinese text with 6,400 entries."""
_CHAT_OVERHEAD = 1.25
"""Template tokens around short turns."""
_PAIR_OVERHEAD = 1.4
"""The prompt of a preference pair stands before both of its answers."""


class _Measured(NamedTuple):
    first: float
    """Seconds of the first step: compilation."""
    step: float
    memory: int


class _Synthetic(Source):
    """Random batches of the right shape; each row holds a pair, or one document."""

    def __init__(self, settings: TrainingConfig, vocab_size: int, pairs: bool):
        self._rows, self._length = min(settings.micro_batch or settings.rows, settings.rows), settings.seq_len
        if settings.rows % self._rows:
            raise UserError(
                f"micro_batch={self._rows} does not divide the {settings.rows} rows of a step; try a divisor"
            )
        self._batches, self._entries, self._pairs = settings.rows // self._rows, vocab_size, pairs
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, step: int) -> list[Batch]:
        rows, length, documents = self._rows, self._length, 2 if self._pairs else 1
        half = length // documents
        starts = (torch.arange(length) // half * half).to(torch.int32).expand(rows, length).contiguous()
        ids = torch.randint(0, self._entries, (rows, length + 1), generator=self._generator)
        batch = Batch(
            input_ids=ids[:, :-1],
            labels=ids[:, 1:],
            position_ids=torch.arange(length) - starts.long(),
            starts=starts,
            sequence_ids=torch.arange(rows)[:, None] * documents + torch.arange(length) // half,
            sequences=rows * documents,
            count=rows if self._pairs else rows * length,
        )
        return [batch] * self._batches


def _measure(settings: Any, shape: ModelConfig, pairs: bool, seconds: float = 4.0) -> _Measured:
    """Take real steps for a few seconds."""
    model = CausalLM(shape)
    model.initialize(torch.Generator().manual_seed(0))
    objective: Objective
    if pairs:
        reference = CausalLM(shape).requires_grad_(False)
        reference.load_state_dict(model.state_dict())
        prepare_model(reference, dataclasses.replace(settings, compile=False))
        objective = dpo(0.1, reference, settings.balance)
    else:
        objective = language_modeling(settings.balance)
    engine = engine_for(prepare_model(model, settings), objective, settings)
    source = _Synthetic(settings, shape.vocab_size, pairs)
    times: list[float] = []
    last = time.perf_counter()
    updates = fit(engine, lambda _: 0.0, source, range(1000), settings.optim.max_grad_norm, Guard())
    with contextlib.closing(updates):
        for _ in updates:
            times.append(time.perf_counter() - last)
            last += times[-1]
            if len(times) >= 4 and sum(times[1:]) > seconds:
                break
    later = sorted(times[2:])
    return _Measured(sum(times[:2]) - 2 * later[len(later) // 2], sum(later) / len(later), runtime.peak_memory())


class _Sizes:
    """Bytes that the data stages will see, without writing anything into the output directory."""

    def __init__(self, recipe: Recipe, root: Path):
        self.root = root
        self._specs = {spec.name: spec for spec in recipe.stages}
        self._book: dict[str, int] = {}
        taught = (s for s in recipe.stages if s.kind == "corpus" and s.config.schoolbook)
        corpus = next(taught, None)
        if corpus:
            with tempfile.TemporaryDirectory() as folder:
                schoolbook.write(Path(folder), corpus.config.seed)
                self._book = {p.name: p.stat().st_size for p in Path(folder).iterdir()}
                self._rows = {p.name: sum(1 for _ in open(p, "rb")) for p in Path(folder).iterdir()}

    def text(self, spec: StageSpec) -> int:
        """Of all corpora that a stage reads, or of the one that it is."""
        if spec.kind != "corpus":
            return sum(self._text_of(value) for value in spec.references["corpus"])
        files = spec.references.get("path", [])
        book = self._book.get("text.jsonl", 0) if spec.config.schoolbook else 0
        return book + (raw_bytes(list(files)) if files else 0)

    def _text_of(self, value: str) -> int:
        """Of a corpus that is a stage of the recipe, or a directory."""
        spec = self._specs.get(value[1:].partition("/")[0]) if value.startswith("@") else None
        if spec is None:
            return raw_bytes(str(Path(value).expanduser() / "train.jsonl"))
        return self.text(spec)

    def rows(self, name: str) -> int:
        return self._rows.get(name, 0) if self._book else 0

    def of(self, values: list[str]) -> int:
        return sum(self._book.get(v.rpartition("/")[2], 0) if v.startswith("@") else raw_bytes(v) for v in values)

    def tokens(self, spec: StageSpec) -> float:
        """Tokens in an epoch of a training stage; exact once the shards exist."""
        if spec.kind == "pretrain":
            return sum(self._shard_tokens(value) for value in spec.references["shards"])
        overhead = _CHAT_OVERHEAD * (_PAIR_OVERHEAD if spec.kind == "dpo" else 1)
        return self.of(spec.references["path"]) / _BYTES_PER_TOKEN * overhead

    def _shard_tokens(self, value: str) -> float:
        shards = (self.root / value[1:] if value.startswith("@") else Path(value).expanduser()) / "train"
        spec = self._specs.get(value[1:].partition("/")[0])
        if spec is None or (shards / "shards.json").exists():
            meta = Shards(shards).meta
            return meta["tokens"] + meta["documents"]
        return self.text(spec) / _BYTES_PER_TOKEN


def _shape(recipe: Recipe, spec: StageSpec) -> ModelConfig:
    """Of the model that a training stage trains, followed back to where it comes from."""
    specs = {s.name: s for s in recipe.stages}
    entries = 0
    while spec.kind != "pretrain" or spec.config.model is None:
        if spec.kind == "pretrain":
            entries = entries or _entries(specs, spec)
        source = spec.references["init" if spec.kind == "pretrain" else "model"][0]
        if not source.startswith("@"):
            shape = read_config(Path(source).expanduser())
            break
        spec = specs[source[1:].partition("/")[0]]
    else:
        shape = spec.config.model
        entries = entries or (0 if shape.vocab_size else _entries(specs, spec))
    return dataclasses.replace(shape, vocab_size=max(shape.vocab_size, entries))


def _entries(specs: dict[str, StageSpec], spec: StageSpec) -> int:
    """Of the tokenizer behind the shards of a pretraining stage; 0 if no stage of the recipe makes it."""
    tokenize = specs.get(spec.references["shards"][0][1:].partition("/")[0])
    tokenizer = specs.get(tokenize.references["tokenizer"][0][1:].partition("/")[0]) if tokenize else None
    return tokenizer.config.vocab_size if tokenizer else 0


def _other_seconds(spec: StageSpec, sizes: _Sizes, train_rate: float) -> float:
    """Stages that train nothing, from rates measured on two cores; small beside training."""
    if spec.kind == "corpus":
        return 2 + sizes.text(spec) / 20e6 + (6 if spec.config.schoolbook else 0)
    if spec.kind == "tokenizer":
        return 1 + min(sizes.text(spec), spec.config.sample_bytes) / (1e6 if spec.config.extend else 1.5e6)
    if spec.kind == "tokenize":
        return 1 + sizes.text(spec) / 4e6
    tokens = spec.config.heldout_bytes / _BYTES_PER_TOKEN + 25 * sizes.rows("questions.jsonl") * 4
    return 4 + len(spec.references["models"]) * (1 + tokens / max(2 * train_rate, 1))


def print_plan(recipe: Recipe, root: Path) -> None:
    """Measure and print; writes nothing."""
    say(f"measuring a few steps on {runtime.describe_machine()} …")
    sizes = _Sizes(recipe, root)
    table = Table(title=f"plan of {recipe.name}", box=SIMPLE, pad_edge=False)
    for column in ("stage", "parameters", "tokens", "steps", "FLOPs", "tok/s", "memory", "disk", "time"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    total, rate, disk_total, others = 0.0, 0.0, 0.0, []
    for spec in recipe.stages:
        if not isinstance(spec.config, TrainingConfig):
            others.append(spec)
            continue
        settings, shape = spec.config, _shape(recipe, spec)
        if not shape.vocab_size:
            raise UserError(f"{spec.name}: the vocabulary is unknown; set model.vocab_size in [pretrain]")
        measured = _measure(settings, shape, pairs=spec.kind == "dpo")
        steps = settings.steps or max(1, round(settings.epochs * sizes.tokens(spec) / settings.batch_tokens))
        tokens = steps * settings.batch_tokens
        heldout = (steps / settings.heldout_every + 1) * settings.heldout_rows / settings.rows * measured.step / 2
        seconds = 3 + max(measured.first, 0) + steps * measured.step + heldout
        rate = settings.batch_tokens / measured.step
        parameters = count_parameters(shape)
        disk = parameters * 4 + parameters * 12 * settings.keep_checkpoints
        flops = tokens * flops_per_token(shape, settings.seq_len / 2)
        total, disk_total = total + seconds, disk_total + disk
        shown = format_count(parameters)
        if shape.num_experts:  # and those that work on one token
            shown += f"/{format_count(count_active_parameters(shape))}"
        cells = (shown, format_count(tokens), steps, format_count(flops), format_count(rate))
        sizes_shown = (f"{format_count(measured.memory)}B", f"{format_count(disk)}B", format_seconds(seconds))
        table.add_row(spec.name, *map(str, cells), *sizes_shown)
    for spec in others:
        seconds = _other_seconds(spec, sizes, rate)
        share = {"corpus": 1.0, "tokenize": 0.6}.get(spec.kind)  # of the text
        disk = round(share * sizes.text(spec)) if share else 0
        total, disk_total = total + seconds, disk_total + disk
        table.add_row(spec.name, "", "", "", "", "", "", f"{format_count(disk)}B", format_seconds(seconds))
    console.print(table)
    say(f"in all about {format_seconds(total)}, {format_count(disk_total)}B of disk")
    print(json.dumps({"seconds": round(total, 1), "disk_bytes": int(disk_total)}))
