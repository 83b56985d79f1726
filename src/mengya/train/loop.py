"""The one training loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mengya.data.batch import Batch
from mengya.errors import UserError
from mengya.model.transformer import CausalLM
from mengya.train.objectives import Objective
from mengya.train.schedule import Schedule


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

    def verdict(self, loss: float, norm: float) -> str | None:
        """None: apply the update. Otherwise why it is skipped. UserError after `most_skips` in a row."""
        reason = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            reason = f"loss {loss}, gradient norm {norm}"
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


@torch.no_grad()
def _clip(parameters: list[Tensor], most: float) -> float:
    """Scale gradients to a total norm of at most `most`; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)


def fit(
    model: CausalLM,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    source: Callable[[int], list[Batch]],
    steps: range,
    max_grad_norm: float,
    guard: Guard,
) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Train over `steps`; after each yields its number and metrics (loss, lr, grad_norm, tokens, the objective's).

    A step whose update was not applied also has `skipped`, the reason.

    The count of all micro-batches is known before the first backward pass, and every total is divided by it, so that
    unequal masks and micro-batches weigh what they should.
    """
    device = next(model.parameters()).device
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for step in steps:
        factor = schedule(step)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        batches = [batch.to(str(device)) for batch in source(step)]
        count = sum(batch.count for batch in batches)
        sums: dict[str, float] = {"loss": 0.0}
        for batch in batches:
            loss = objective(model, batch)
            (loss.total / max(count, 1)).backward()
            for name, value in {"loss": loss.total.detach(), **loss.metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        metrics: dict[str, float | str] = {name: value / max(count, 1) for name, value in sums.items()}
        norm = _clip(parameters, max_grad_norm)
        skipped = guard.verdict(sums["loss"] / max(count, 1), norm)
        if skipped is None:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        metrics |= {"lr": peaks[0] * factor, "grad_norm": norm, "tokens": sum(b.input_ids.numel() for b in batches)}
        yield step, metrics | ({"skipped": skipped} if skipped else {})


@torch.no_grad()
def measure(model: CausalLM, objective: Objective, batches: Iterator[Batch]) -> float:
    """The objective's mean over held-out batches, without compiled kernels of its own for this pass."""
    device = next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    with torch.compiler.set_stance("force_eager"):
        for batch in batches:
            total += float(objective(model, batch.to(str(device))).total)
            count += batch.count
    model.train()
    return total / max(count, 1)
