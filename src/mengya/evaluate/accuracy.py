"""A share, such as a mean score, with its 95 % Wilson score interval, and the words that the report needs for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from mengya.tasks.task import Words

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total`; `value` = correct / total; `low`, `high` bound the true share with 95 % confidence.

    `correct` is the sum of the scores: the number of right answers where a grader decides between 0 and 1.
    """

    correct: float
    total: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """An accuracy of one model with its name in report.json, its heading in the report, and what counts as right."""

    key: str
    heading: Words
    note: Words
    accuracy: Accuracy


def accuracy(scores: Iterable[float]) -> Accuracy:
    """Mean of scores from 0 to 1 (a bool is one), at least one of them.

    For scores between 0 and 1 the interval is a little too wide: they vary less than decisions of the same mean.
    """
    each = list(scores)
    return share_of(sum(each), len(each))


def share_of(correct: float, total: float, each: int = 1) -> Accuracy:
    """`correct` of `total`, where `each` of the total stand for one decision. E. B. Wilson, JASA 22 (1927), 209-212.

    Unlike the textbook p +- 1.96 s the interval stays within [0, 1] and has a width even at 0 % and 100 %.
    """
    assert total, "the accuracy of nothing is undefined; leave the metric out instead"
    share, z2, decisions = correct / total, Z_95**2, total / each
    centre = (share + z2 / (2 * decisions)) / (1 + z2 / decisions)
    half = Z_95 / (1 + z2 / decisions) * sqrt(share * (1 - share) / decisions + z2 / (4 * decisions**2))
    low = 0.0 if correct == 0 else centre - half  # exactly 0 and 1 at the ends, despite rounding
    high = 1.0 if correct == total else centre + half
    return Accuracy(correct, total, share, low, high)
