"""FSDP2: weights, gradients and moments are divided among the ranks (ZeRO, Rajbhandari et al. 2019, 1910.02054)."""

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from mengya import ranks
from mengya.batch import Batch, Loss
from mengya.model.language_model import LanguageModel
from mengya.schema import config
from mengya.train.engines.single import Engine
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim


@config
class Fsdp:
    """How parallel = "fsdp" divides the model among the ranks."""

    reshard_after_forward: bool = True
    """Give the gathered weights of a layer back after its forward pass (ZeRO-3): less memory; false: ZeRO-2."""
    cpu_offload: bool = False
    """Keep weights, gradients and the optimizer in host memory."""


class Sharded(Engine):
    """Gradients are reduced after every micro-batch, in float32: keeping them whole until the last one would cost the
    memory that sharding saves. Buffers stay whole on every rank.
    """

    def __init__(self, model: LanguageModel, objective: Objective, optim: Optim, device: torch.device, settings: Fsdp):
        """`model` may lie on the CPU: its parts move to `device` one by one, and only a share of them stays."""
        self._settings, self._device = settings, device
        super().__init__(model, objective, optim)

    def _prepare(self) -> None:
        self.device = self._device
        half = self.model.compute_dtype == torch.bfloat16
        reduced = torch.float32 if half else None
        offload = CPUOffloadPolicy(self._device.type == "cuda") if self._settings.cpu_offload else OffloadPolicy()
        policy: dict[str, Any] = {
            "mesh": init_device_mesh(self._device.type, (ranks.size(),)),
            # Rotations come in float32 and stay so.
            "mp_policy": MixedPrecisionPolicy(torch.bfloat16 if half else None, reduced, cast_forward_inputs=False),
            "offload_policy": offload,
        }
        for block in self.model.blocks():
            fully_shard(block, reshard_after_forward=self._settings.reshard_after_forward, **policy)
        fully_shard(self.root, reshard_after_forward=False, **policy)  # its backward pass follows at once

    def not_finite(self) -> list[str]:
        return []  # each rank sees a part of every gradient

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        assert isinstance(self.root, FSDPModule)
        self.root.set_is_last_backward(last)
        return super().accumulate(batch, count, last)
