"""Training in one process, and what all engines have in common."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mengya import ranks
from mengya.batch import Batch, Loss
from mengya.model.language_model import LanguageModel
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim, make_optimizers


class Root(nn.Module):
    """A model whose forward pass is the objective, so that an engine's hooks see everything that it reads."""

    def __init__(self, model: LanguageModel, objective: Objective):
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: Batch) -> Loss:
        return self._objective(self.model, batch)


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all of them together, over all ranks if they are divided."""
    if all(g.device.type == "cpu" and not isinstance(g, DTensor) for g in gradients):
        # A tensor's norm takes one thread there and loses digits; those of its rows take all, and no sum is divided.
        gradients = [torch.linalg.vector_norm(g, dim=-1) for g in gradients]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Engine:
    def __init__(self, model: LanguageModel, objective: Objective, optim: Optim):
        self.model = model
        self.root = Root(model, objective)
        self.device = model.device
        self._held = model.trained_names()
        self._prepare()
        self._peak = optim.lr
        self.optimizers = make_optimizers(model, optim)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.run: Any = self.root

    def _prepare(self) -> None:
        """Change the model before its parameters are handed to the optimizer."""

    def set_rate(self, factor: float) -> float:
        """Set the learning rates to a share of their peaks; returns the rate of weights that are not in a group."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        return self._peak * factor

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        """Forward and backward pass of a micro-batch: add the gradient of its loss / `count` to that of the step.

        `count` is the whole step's, over all ranks; `last`: no micro-batch follows in this step.
        """
        loss: Loss = self.run(batch)
        # Engines average over the ranks; what is wanted is the sum.
        (loss.total * ranks.size() / max(count, 1)).backward()
        return Loss(loss.total.detach(), loss.metrics)

    @torch.no_grad()
    def clip(self, maximum: float) -> Tensor:
        """Scale the gradient to a norm of at most `maximum`; returns the norm before, that of the whole model."""
        parameters = list(self.trained.values())
        norm = _total_norm([p.grad for p in parameters if p.grad is not None])
        if float(norm) > maximum:  # false for NaN, which would hide where it comes from
            torch.nn.utils.clip_grads_with_norm_(parameters, maximum, norm)
        return norm

    def not_finite(self) -> list[str]:
        """The weights whose gradient has NaN or infinite numbers, as far as each rank can see all of it."""
        found = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        return [name for name, gradient in found.items() if not gradient.isfinite().all()]

    def untouched(self) -> list[str]:
        """The weights that no gradient has reached in any step so far: what the optimizer keeps of it is zero."""
        moments = self.tensors()
        parts = [
            moments.get(f"optimizer.exp_avg_sq.{name}", moments.get(f"optimizer.momentum_buffer.{name}"))
            for name in self.trained
        ]
        own = [part.to_local() if isinstance(part, DTensor) else part for part in parts]
        touched = ranks.sum_of(*(int(part is not None and bool(part.any())) for part in own))
        return [name for name, seen in zip(self.trained, touched, strict=True) if not seen]

    def update(self, apply: bool) -> None:
        """Take the optimizer's step, or drop the gradient."""
        for optimizer in self.optimizers:
            if apply:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Loss:
        """Forward pass only; all ranks together, as with `accumulate`."""
        return self.run(batch)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `model.<name>`, `optimizer.<moment>.<name>`; the live tensors."""
        state = self.root.state_dict()  # of the root, where FSDP's hooks are; its prefix happens to be the checkpoint's
        found = {f"model.{name}": state[f"model.{name}"] for name in self._held}
        states = {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}
        for name, parameter in self.trained.items():
            for moment, value in states[parameter].items():
                found[f"optimizer.{moment}.{name}"] = value
        return found

    def load(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        """Take over a checkpoint: `read` fills tensors of the names and shapes that `tensors` gives."""
        read(self.tensors())
