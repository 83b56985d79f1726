"""Byte pairs are counted inside documents only."""

from mengya.data.corpus import pair_counts


def test_no_pair_crosses_a_document() -> None:
    counts = pair_counts(["ab", "", "ba"])
    assert counts.sum() == 4
    assert (
        counts[256, ord("a")] == counts[256, ord("b")] == counts[ord("a"), ord("b")] == counts[ord("b"), ord("a")] == 1
    )
