"""What each part of the quickstart brings: the recipe as it is, and with one part changed, for several seeds.

    python bench/ablation.py [--seeds 3] [--changes "as it is;no replay"] [--picture PATH] [--out runs/ablation]

Prints a table row a run: held-out bits per byte after pretraining, and after fine-tuning those of the text and the
accuracies on held-out questions. What is there is not run again, so that seeds and changes may be added. The last line
is one of JSON; `--picture` draws it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from contest import features

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
ADAMW = ("optim.name=adamw", "optim.schedule=cosine", "optim.min_lr=0.1", "optim.warmup=20")


def _both(*keys: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{key}" for stage in ("pretrain", "sft") for key in keys)


CHANGES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "AdamW, a cosine each": (*_both(*ADAMW), "pretrain.optim.lr=2e-3", "sft.optim.lr=1e-3"),
    "momentum of 0.95": _both("optim.momentum=0.95"),
    "the rate falls in both stages": ("pretrain.optim.decay=0.5", "pretrain.optim.min_lr=0.0", "sft.optim.lr=3e-3"),
    "a cosine each": _both("optim.schedule=cosine"),
    "no norm of queries and keys": ("pretrain.model.qk_norm=false",),
    "no replay": (),  # two lines of the recipe are left out
    "replay of 0.3": ("sft.replay_share=0.3",),
    "half the pretraining, more fine-tuning": ("pretrain.steps=45", "sft.steps=290"),
    "steps of 2,048 tokens, twice as many": (*_both("batch_tokens=2048"), "pretrain.steps=180", "sft.steps=520"),
    "six layers": ("pretrain.model.num_hidden_layers=6",),
}
"""Overrides of the recipe."""
SHOWN = ("facts", "addition", "unknown", "identity", "first")


def run(change: str, seed: int, out: Path) -> dict[str, float]:
    """The figures of one run."""
    folder = out / f"{list(CHANGES).index(change)}-{seed}"
    overrides = [*CHANGES[change], f"pretrain.seed={seed}", f"sft.seed={seed}", 'evaluate.models=["@pretrain","@sft"]']
    recipe = folder.with_suffix(".toml")
    text = RECIPE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not (change == "no replay" and line.startswith("replay"))]
    begin, end = lines.index("[dpo]"), lines.index("[evaluate]")
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text("\n".join(lines[:begin] + lines[end:]), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "mengya", "run", recipe, *overrides, "--out", folder], check=True, stdout=sys.stderr
    )
    report = json.loads((folder / "evaluate" / "report.json").read_text(encoding="utf-8"))
    pretrained, tuned = report["stages"]["pretrain"], report["stages"]["sft"]
    found = {"pretrained_bits_per_byte": pretrained["bits_per_byte"], "bits_per_byte": tuned["bits_per_byte"]}
    return found | {f"{name}_accuracy": tuned[f"{name}_accuracy"] for name in SHOWN}


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Bits per byte after pretraining, and facts after fine-tuning; a dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 0.45 * len(results)), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 3, sharey=True),
        ("pretrained_bits_per_byte", "bits_per_byte", "facts_accuracy"),
        ("bits per byte, pretrained", "bits per byte, fine-tuned", "facts, fine-tuned"),
        strict=True,
    ):
        for place, rows in enumerate(results.values()):
            values = [row[key] for row in rows]
            axes.barh(place, statistics.mean(values), color="#2f8f5b" if not place else "#b8c2bc", height=0.6)
            axes.plot(values, [place] * len(values), "o", color="#24312b", markersize=3)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(results)), list(results), fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--changes", help=f"divided by semicolons; default: all of {', '.join(CHANGES)}")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    chosen = list(CHANGES)
    if arguments.changes:
        wanted = [name.strip() for name in arguments.changes.split(";")]
        if unknown := set(wanted) - set(CHANGES):
            raise SystemExit(f"--changes: there is no {', '.join(unknown)}; there are {'; '.join(CHANGES)}")
        chosen = wanted
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for change in chosen:
            figures = run(change, seed, arguments.out)
            results.setdefault(change, []).append(figures)
            print(f"| {change} | {seed} | {' | '.join(f'{value:.3f}' for value in figures.values())} |", flush=True)
    if arguments.picture:
        draw(results, arguments.picture)
    print(json.dumps({"results": results, "features": features()}))


if __name__ == "__main__":
    main()
