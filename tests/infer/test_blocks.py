"""The memory for keys and values: what is found again, what is given up, and that nothing is lost."""

import random

from mengya.infer.blocks import BlockPool


def sequence(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of a sequence that computes all of its tokens."""
    found = pool.find(tokens)
    blocks = found + pool.take(-(-len(tokens) // pool.block) - len(found))
    pool.know(tokens, blocks[: len(tokens) // pool.block], len(found))
    return blocks


def test_a_common_beginning_is_held_once():
    pool = BlockPool(10, 4)
    first = sequence(pool, list(range(10)))
    second = sequence(pool, [*range(8), 100, 101, 102])
    assert first[:2] == second[:2] and first[2] != second[2] and pool.free == 10 - 4
    third = sequence(pool, [*range(4), 50, *range(5, 8)])
    assert third[0] == first[0] and third[1] not in first + second
    for blocks in (first, second, third):
        pool.release(blocks)
    assert pool.free == 10


def test_what_nobody_holds_is_found_until_its_room_is_needed():
    pool = BlockPool(4, 2)
    pool.release(sequence(pool, [1, 2, 3, 4]))
    again = pool.find([1, 2, 3, 4, 5])
    assert len(again) == 2 and pool.free == 2
    pool.release(again)
    held = pool.take(3)  # the two that are empty, and the end of what is known
    rest = pool.find([1, 2, 3, 4, 5])
    assert len(rest) == 1
    pool.release(rest)
    pool.release([*held, *pool.take(1)])
    assert pool.free == 4 and pool.find([1, 2, 3, 4]) == []


def test_same_tokens_behind_another_beginning_are_not_found():
    pool = BlockPool(8, 2)
    sequence(pool, [1, 2, 3, 4])
    assert pool.find([5, 6, 3, 4]) == [] and pool.find([3, 4]) == []


def test_without_sharing_nothing_is_found():
    pool = BlockPool(8, 2, shares=False)
    pool.release(sequence(pool, [1, 2, 3, 4]))
    assert pool.find([1, 2, 3, 4]) == []


def test_the_same_content_computed_twice_at_once():
    pool = BlockPool(8, 2)
    tokens = [1, 2, 3, 4]
    one, two = pool.take(2), pool.take(2)
    assert pool.know(tokens, one, 0) == 2 and pool.know(tokens, two, 0) == 0
    pool.release(one)
    pool.release(two)
    assert pool.find(tokens) == one and pool.free == 6


def test_any_order_of_events_keeps_count():
    noise, pool = random.Random(0), BlockPool(30, 4)
    alive: list[tuple[list[int], list[int]]] = []
    content: dict[int, tuple] = {}  # what a block holds, as its last writer left it
    for _ in range(3000):
        if alive and (noise.random() < 0.5 or pool.free < 8):
            pool.release(alive.pop(noise.randrange(len(alive)))[1])
            continue
        tokens = [noise.randrange(2) for _ in range(noise.randrange(1, 30))]
        found = pool.find(tokens)
        for number, block in enumerate(found):
            assert content[block] == tuple(tokens[: 4 * number + 4])
        blocks = found + pool.take(-(-len(tokens) // 4) - len(found))
        for number in range(len(found), len(tokens) // 4):
            content[blocks[number]] = tuple(tokens[: 4 * number + 4])
        pool.know(tokens, blocks[: len(tokens) // 4], len(found))
        alive.append((tokens, blocks))
        assert pool.free == 30 - len({block for _, held in alive for block in held})
    for _, blocks in alive:
        pool.release(blocks)
    assert pool.free == 30
