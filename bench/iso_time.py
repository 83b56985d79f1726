"""A dense model against a mixture of experts with the same active parameters: the same text, the same wall time.

    python bench/iso_time.py --text texts/ [--minutes 6] [--out runs/iso-time]

Both are calibrated first, so that their schedules end when the time does. Prints held-out bits per byte, tokens/s and
the load of the experts, whatever they say; the last line is one of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

BATCH_TOKENS, EXPERTS, TAKEN, SHARED, WIDTH = 4096, 15, 4, 2, 192
RECIPE = """
[corpus]
path = {text}
heldout = 0.002

[tokenizer]
vocab_size = 8000

[tokenize]
"""
TRAINING = """
[pretrain]
shards = {shards}
seq_len = 512
batch_tokens = {batch_tokens}
steps = {steps}
heldout_every = {every}
heldout_rows = 128
checkpoint_every = 1000000
optim.lr = 1e-3

[pretrain.model]
hidden_size = 384
num_hidden_layers = 6
num_attention_heads = 6
num_key_value_heads = 3
intermediate_size = {dense_width}
max_position_embeddings = 512
"""
MIXTURE = f"""num_experts = {EXPERTS}
num_experts_per_tok = {TAKEN}
moe_intermediate_size = {WIDTH}
n_shared_experts = {SHARED}
first_k_dense_replace = 1
"""


def mengya(recipe: str, folder: Path) -> None:
    """Run a recipe's text into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mengya", "run", path, "--out", folder], check=True)


def train(kind: str, steps: int, every: int, shards: Path, folder: Path) -> tuple[list[dict], dict]:
    """metrics.jsonl and stage.json of a training run."""
    recipe = TRAINING.format(
        shards=json.dumps(str(shards)),
        batch_tokens=BATCH_TOKENS,
        steps=steps,
        every=every,
        dense_width=(TAKEN + SHARED) * WIDTH,
    )
    mengya(recipe + (MIXTURE if kind == "mixture" else ""), folder)
    lines = (folder / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = json.loads((folder / "pretrain" / "stage.json").read_text(encoding="utf-8"))
    return [json.loads(line) for line in lines], manifest


def load_of_experts(rows: list[dict]) -> dict:
    """Over the last tenth of the run: each layer's shares of its experts, and the share of experts without a token."""
    last = [row["expert_load"] for row in rows[-max(1, len(rows) // 10) :]]
    sums = [[sum(values) for values in zip(*layer, strict=True)] for layer in zip(*last, strict=True)]
    shares = [[round(value / sum(layer), 4) for value in layer] for layer in sums]
    flat = [value for layer in shares for value in layer]
    unused = sum(value == 0 for value in flat) / len(flat)
    return {"shares": shares, "smallest": min(flat), "largest": max(flat), "unused": unused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a file or folder of raw text")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each of the two")
    parser.add_argument("--out", type=Path, default=Path("runs/iso-time"))
    arguments = parser.parse_args()
    data = arguments.out / "data"
    mengya(RECIPE.format(text=json.dumps(str(arguments.text.resolve()))), data)
    shards = (data / "tokenize").resolve()
    results = {}
    for kind in ("dense", "mixture"):
        trial, _ = train(kind, 40, 40, shards, arguments.out / f"{kind}-trial")
        rate = statistics.median(row["tokens_per_second"] for row in trial[10:])
        steps = round(arguments.minutes * 60 * rate / BATCH_TOKENS)
        rows, manifest = train(kind, steps, max(1, steps // 12), shards, arguments.out / kind)
        measured = [row for row in rows if "heldout_bits_per_byte" in row]
        results[kind] = {
            "bits_per_byte": round(measured[-1]["heldout_bits_per_byte"], 4),
            "curve": [(row["tokens"], round(row["heldout_bits_per_byte"], 4)) for row in measured],
            "tokens": rows[-1]["tokens"],
            "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in rows)),
            "seconds": round(manifest["seconds"]),
        }
        if kind == "mixture":
            results[kind]["load"] = load_of_experts(rows)
    for kind, found in results.items():
        print(
            f"{kind}: {found['bits_per_byte']} bits per byte after {found['tokens']:,} tokens in {found['seconds']} s, "
            f"{found['tokens_per_second']} tokens/s"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
