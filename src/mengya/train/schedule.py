"""Learning-rate schedules, as factors of the peak."""

import math
from collections.abc import Callable

from mengya.train.optimizer import Optim

Schedule = Callable[[int], float]


def make_schedule(optim: Optim, steps: int) -> Schedule:
    """`schedule(step)` for steps 0 .. steps - 1, in units of the peak learning rate.

    `warmup` and `decay` are shares of all steps, `min_lr` the last value. `cosine`: linear warm-up, then half a cosine
    (Loshchilov and Hutter 2017, arXiv:1608.03983). `wsd`: warm-up, constant, then linear decay over the last `decay`
    share (warmup-stable-decay, Hu et al. 2024, arXiv:2404.06395).
    """
    rise = max(1, round(optim.warmup * steps))
    fall = max(1, round(optim.decay * steps))
    floor = optim.min_lr

    def schedule(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if optim.schedule == "wsd":
            return 1 - (1 - floor) * max(0.0, (step + 1 - (steps - fall)) / fall)
        progress = (step + 1 - rise) / max(1, steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return schedule
