"""The one training loop."""

import contextlib
import math
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mengya import ranks, runtime
from mengya.batch import Batch, Loss, Metric, Source
from mengya.data.prefetch import prefetch
from mengya.errors import UserError
from mengya.metrics import say
from mengya.train.engines.single import Engine
from mengya.train.optimizer import Schedule

Metrics = dict[str, Any]
"""Scalars are means over the step; a list (of tokens per expert, say) is a sum over it."""


@dataclass
class Guard:
    """Decides whether an update is applied: not if loss or gradient is NaN or infinite, nor if its norm spikes."""

    spike: float = 20.0
    """A norm above this multiple of its running mean is a spike."""
    most_skips: int = 10
    """So many skipped steps in a row end the run."""
    warmup: int = 50
    """Steps before spikes are looked for; the first norms are wild."""
    mean_norm: float = 0.0
    seen: int = 0
    skips: int = 0

    def verdict(self, loss: float, norm: float, where: str = "") -> str | None:
        """None: apply the update. Otherwise why it is skipped. UserError after `most_skips` in a row.

        `where`: on which ranks the loss is not a number, and in which weights the gradient, for the message.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = f"loss {loss}, gradient norm {norm}{where}"
        elif self.seen >= self.warmup and norm > self.spike * self.mean_norm:
            reason = f"gradient norm {norm:.3g} is over {self.spike:g} x its mean {self.mean_norm:.3g}"
        else:
            self.seen += 1
            weight = max(0.02, 1 / self.seen)
            self.mean_norm += weight * (norm - self.mean_norm)
            self.skips = 0
            return None
        self.skips += 1
        if self.skips >= self.most_skips:
            raise UserError(f"{self.skips} steps in a row were skipped, the last: {reason}; lower optim.lr")
        return reason


class _Sums:
    """The loss and metrics of a step: added up over micro-batches, then over ranks in one message."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {"loss": self._wide(0.0)}
        self._divisors: dict[str, Tensor] = {}
        """Those that metrics bring themselves."""

    def _wide(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, device=self._device).detach().double()

    def add(self, loss: Loss) -> None:
        for name, metric in {"loss": Metric(loss.total), **loss.metrics}.items():
            self._sums[name] = self._wide(metric.sum) + self._sums.get(name, 0.0)
            if metric.divisor is not None:
                self._divisors[name] = self._wide(metric.divisor) + self._divisors.get(name, 0.0)

    def over_ranks(self, norm: Tensor) -> tuple[float, list[int]]:
        """Add up over all ranks. Returns the norm, to the bit the same on all, and which ranks' loss is not finite."""
        wrong = torch.zeros(ranks.size(), dtype=torch.float64, device=self._device)
        wrong[ranks.rank()] = (~self._sums["loss"].isfinite()).double()
        parts = [norm.to(self._device, torch.float64) / ranks.size(), wrong]
        parts += [*self._sums.values(), *self._divisors.values()]
        flat = ranks.sum_in_place(torch.cat([part.flatten() for part in parts])).cpu()
        found, bad, *rest = flat.split([part.numel() for part in parts])
        for sums in (self._sums, self._divisors):
            for name in sums:
                sums[name] = rest.pop(0).view(sums[name].shape)
        return float(found), bad.nonzero().flatten().tolist()

    def means(self, count: int) -> Metrics:
        """Each sum by its own divisor, or by the step's count; NaN if that is 0."""
        means: Metrics = {}
        for name, value in self._sums.items():
            if value.ndim:
                means[name] = value.tolist()
            elif name in self._divisors:
                means[name] = float(value / self._divisors[name])  # tensors: 0 / 0 is NaN
            else:
                means[name] = float(value) / count if count else math.nan
        return means


def fit(
    engine: Engine, schedule: Schedule, source: Source, steps: range, max_grad_norm: float, guard: Guard
) -> Generator[tuple[int, Metrics], None, None]:
    """Train over `steps`; after each yields its number and metrics (loss, lr, grad_norm, tokens, the objective's).

    A step whose update was not applied also has `skipped`, the reason. All of it is the same on every rank.

    The count of all micro-batches and ranks is known before the first backward pass, and every total is divided by it,
    so that unequal masks, micro-batches and ranks weigh what they should.
    """
    engine.root.train()
    with contextlib.closing(prefetch(source, steps, engine.device)) as inputs:
        for step, batches in inputs:
            rate = engine.set_rate(schedule(step))
            rows = sum(batch.input_ids.numel() for batch in batches)
            count, tokens = ranks.sum_of(sum(batch.count for batch in batches), rows)
            sums = _gradient(engine, batches, count)
            norm, wrong = sums.over_ranks(engine.clip(max_grad_norm))
            metrics = sums.means(count)
            where = f" (of rank {', '.join(map(str, wrong))})" if wrong and ranks.size() > 1 else ""
            where += "" if math.isfinite(norm) else _named(engine.not_finite())
            skipped = guard.verdict(metrics["loss"], norm, where) if count else "no token in it is to be learnt"
            engine.update(apply=skipped is None)
            metrics |= {"lr": rate, "grad_norm": norm, "tokens": tokens}
            yield step, metrics | ({"skipped": skipped} if skipped else {})


def _gradient(engine: Engine, batches: list[Batch], count: int) -> _Sums:
    """Forward and backward passes of a step. A compiler that breaks costs the step's time, and is not asked again."""
    sums = _Sums(engine.device)
    try:
        for number, batch in enumerate(batches, 1):
            sums.add(engine.accumulate(batch, count, last=number == len(batches)))
        return sums
    except Exception as error:
        reason = runtime.compiler_failure(error)
        if reason is None:
            raise
        if ranks.size() > 1:  # the others are in the middle of the step
            raise UserError(
                f"the compiler failed: {reason}; see what it lacks (space on the disk, memory), then give the same "
                "command again; with compile = false it is not asked"
            ) from error
    say(f"going on uncompiled, the compiler failed: {reason}")
    torch.compiler.set_stance("force_eager")
    engine.update(apply=False)
    return _gradient(engine, batches, count)  # out of the handler, whose error keeps the activations


def _named(weights: list[str]) -> str:
    return f", not finite in {by_pattern(weights)}" if weights else ""


def by_pattern(names: Iterable[str]) -> str:
    """Names of weights, those that differ in numbers alone as one with how many they are."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), []).append(name)
    return ", ".join(found[0] if len(found) == 1 else f"{name} ({len(found)})" for name, found in alike.items())


def measure(engine: Engine, batches: Iterable[Batch]) -> float:
    """The objective's mean over held-out batches of all ranks, NaN if no token in them is to be learnt.

    Without compiled kernels of its own for this pass.

    Every rank must give as many batches as the others.
    """
    engine.root.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=engine.device), 0
    with torch.compiler.set_stance("force_eager"):
        for batch in batches:
            total += engine.evaluate(batch.to(str(engine.device))).total
            count += batch.count
    engine.root.train()
    (counted,) = ranks.sum_of(count)
    mean = float(ranks.sum_in_place(total))
    return mean / counted if counted else math.nan
