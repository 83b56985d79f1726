"""A share of successes with its 95 % Wilson score interval."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total`; `value` = correct / total; `low`, `high` bound the true share with 95 % confidence."""

    correct: int
    total: int
    value: float
    low: float
    high: float


def accuracy(flags: Iterable[bool]) -> Accuracy:
    """Share of true flags, which must not be empty. Interval: E. B. Wilson, JASA 22 (1927), 209-212.

    Unlike the textbook p +- 1.96 s it stays within [0, 1] and has a width even at 0 % and 100 %.
    """
    outcomes = [bool(flag) for flag in flags]
    assert outcomes, "the accuracy of nothing is undefined; leave the metric out instead"
    correct, total = sum(outcomes), len(outcomes)
    share, z2 = correct / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    low = 0.0 if correct == 0 else centre - half  # exactly 0 and 1 at the ends, not 1e-17 beside them
    high = 1.0 if correct == total else centre + half
    return Accuracy(correct, total, share, low, high)
