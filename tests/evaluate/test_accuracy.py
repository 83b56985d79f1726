"""The Wilson interval against published values and at its ends."""

import pytest

from mengya.evaluate.accuracy import accuracy


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_has_the_published_values(correct: int, total: int, low: float, high: float) -> None:
    result = accuracy([True] * correct + [False] * (total - correct))
    assert (result.correct, result.total, result.value) == (correct, total, correct / total)
    assert result.low == pytest.approx(low, abs=6e-5)
    assert result.high == pytest.approx(high, abs=6e-5)


def test_interval_is_mirrored_and_within_bounds() -> None:
    for total in (1, 2, 7, 200):
        for correct in range(total + 1):
            result = accuracy([i < correct for i in range(total)])
            mirror = accuracy([i >= correct for i in range(total)])
            assert 0 <= result.low <= result.value <= result.high <= 1
            assert result.low == pytest.approx(1 - mirror.high)


def test_accuracy_of_nothing_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        accuracy([])


def test_scores_between_wrong_and_right_count_in_part() -> None:
    result = accuracy([0.5, True, 0.25, 0])
    assert (result.correct, result.total, result.value) == (1.75, 4, 0.4375)
    assert 0 < result.low < result.value < result.high < 1
    assert isinstance(accuracy([True, False]).correct, int)
