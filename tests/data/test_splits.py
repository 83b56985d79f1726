"""Splits: a hash that depends on the content alone."""

from mengya.data.splits import content_hash, is_heldout


def test_the_hash_ignores_white_space_only() -> None:
    assert content_hash(" a\n\nb　c") == content_hash("a b c\t") != content_hash("ab c")
    assert len(content_hash("")) == 16 and content_hash("A") != content_hash("a")
    assert content_hash("好").hex() == "d7fc1f822b8676d01757058a2d99b113"  # stable across versions: splits depend on it


def test_the_split_is_stable_nested_and_of_the_right_size() -> None:
    hashes = [content_hash(f"document {i}") for i in range(20_000)]
    held = {fraction: {h for h in hashes if is_heldout(h, fraction)} for fraction in (0.0, 0.01, 0.1, 1.0)}
    assert not held[0.0] and len(held[1.0]) == len(set(hashes))
    assert held[0.01] < held[0.1]
    assert 150 < len(held[0.01]) < 250 and 1850 < len(held[0.1]) < 2150
