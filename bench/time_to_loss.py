"""The time to a given held-out loss: ours against transformers' Trainer, by turns on one clock.

    python bench/time_to_loss.py --text texts/ [--minutes 5] [--peer-lr 1e-3] [--ablation] [--out runs/time-to-loss]

Both train the shape that tiny-llama2 publishes as 24M, with a vocabulary of 6,400, on the same text with the same
tokenizer. The Trainer has its defaults: AdamW, a linear schedule, batches of 8 documents padded to the longest, eager
code, and bfloat16 where the machine computes it. Only its learning rate is one for training from scratch: its default
of 5e-5 is for fine-tuning, and leaves it far behind (`--peer-lr 5e-5`). It trains for `--minutes`. Ours plans to be
done in a third of them; if it is not as good then, it begins anew with two thirds, and then with all.

Each trains for a few seconds while the other waits, so that a machine that changes its speed changes it for both.
Starting, compiling and measuring do not count; the time of the first step is told. Bits per byte are measured by the
same code. `--ablation` trains ours without one of its parts each, as long as with all of them, after the rest.
The last line is one of JSON.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import Worker, answer, features

from mengya.batch import Source

SHAPE = dict(
    vocab_size=6400,
    hidden_size=288,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    intermediate_size=768,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
LENGTH, BATCH_TOKENS, HELDOUT_ROWS = 512, 2048, 64
SLICE = 5.0
"""Seconds of a turn."""
SHARES = (1 / 3, 2 / 3, 1.0)
POINTS = 20
"""Measurements over a run of ours."""
OURS = {"lr": 6e-3, "name": "muon", "ns_steps": 3, "schedule": "wsd", "warmup": 0.01, "decay": 0.5, "min_lr": 0.0}
WITHOUT: dict[str, dict] = {
    "packing": {},
    "optimizer": {"name": "adamw", "lr": 2e-3},
    "schedule": {"schedule": "cosine", "min_lr": 0.1},
    "kernels": {},
}
"""What takes the place of each part: documents padded to the longest of 8, AdamW, a cosine, eager code of PyTorch's."""
RECIPE = """
[corpus]
path = {text}
heldout = 0.005

[tokenizer]
vocab_size = 6400

[tokenize]
"""


def prepare(text: Path, folder: Path) -> Path:
    """The token shards of a file or folder of text; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(text=json.dumps(str(text.resolve()))), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mengya", "run", path, "--out", folder], check=True)
    return folder / "tokenize"


class Text:
    """Documents as both contestants read them, and the held-out ones."""

    def __init__(self, shards: Path):
        from mengya.data.packing import PackedText
        from mengya.data.shards import Shards
        from mengya.text.tokenizer import Tokenizer

        self._train, heldout = Shards(shards / "train"), Shards(shards / "heldout")
        self._eos_id = Tokenizer.load(shards).eos_id
        self.packed, self._heldout = (PackedText(s, LENGTH, self._eos_id, 0) for s in (self._train, heldout))
        counts = heldout.meta
        self._bytes_per_token = counts["bytes"] / (counts["tokens"] + counts["documents"])
        self._pieces = []  # of documents, each with a separator before and after it
        for low, high in zip(self._train.offsets[:-1].tolist(), self._train.offsets[1:].tolist(), strict=True):
            self._pieces += [(begin, min(begin + LENGTH - 1, high)) for begin in range(low, high, LENGTH - 1)]

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> list[int]:
        begin, end = self._pieces[index]
        return [self._eos_id, *self._train.tokens[begin:end].tolist(), self._eos_id]

    def bits_per_byte(self, model) -> float:
        """Of a model of ours, on held-out text."""
        import torch

        from mengya.data.packing import in_order

        total, count = 0.0, 0
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for batch in in_order(self._heldout, 8, HELDOUT_ROWS):
                batch = batch.to(str(model.device))
                inputs = {name: getattr(batch, name) for name in ("input_ids", "position_ids", "starts")}
                total += float(model.loss(model.hidden(**inputs)[0], batch.labels))
                count += batch.count
        return total / count / math.log(2) / self._bytes_per_token


def native(**changes):
    import torch

    from mengya.model.native.config import ModelConfig
    from mengya.model.native.transformer import CausalLM

    model = CausalLM(ModelConfig(**SHAPE | changes))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def wait(**values: float) -> None:
    """Tell, and go on when it is this process's turn; the end of the line ends it."""
    answer(**values)
    if not sys.stdin.readline():
        raise SystemExit


def train_ours(shards: Path, seconds: float, missing: str) -> None:
    from mengya.data.packing import BatchSource
    from mengya.model.native import attention
    from mengya.train.loop import Guard, fit
    from mengya.train.objectives import language_modeling
    from mengya.train.optimizer import Optim, make_schedule
    from mengya.train.settings import TrainingConfig, engine_for, prepare_model

    text, optim = Text(shards), Optim(**OURS | WITHOUT.get(missing, {}))
    settings = TrainingConfig(seq_len=LENGTH, batch_tokens=BATCH_TOKENS, optim=optim, compile=missing != "kernels")
    if missing == "kernels":
        attention.library = lambda name: None
    model = prepare_model(native(qk_norm=False), settings)
    engine = engine_for(model, language_modeling(), settings)
    source = (
        Documents(text)
        if missing == "packing"
        else BatchSource(text.packed, settings.rows, settings.rows_at_once(1), 0)
    )
    shape, spent, tokens, measured = make_schedule(optim, 10_000), 0.0, 0, 0
    begin = time.perf_counter()
    steps = fit(engine, lambda _: shape(min(9_999, int(10_000 * spent / seconds))), source, range(10**9), 1.0, Guard())
    next(steps)
    first = time.perf_counter() - begin
    for _ in range(Documents.SHAPES if missing == "packing" else 1):
        next(steps)
    wait(first_step_seconds=first)
    while spent < seconds:
        begin = time.perf_counter()
        while time.perf_counter() < begin + min(SLICE, seconds - spent):
            tokens += next(steps)[1]["tokens"]
        spent += time.perf_counter() - begin
        found = {"seconds": spent, "tokens": tokens}
        if spent >= seconds or spent >= (measured + 1) * seconds / POINTS:
            measured = int(spent * POINTS / seconds)
            found["bits_per_byte"] = text.bits_per_byte(model)
        wait(**found)


class Documents(Source):
    """A source of batches as the Trainer makes them; of few lengths, because each is compiled by itself."""

    SHAPES = 4

    def __init__(self, text: Text):
        self._text = text

    def __call__(self, step: int) -> list:
        import numpy as np
        import torch

        from mengya.batch import IGNORE, Batch

        chosen = np.random.default_rng([0, step]).integers(0, len(self._text), 8).tolist()
        pieces, unit = [self._text[index] for index in chosen], LENGTH // self.SHAPES
        longest = max(len(piece) - 1 for piece in pieces)
        if step <= self.SHAPES:  # before the clock starts: each length once
            longest = min(step + 1, self.SHAPES) * unit
        rows, length = len(pieces), -(-longest // unit) * unit
        ids, labels = torch.zeros(rows, length, dtype=torch.long), torch.full((rows, length), IGNORE)
        for row, piece in enumerate(pieces):
            piece = piece[: length + 1]
            ids[row, : len(piece) - 1], labels[row, : len(piece) - 1] = torch.tensor([piece[:-1], piece[1:]])
        numbers = torch.arange(rows)[:, None].expand(rows, length)
        return [
            Batch(
                input_ids=ids,
                labels=labels,
                position_ids=torch.arange(length).expand(rows, length),
                starts=torch.zeros(rows, length, dtype=torch.int32),
                sequence_ids=numbers,
                sequences=rows,
                count=int((labels != IGNORE).sum()),
            )
        ]


def train_peer(shards: Path, seconds: float, rate: float) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from mengya.model.native.config import ModelConfig, to_hf
    from mengya.runtime import is_bfloat16_faster, pick_device

    text, device = Text(shards), pick_device()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(ModelConfig(**SHAPE))))

    def collate(pieces: list[list[int]]) -> dict:
        """With the labels of transformers, which it shifts by itself."""
        length = max(map(len, pieces))
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        rows = [{"input_ids": piece, "labels": piece, "attention_mask": [1] * len(piece)} for piece in pieces]
        return {n: torch.tensor([r[n] + [value] * (length - len(r[n])) for r in rows]) for n, value in fill.items()}

    class Turns(TrainerCallback):
        """The first steps do not count; afterwards a slice at a time."""

        UNCOUNTED = 3

        def __init__(self):
            self.spent, self.begin, self.times = 0.0, 0.0, [time.perf_counter()]

        def on_step_end(self, arguments, state, control, **_) -> None:
            now = time.perf_counter()
            self.times.append(now)
            if state.global_step == self.UNCOUNTED:
                wait(first_step_seconds=self.times[1] - self.times[0])
                self.begin = time.perf_counter()
            elif state.global_step > self.UNCOUNTED and now - self.begin >= SLICE:
                self.spent += now - self.begin
                wait(seconds=self.spent)
                self.begin = time.perf_counter()

    def train(steps: int, callback: TrainerCallback | None) -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, max_steps=steps, learning_rate=rate, bf16=is_bfloat16_faster(device), use_cpu=device == "cpu",
                save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
                remove_unused_columns=False,
            )  # fmt: skip
            callbacks = [callback] if callback else None
            trainer = Trainer(model, arguments, train_dataset=text, data_collator=collate, callbacks=callbacks)
            begin = time.perf_counter()
            trainer.train()
            return time.perf_counter() - begin

    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    train(2, None)  # what PyTorch does once
    each = train(8, None) / 8  # the linear schedule must know its end
    model.load_state_dict(before)
    turns = Turns()
    train(Turns.UNCOUNTED + max(1, round(seconds / each)), turns)
    turns.spent += time.perf_counter() - turns.begin
    own = native()
    own.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()}, strict=False)
    answer(seconds=turns.spent, bits_per_byte=text.bits_per_byte(own))


def by_turns(workers: dict[str, Worker]) -> dict[str, list[dict]]:
    """What each has told, once all are at their end."""
    found: dict[str, list[dict]] = {name: [worker.first] for name, worker in workers.items()}
    running = dict(workers)
    while running:
        for name, worker in list(running.items()):
            row = worker.go()
            found[name].append(row)
            if worker.at_end(row):
                del running[name]
    return found


class Runner(Worker):
    """A contestant's process, warm, `first` being what it then told; `seconds` is its own time.

    One is started after the other: the peer plans its steps by the time that a few of them take.
    """

    def __init__(self, name: str, seconds: float, missing: str = ""):
        super().__init__(name, "--seconds", str(seconds), "--missing", missing)
        self._seconds, self._peer = seconds, name == "peer"
        self.first = self.answer()

    def go(self) -> dict:
        return self.turn(1)

    def at_end(self, row: dict) -> bool:
        return "bits_per_byte" in row and (self._peer or row["seconds"] >= self._seconds)


def reached(curve: list[dict], bits: float) -> float | None:
    """The seconds after which a measurement was as good."""
    return next((row["seconds"] for row in curve if row.get("bits_per_byte", math.inf) <= bits), None)


def compete(seconds: float) -> dict:
    """The peer against ours with a third of its time; then ours alone with more, if need be."""
    result: dict = {}
    for number, share in enumerate(SHARES):
        with Runner("ours", share * seconds) as one:
            if number:
                told = by_turns({"ours": one})
            else:
                with Runner("peer", seconds) as other:
                    told = by_turns({"peer": other, "ours": one})
                last = told["peer"][-1]
                result |= {"peer_seconds": round(last["seconds"], 1), "bits_per_byte": round(last["bits_per_byte"], 4)}
        curve = told["ours"]
        when = reached(curve, result["bits_per_byte"])
        result |= {
            "ours_seconds": None if when is None else round(when, 1),
            "ratio": None if when is None else round(result["peer_seconds"] / when, 2),
            "planned_seconds": round(share * seconds, 1),
            "ours_bits_per_byte": round(curve[-1]["bits_per_byte"], 4),
            "first_step_seconds": round(curve[0]["first_step_seconds"], 1),
        }
        result["curve"] = [
            (round(r["seconds"], 1), round(r["bits_per_byte"], 4)) for r in curve if "bits_per_byte" in r
        ]
        print(json.dumps(result), flush=True)
        if when is not None:
            break
    return result


def ablate(seconds: float, bits: float) -> dict:
    """Ours without each of its parts, for so many seconds: how good it is then, and when it was as good as the peer."""
    found = {}
    for part in WITHOUT:
        with Runner("ours", seconds, part) as one:
            curve = by_turns({"ours": one})["ours"]
        when = reached(curve, bits)
        last = curve[-1]
        found[part] = {
            "bits_per_byte": round(last["bits_per_byte"], 4),
            "seconds": None if when is None else round(when, 1),
            "tokens": last["tokens"],
        }
        print(f"without {part}: {found[part]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a file or folder of raw text")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the Trainer's own time")
    parser.add_argument("--peer-lr", type=float, default=1e-3)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/time-to-loss"), help="where corpus and shards are kept")
    parser.add_argument("--one", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--missing", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shards = arguments.out / "tokenize"
    if arguments.one == "ours":
        return train_ours(shards, arguments.seconds, arguments.missing)
    if arguments.one == "peer":
        return train_peer(shards, arguments.seconds, arguments.peer_lr)
    prepare(arguments.text, arguments.out)
    result = compete(60 * arguments.minutes)
    result["ablation"] = ablate(result["planned_seconds"], result["bits_per_byte"]) if arguments.ablation else {}
    print(json.dumps(result | {"peer_lr": arguments.peer_lr, "features": features()}))


if __name__ == "__main__":
    main()
