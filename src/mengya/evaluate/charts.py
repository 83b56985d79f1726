"""The pictures of the report: SVG text drawn by matplotlib without pyplot, which would keep figures in global state.

Colours are those of the light theme. `themed` turns each into a CSS variable, so that the same picture follows the
reader's theme once it stands inside the page. Labels are English: matplotlib's own fonts lack Chinese.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mengya.evaluate.accuracy import Accuracy

INK, FAINT, GRID, PAPER = "#24312b", "#6b7a72", "#dfe7e1", "#fffffe"
SERIES = ("#2f8f5b", "#d98a1f", "#3b6fb6", "#a8518a", "#7a7a3a", "#b5473c")
RAW = "#a9d5bb"
BASELINE = "#b8c2bc"
CSS_NAMES = {
    INK: "--ink", FAINT: "--faint", GRID: "--grid", PAPER: "--paper", RAW: "--raw", BASELINE: "--baseline",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}  # fmt: skip
MAX_POINTS = 1500  # of a curve, so that a long run does not make a page of megabytes

Rows = Sequence[Mapping[str, Any]]


def themed(svg: str) -> str:
    """The <svg> element for embedding in a page: colours as CSS variables, size left to the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # those of the <svg> element come first
    for colour, name in CSS_NAMES.items():
        svg = svg.replace(colour, f"var({name})")
    return svg


def training_curve(name: str, rows: Rows) -> str:
    """Loss (every step faint, its running median, held out where measured) above the learning rate."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    loss_axes, lr_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    steps, losses = _series(rows, "loss")
    smooth = running_median(losses, len(losses) // 60)
    every = max(1, -(-len(steps) // MAX_POINTS))
    loss_axes.plot(steps[::every], losses[::every], color=RAW, linewidth=0.8, label="train, every step")
    loss_axes.plot(steps[::every], smooth[::every], color=SERIES[0], linewidth=2, label="train, running median")
    held_steps, held = _series(rows, "heldout_loss")
    if len(held):
        loss_axes.plot(held_steps, held, ":o", color=SERIES[1], linewidth=1.2, markersize=4.5, label="held out")
    _limit(loss_axes, losses, np.concatenate([smooth, held]))
    loss_axes.set_ylabel("loss (nats)")
    loss_axes.legend(frameon=False, labelcolor=INK, fontsize=10)
    lr_steps, rates = _series(rows, "lr")
    lr_axes.plot(lr_steps[::every], rates[::every], color=SERIES[2], linewidth=1.6)
    lr_axes.set_ylim(bottom=0)
    lr_axes.yaxis.set_major_locator(MaxNLocator(2))
    lr_axes.yaxis.set_major_formatter("{x:g}")
    lr_axes.set_ylabel("lr")
    lr_axes.set_xlabel(f"step of {label(name)}")
    return _svg(figure, f"curve-{name}")


def bits_curve(name: str, rows: Rows, baselines: Mapping[str, float]) -> str:
    """Held-out bits per byte as training goes on, falling below the dashed lines of the byte baselines."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.subplots()
    steps, bits = _series(rows, "heldout_bits_per_byte")
    axes.plot(steps, bits, color=SERIES[0], linewidth=2, marker="o", markersize=4.5)
    above: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 4), "textcoords": "offset points"}
    for baseline, value in baselines.items():
        axes.axhline(value, color=FAINT, linewidth=1.2, linestyle="--")
        axes.annotate(f"{baseline} {value:.2f}", (1, value), ha="right", color=FAINT, fontsize=10, **above)
    axes.set_ylim(0, 1.1 * max(*bits, *baselines.values()))
    axes.set_ylabel("held-out bits per byte")
    axes.set_xlabel(f"step of {label(name)}")
    return _svg(figure, f"bits-{name}")


def bits_chart(baselines: Mapping[str, float], stages: Mapping[str, float]) -> str:
    """Horizontal bars of bits per byte, lower is better: the baselines in grey, then the models."""
    bars = [(name, value, BASELINE) for name, value in baselines.items()]
    bars += [(label(name), value, SERIES[0]) for name, value in stages.items() if math.isfinite(value)]
    figure = Figure(figsize=(5.6, 0.9 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    names, values, colours = zip(*bars, strict=True)
    drawn = axes.barh(names, values, color=colours, height=0.62)
    axes.bar_label(drawn, fmt="%.3f", padding=4, color=INK, fontsize=11)
    axes.set_xlim(0, max(values) * 1.18)
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte (lower is better)")
    return _svg(figure, "bits", grid="x")


def accuracy_chart(stages: Mapping[str, Mapping[str, Accuracy]], names: Mapping[str, str]) -> str:
    """Grouped bars with 95 % intervals: one group a metric (`names`: key -> label), one bar a stage."""
    figure = Figure(figsize=(max(5.6, 0.95 * len(names)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(stages)
    for i, (stage, results) in enumerate(stages.items()):
        shown = [(at, results[key]) for at, key in enumerate(names) if key in results]
        centres = [at + (i - (len(stages) - 1) / 2) * width for at, _ in shown]
        values = [result.value for _, result in shown]
        errors = [[r.value - r.low for _, r in shown], [r.high - r.value for _, r in shown]]
        style = {"ecolor": INK, "elinewidth": 1.1, "capsize": 3}
        colour = SERIES[i % len(SERIES)]
        axes.bar(centres, values, width * 0.9, yerr=errors, color=colour, error_kw=style, label=label(stage))
    axes.set_xticks(range(len(names)), [label(name).replace(" ", "\n") for name in names.values()])
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside upper center", ncols=min(4, len(stages)), frameon=False, labelcolor=INK, fontsize=11)
    return _svg(figure, "accuracy")


def running_median(values: np.ndarray, reach: int) -> np.ndarray:
    """Median of the values at most `reach` places away: unlike a mean, it ignores the spike of a single step."""
    if len(values) == 0:
        return values
    padded = np.pad(values, reach, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)


def label(name: str) -> str:
    """A name that matplotlib's fonts can draw and that it does not read as mathematics."""
    return name.encode("ascii", "replace").decode().replace("$", r"\$")


def is_number(value: Any) -> bool:
    """Whether a figure was measured and is finite: a skipped step may have null or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have a finite number under `key`."""
    points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
    array = np.array(points, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _limit(axes: Axes, raw: np.ndarray, lines: np.ndarray) -> None:
    """Let the lines set the scale, so that one spike of a single step does not flatten the curve."""
    if len(raw) == 0:
        return
    low, high = np.percentile(raw, [2, 98])
    low, high = min(low, lines.min()), max(high, lines.max(), raw[0])
    margin = 0.05 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def _svg(figure: Figure, name: str, grid: str = "y") -> str:
    """Style the axes and render. `name` seeds the ids inside, so that pictures on one page do not clash."""
    for axes in figure.axes:
        axes.grid(axis=grid, color=GRID, linewidth=0.9)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
        axes.set_facecolor(PAPER)
        axes.tick_params(colors=INK, labelsize=11, length=0)
        axes.xaxis.label.set(color=FAINT, fontsize=11)
        axes.yaxis.label.set(color=FAINT, fontsize=11)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(FAINT)
    figure.set_facecolor(PAPER)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same figures give the same file
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()
