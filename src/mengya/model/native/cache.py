"""The key-value cache of incremental decoding."""

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.model.native.config import ModelConfig


class KVCache:
    """Preallocated keys and values of every layer, (layers, B, kv_heads, max_len, head_dim) each.

    Rows are left-aligned: row b holds its tokens in columns 0 .. lengths[b] - 1. A forward pass over T tokens writes
    columns lengths[b] .. lengths[b] + T - 1 and adds T to every length; after a right-padded prefill the caller sets
    the true lengths, and what stands behind them is overwritten later and never attended to.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        """Both of zeros, (layers, B, kv_heads, max_len, head_dim)."""
        self.keys, self.values = keys, values
        self.lengths = torch.zeros(keys.shape[1], dtype=torch.long, device=keys.device)
        self.max_len = keys.shape[3]
        self.longest = 0
        self.uniform = True
        """All rows are equally long, so that a step writes one slice and needs no mask."""

    @staticmethod
    def of(config: ModelConfig, rows: int, max_len: int, dtype: torch.dtype, device: str) -> "KVCache":
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, max_len, config.head_dim)
        return KVCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))

    def set_lengths(self, lengths: Tensor) -> None:
        """Declare the true lengths (B,), e.g. after a padded prefill or to forget the tail."""
        self.lengths = lengths.to(self.lengths, copy=True)
        values = lengths.tolist()
        self.longest, self.uniform = max(values), min(values) == max(values)

    def check_room(self, tokens: int) -> None:
        if self.longest + tokens > self.max_len:
            raise UserError(f"{self.longest} + {tokens} tokens exceed the cache of {self.max_len}; shorten the text")

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, T, kv_heads, D) and return all columns in use, (B, kv_heads, longest + T, D)."""
        tokens = keys.shape[1]
        end = self.longest + tokens
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self.uniform:
                store[:, :, self.longest : end] = new.transpose(1, 2)
            else:
                columns = self.lengths[:, None] + torch.arange(tokens, device=new.device)
                store[torch.arange(len(new), device=new.device)[:, None], :, columns] = new
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, tokens: int) -> Tensor | None:
        """(B, 1, T, longest + T) True where a new token may look; None if plain: everything, or causal from empty."""
        if self.uniform and (tokens == 1 or self.longest == 0):
            return None
        columns = torch.arange(self.longest + tokens, device=self.lengths.device)
        positions = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)
        return (columns <= positions[..., None])[:, None]

    def advance(self, tokens: int) -> None:
        self.lengths += tokens
        self.longest += tokens

    def drop_rows(self, ended: set[int]) -> list[int]:
        """Take out the `ended` rows; the old numbers of the others, in their new order.

        The last rows move into the holes: one row's used columns are copied for each hole, not the whole cache."""
        alive = [row for row in range(len(self.lengths)) if row not in ended]
        size = len(alive)
        holes = [row for row in range(size) if row in ended]
        movers = alive[size - len(holes) :]
        moved = dict(zip(holes, movers, strict=True))
        order = [moved.get(row, row) for row in range(size)]
        for store in (self.keys, self.values):
            store[:, holes, :, : self.longest] = store[:, movers, :, : self.longest]
        self.keys, self.values = self.keys[:, :size], self.values[:, :size]
        self.set_lengths(self.lengths[order])
        return order

    def with_room(self, max_len: int) -> "KVCache":
        """A cache of so many columns with the same content."""
        used = self.longest
        keys, values = (
            store.new_zeros((*store.shape[:3], max_len, store.shape[4])) for store in (self.keys, self.values)
        )
        found = KVCache(keys, values)
        for new, old in ((keys, self.keys), (values, self.values)):
            new[..., :used, :] = old[..., :used, :]
        found.set_lengths(self.lengths)
        return found
