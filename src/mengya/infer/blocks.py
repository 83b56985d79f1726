"""The memory for keys and values: blocks that sequences hold, and share where they begin alike.

As vLLM's paged memory (Kwon et al. 2023, arXiv:2309.06180): a sequence holds whole blocks of tokens. A full block stays
known by its tokens and by the block before it. A sequence that begins with the same tokens holds it, too; when nobody
holds it any more, it is kept until its room is needed, the longest unused first.
"""

from collections import OrderedDict
from collections.abc import Sequence

_ROOT = -1
"""Stands for the block before the first one."""
_Key = tuple[int, tuple[int, ...]]
"""The block before, and the tokens: no two contents have one key, whatever somebody writes into a prompt."""


class BlockPool:
    def __init__(self, blocks: int, block: int, shares: bool = True):
        """`block`: tokens of each. Without `shares`, nothing is found again."""
        self.blocks, self.block, self._shares = blocks, block, shares
        self._empty = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._found: dict[_Key, int] = {}
        self._key: dict[int, _Key] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        """Known blocks that nobody holds, the longest unused first."""

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._empty) + len(self._unused)

    def take(self, count: int) -> list[int]:
        """Blocks of unknown content; there must be so many free."""
        taken = []
        for _ in range(count):
            if not self._empty:
                self._forget(next(iter(self._unused)))
            taken.append(self._empty.pop())
            self._holders[taken[-1]] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give back what a sequence holds."""
        for block in reversed(blocks):  # a block is of use only while those before it are there: it goes first
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key:
                    self._unused[block] = None
                else:
                    self._empty.append(block)

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Blocks that hold the beginning of `tokens`, as much as is known; they are then held once more."""
        held: list[int] = []
        while (key := self._key_of(tokens, len(held), held[-1] if held else _ROOT)) is not None:
            block = self._found.get(key)
            if block is None:
                break
            held.append(block)
            self._holders[block] += 1
            self._unused.pop(block, None)
        return held

    def know(self, tokens: Sequence[int], blocks: Sequence[int], first: int) -> int:
        """`blocks` hold `tokens`, which are computed; those from number `first` on are new. How many are known now.

        A block whose content is known already is passed over, and with it those behind it."""
        if not self._shares:
            return first
        for number in range(first, len(blocks)):
            before = blocks[number - 1] if number else _ROOT
            key = self._key_of(tokens, number, before)
            if key is None or (number and before not in self._key) or key in self._found:
                return number
            self._found[key] = blocks[number]
            self._key[blocks[number]] = key
        return len(blocks)

    def _key_of(self, tokens: Sequence[int], number: int, before: int) -> _Key | None:
        content = tuple(tokens[number * self.block : (number + 1) * self.block])
        return (before, content) if self._shares and len(content) == self.block else None

    def _forget(self, block: int) -> None:
        """The content of the longest unused block. None that is known follows it: that became unused before it did."""
        del self._unused[block]
        del self._found[self._key.pop(block)]
        self._empty.append(block)
