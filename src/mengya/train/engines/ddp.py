"""DistributedDataParallel: every rank has the whole model, gradients are averaged (Li et al. 2020, 2006.15704)."""

import contextlib

from torch.nn.parallel import DistributedDataParallel

from mengya.batch import Batch, Loss
from mengya.model.language_model import LanguageModel
from mengya.train.engines.single import Engine
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim


class Replicated(Engine):
    def __init__(self, model: LanguageModel, objective: Objective, optim: Optim):
        super().__init__(model, objective, optim)
        self.run = DistributedDataParallel(self.root, gradient_as_bucket_view=True)

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        with contextlib.nullcontext() if last else self.run.no_sync():
            return super().accumulate(batch, count, last)
