"""The one training loop."""

import contextlib
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mengya import ranks
from mengya.batch import Batch
from mengya.data.prefetch import prefetch
from mengya.errors import UserError
from mengya.train.objectives import Loss
from mengya.train.parallel import Engine
from mengya.train.schedule import Schedule

Metrics = dict[str, Any]
"""Scalars are means over the step; a list (of tokens per expert, say) is a sum over it."""


@dataclass
class Guard:
    """Decides whether an update is applied: not if loss or gradient is no number, nor if the gradient norm spikes."""

    spike: float = 20.0
    """A norm above this multiple of its running mean is a spike."""
    most_skips: int = 10
    """As many skipped steps in a row end the run."""
    warmup: int = 50
    """Steps before spikes are looked for; the first norms are wild."""
    mean_norm: float = 0.0
    seen: int = 0
    skips: int = 0

    def verdict(self, loss: float, norm: float, where: str = "") -> str | None:
        """None: apply the update. Otherwise why it is skipped. UserError after `most_skips` in a row.

        `where` the loss is no number, to be told.
        """
        reason = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = f"loss {loss}{where}, gradient norm {norm}"
        elif self.seen >= self.warmup and norm > self.spike * self.mean_norm:
            reason = f"gradient norm {norm:.3g} is over {self.spike:g} x its mean {self.mean_norm:.3g}"
        if reason is None:
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
        self._sums: dict[str, Tensor] = {"loss": torch.zeros((), dtype=torch.float64, device=device)}

    def add(self, loss: Loss) -> None:
        for name, value in {"loss": loss.total, **loss.metrics}.items():
            wide = value.detach().double()
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide

    def over_ranks(self, norm: Tensor) -> tuple[dict[str, Tensor], float, list[int]]:
        """The sums over all ranks, on the CPU; the norm, to the bit the same on all; ranks whose loss is no number."""
        wrong = torch.zeros(ranks.size(), dtype=torch.float64, device=self._device)
        wrong[ranks.rank()] = (~self._sums["loss"].isfinite()).double()
        parts = [norm.to(self._device, torch.float64) / ranks.size(), wrong, *self._sums.values()]
        flat = ranks.sum_in_place(torch.cat([part.flatten() for part in parts])).cpu()
        found, bad, *sums = flat.split([part.numel() for part in parts])
        shaped = {name: part.view(old.shape) for (name, old), part in zip(self._sums.items(), sums, strict=True)}
        return shaped, float(found), bad.nonzero().flatten().tolist()


def fit(
    engine: Engine,
    schedule: Schedule,
    source: Callable[[int], list[Batch]],
    steps: range,
    max_grad_norm: float,
    guard: Guard,
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
            sums = _Sums(engine.device)
            for number, batch in enumerate(batches, 1):
                sums.add(engine.accumulate(batch, count, last=number == len(batches)))
            found, norm, wrong = sums.over_ranks(engine.clip(max_grad_norm))
            metrics = {
                name: float(value) / max(count, 1) if value.ndim == 0 else value.tolist()
                for name, value in found.items()
            }
            where = f" (of rank {', '.join(map(str, wrong))})" if wrong and ranks.size() > 1 else ""
            skipped = guard.verdict(float(found["loss"]) / max(count, 1), norm, where)
            engine.update(apply=skipped is None)
            metrics |= {"lr": rate, "grad_norm": norm, "tokens": tokens}
            yield step, metrics | ({"skipped": skipped} if skipped else {})


def measure(engine: Engine, batches: Iterable[Batch]) -> float:
    """The objective's mean over held-out batches of all ranks, without compiled kernels of its own for this pass.

    Every rank must give as many batches as the others.
    """
    engine.root.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=engine.device), 0
    with torch.compiler.set_stance("force_eager"):
        for batch in batches:
            total += engine.evaluate(batch.to(str(engine.device))).total
            count += batch.count
    engine.root.train()
    return float(ranks.sum_in_place(total)) / max(ranks.sum_of(count)[0], 1)
