"""A dense model against a mixture of experts with the same active parameters: the same text, the same wall time.

    python bench/iso_time.py --text texts/ [--minutes 4.5] [--out runs/iso-time]

The two take turns of a few steps, so that a machine that changes its speed changes it for both; each one's learning
rate follows its own clock and ends its cosine when its time is up: half of what preparing the text, compiling and
measuring leave of the minutes. The prepared text is kept: a second run trains longer.
Prints held-out bits per byte, tokens/s and the load of the experts, whatever they say; the last line is one of JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from contest import features

from mengya.data.mixture import HeldoutPart, heldout_metrics
from mengya.data.packing import BatchSource, PackedText, in_order
from mengya.data.shards import Shards
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.text.tokenizer import Tokenizer
from mengya.train import balance
from mengya.train.loop import Guard, fit, measure
from mengya.train.objectives import language_modeling
from mengya.train.optimizer import make_schedule
from mengya.train.settings import TrainingConfig, engine_for, prepare_model

LENGTH, BATCH_TOKENS, HELDOUT_ROWS = 512, 4096, 64
TURN, UNCOUNTED = 8, 4
"""Steps of a turn, and first steps, which compile."""
MEASUREMENTS = 5
EXPERTS, TAKEN, SHARED, WIDTH = 15, 4, 2, 192
DENSE = dict(
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=3,
    intermediate_size=(TAKEN + SHARED) * WIDTH,
    max_position_embeddings=LENGTH,
)
MIXTURE = DENSE | dict(
    num_experts=EXPERTS,
    num_experts_per_tok=TAKEN,
    moe_intermediate_size=WIDTH,
    n_shared_experts=SHARED,
    first_k_dense_replace=1,
)
RECIPE = """
[corpus]
path = {text}
heldout = 0.002

[tokenizer]
vocab_size = 8000

[tokenize]
"""


def prepare(text: Path, folder: Path) -> Path:
    """The token shards of a file or folder of text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(text=json.dumps(str(text.resolve()))), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mengya", "run", path, "--out", folder], check=True)
    return folder / "tokenize"


class Run:
    """A model in training, with a clock of its own."""

    def __init__(self, shape: dict, shards: Path):
        tokenizer = Tokenizer.load(shards)
        settings = TrainingConfig(seq_len=LENGTH, batch_tokens=BATCH_TOKENS)
        model = CausalLM(ModelConfig(**shape).for_tokenizer(tokenizer.vocab_size))
        model.initialize(torch.Generator().manual_seed(settings.seed))
        self._engine = engine_for(prepare_model(model, settings), language_modeling(settings.balance), settings)
        self._after_step = balance.after_step(model, settings.balance)
        train, kept = (
            PackedText(Shards(shards / split), LENGTH, tokenizer.eos_id, settings.seed)
            for split in ("train", "heldout")
        )
        self._source = BatchSource(train, settings.rows, settings.rows_at_once(1), settings.seed)
        counts = Shards(shards / "heldout").meta
        self._heldout = HeldoutPart("text", kept, 1.0, counts["bytes"] / (counts["tokens"] + counts["documents"]))
        self.budget, self.seconds, self.tokens = 1.0, 0.0, 0
        self.curve: list[tuple[int, int, float]] = []
        self.loads: list[list[list[float]]] = []
        optim = settings.optim
        self._shape_of_rate = make_schedule(optim, 10_000)
        self._steps = self._train(optim.max_grad_norm)
        for _ in range(UNCOUNTED):
            next(self._steps)

    def turn(self) -> None:
        begin = time.perf_counter()
        for _ in range(TURN):
            next(self._steps)
        self.seconds += time.perf_counter() - begin

    def measure(self) -> None:
        loss = measure(self._engine, in_order(self._heldout.packer, 8, HELDOUT_ROWS))
        bits = heldout_metrics([self._heldout], [loss])["heldout_bits_per_byte"]
        self.curve.append((round(self.seconds), self.tokens, round(bits, 4)))

    def _rate(self, _step: int) -> float:
        return self._shape_of_rate(min(9_999, int(10_000 * self.seconds / self.budget)))

    def _train(self, max_grad_norm: float) -> Iterator[None]:
        for _, metrics in fit(self._engine, self._rate, self._source, range(10**9), max_grad_norm, Guard()):
            self.tokens += metrics["tokens"]
            if self._after_step is not None:
                self._after_step(metrics)
            if "expert_load" in metrics:
                self.loads.append(metrics["expert_load"])
            yield


def load_of_experts(loads: list[list[list[float]]]) -> dict:
    """Over the last tenth of the run: each layer's shares of its experts, and the share of experts without a token."""
    last = loads[-max(1, len(loads) // 10) :]
    sums = [[sum(values) for values in zip(*layer, strict=True)] for layer in zip(*last, strict=True)]
    shares = [[round(value / sum(layer), 4) for value in layer] for layer in sums]
    flat = [value for layer in shares for value in layer]
    unused = sum(value == 0 for value in flat) / len(flat)
    return {"shares": shares, "smallest": min(flat), "largest": max(flat), "unused": unused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a file or folder of raw text")
    parser.add_argument("--minutes", type=float, default=4.5, help="of everything")
    parser.add_argument("--out", type=Path, default=Path("runs/iso-time"), help="where corpus and shards are kept")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.minutes * 60
    shards = prepare(arguments.text, arguments.out)
    runs = {"dense": Run(DENSE, shards), "mixture": Run(MIXTURE, shards)}
    begin = time.monotonic()
    for run in runs.values():
        run.measure()
    left = end - time.monotonic() - MEASUREMENTS * (time.monotonic() - begin)
    if left < 20:
        raise SystemExit(f"{left:.0f} s are left to train for; give more --minutes, or less text")
    budget = left / len(runs)
    for run in runs.values():
        run.budget = budget
    for part in range(1, MEASUREMENTS + 1):
        while any(run.seconds < budget * part / MEASUREMENTS for run in runs.values()):
            for run in runs.values():
                if run.seconds < budget * part / MEASUREMENTS:
                    run.turn()
        for name, run in runs.items():
            run.measure()
            print(f"{name}: {run.curve[-1][0]} s, {run.tokens:,} tokens, {run.curve[-1][2]} bits per byte", flush=True)
    results = {
        name: {
            "bits_per_byte": run.curve[-1][2],
            "tokens": run.tokens,
            "seconds": round(run.seconds, 1),
            "tokens_per_second": round((run.tokens - UNCOUNTED * BATCH_TOKENS) / run.seconds),
            "curve": run.curve,
        }
        for name, run in runs.items()
    }
    results["mixture"]["load"] = load_of_experts(runs["mixture"].loads)
    print(json.dumps(results | {"features": features()}))


if __name__ == "__main__":
    main()
