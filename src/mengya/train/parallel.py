"""Engines: one interface for training in one process, with PyTorch's DDP and with FSDP2; train/zero.py adds DeepSpeed.

An engine is applied to a plain model from outside. Its choice changes neither the loop, nor what a checkpoint holds:
fp32 weights and AdamW's moments under the model's own names.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mengya import ranks
from mengya.batch import Batch
from mengya.model.native.transformer import CausalLM
from mengya.train.objectives import Loss, Objective

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
TIED = "model.lm_head.weight"
"""What a checkpoint leaves out if the head shares the embedding's weights."""


class Root(nn.Module):
    """A model whose forward pass is the objective, so that an engine's hooks meet everything that it reads."""

    def __init__(self, model: CausalLM, objective: Objective):
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
    """Training in one process, and what the others have in common."""

    def __init__(self, model: CausalLM, objective: Objective, make_optimizer: MakeOptimizer):
        self.model = model
        self.root = Root(model, objective)
        self.device = next(model.parameters()).device
        self._prepare()
        self.optimizer = make_optimizer(model)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            self.optimizer.state[parameter] = no_moments(parameter)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.run: Any = self.root

    def _prepare(self) -> None:
        """Change the model before its parameters are handed to the optimizer."""

    def set_rate(self, factor: float) -> float:
        """Set the learning rate to a share of its peak; returns it."""
        for group, peak in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = peak * factor
        return self.rates[0] * factor

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        """Forward and backward pass of a micro-batch: add the gradient of its loss / `count` to that of the step.

        `count` is the whole step's, over all ranks; `last`: no micro-batch follows in this step.
        """
        loss: Loss = self.run(batch)
        # Engines average over the ranks; what is wanted is the sum.
        (loss.total * ranks.size() / max(count, 1)).backward()
        return Loss(loss.total.detach(), loss.metrics)

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """Scale the gradient to a norm of at most `most`; returns the norm before, that of the whole model."""
        parameters = list(self.trained.values())
        norm = _total_norm([p.grad for p in parameters if p.grad is not None])
        if not float(norm) <= most:
            torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def update(self, apply: bool) -> None:
        """Take the optimizer's step, or drop the gradient."""
        if apply:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Loss:
        """Forward pass only; all ranks together, as with `accumulate`."""
        return self.run(batch)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `model.<name>`, `optimizer.<moment>.<name>`; the live tensors."""
        # Root's prefix happens to be the checkpoint's.
        found = {n: t for n, t in self.root.state_dict().items() if n != TIED or not self._tied}
        for name, parameter in self.trained.items():
            for moment, value in self.optimizer.state[parameter].items():
                found[f"optimizer.{moment}.{name}"] = value
        return found

    def places(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint is to be read into; hand them to `restore` afterwards."""
        return self.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what was read into `places()`; live tensors are already there."""

    @property
    def _tied(self) -> bool:
        return self.model.config.tie_word_embeddings


def no_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before the first step, made now so that a checkpoint has a place to be read into."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": step, **moments}


class Replicated(Engine):
    """DistributedDataParallel: every rank has the whole model, gradients are averaged (Li et al. 2020, 2006.15704)."""

    def __init__(self, model: CausalLM, objective: Objective, make_optimizer: MakeOptimizer):
        super().__init__(model, objective, make_optimizer)
        self.run = DistributedDataParallel(self.root, gradient_as_bucket_view=True)

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        with contextlib.nullcontext() if last else self.run.no_sync():
            return super().accumulate(batch, count, last)


class Sharded(Engine):
    """FSDP2: weights, gradients and moments are divided among the ranks (ZeRO, Rajbhandari et al. 2019, 1910.02054).

    Gradients are reduced after every micro-batch, in float32: keeping them whole until the last one would cost the
    memory that sharding saves. Buffers stay whole on every rank.
    """

    def __init__(
        self,
        model: CausalLM,
        objective: Objective,
        make_optimizer: MakeOptimizer,
        device: torch.device,
        reshard_after_forward: bool,
        cpu_offload: bool,
    ):
        """`model` may lie on the CPU: its parts move to `device` one by one, and only a share of them stays."""
        self._reshard, self._offload, self._device = reshard_after_forward, cpu_offload, device
        super().__init__(model, objective, make_optimizer)

    def _prepare(self) -> None:
        self.device = self._device
        half = self.model.model.compute_dtype == torch.bfloat16
        reduced = torch.float32 if half else None
        policy: dict[str, Any] = {
            "mesh": init_device_mesh(self._device.type, (ranks.size(),)),
            # Rotations come in float32 and stay so.
            "mp_policy": MixedPrecisionPolicy(torch.bfloat16 if half else None, reduced, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(self._device.type == "cuda") if self._offload else OffloadPolicy(),
        }
        for layer in self.model.model.layers:
            fully_shard(layer, reshard_after_forward=self._reshard, **policy)
        fully_shard(self.root, reshard_after_forward=False, **policy)  # its backward pass follows at once

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        assert isinstance(self.root, FSDPModule)
        self.root.set_is_last_backward(last)
        return super().accumulate(batch, count, last)
