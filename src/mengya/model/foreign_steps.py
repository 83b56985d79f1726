"""Generation with a model of the transformers library: its own cache, as a batch that sequences join and leave."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mengya.model.language_model import Span

if TYPE_CHECKING:
    from mengya.model.foreign import Foreign


class ForeignSteps:
    """Answers that are being written are the rows of one cache; each prompt that is being read has a cache by itself.

    A model whose state is not keys and values has a cache for each sequence all the time."""

    block, shares = 16, False

    def __init__(self, model: "Foreign", tokens: int, new_cache: Callable[[], Any]):
        self._model, self._new_cache = model, new_cache
        self.blocks = -(-tokens // self.block)
        """For counting alone: the library keeps keys and values as it likes."""
        self._alone: dict[int, _Rows] = {}
        self._together: _Rows | None = None
        self._order: list[int] = []
        """The sequence of each row of the cache that is shared."""

    def forget(self, sequence: int) -> None:
        self._alone.pop(sequence, None)
        if sequence not in self._order:
            return
        kept = [row for row, other in enumerate(self._order) if other != sequence]
        self._order = [self._order[row] for row in kept]
        if self._together is not None:
            self._together = self._together.only(kept) if kept else None

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        for span in spans:
            if len(span.tokens) == 1 and span.start and span.sequence in self._alone:
                self._join(span.sequence)
        found: dict[int, Tensor] = {}
        if self._together is not None:
            next_of = {span.sequence: span.tokens[0] for span in spans}
            states = self._states(self._together, [[next_of[sequence]] for sequence in self._order])
            found = dict(zip(self._order, states, strict=True))
        for span in spans:
            if span.sequence not in found:
                rows = self._alone.get(span.sequence)
                if rows is None:
                    rows = self._alone[span.sequence] = _Rows(self._new_cache(), self._model.device)
                found[span.sequence] = self._states(rows, [span.tokens])[0]
        wanted = [found[s.sequence][len(s.tokens) - s.outputs :] for s in spans]
        return self._model.logits(torch.cat(wanted))

    def _states(self, rows: "_Rows", tokens: Sequence[Sequence[int]]) -> Tensor:
        """(B, T, C) after the next tokens of each row."""
        input_ids = torch.tensor(tokens, device=self._model.device)
        mask, places = rows.open(input_ids.shape[1])
        return self._model.following(input_ids, rows.past, mask, places)

    def _join(self, sequence: int) -> None:
        rows = self._alone[sequence]
        if not rows.joins:
            return
        del self._alone[sequence]
        self._together = rows if self._together is None else self._together.with_row(rows)
        self._order.append(sequence)


class _Rows:
    """The library's cache. Rows end together; the columns before a shorter one are padding, which is masked: windows of
    attention count columns, padding included."""

    def __init__(self, past: Any, device: torch.device):
        self.past = past
        self._used = torch.zeros(1, 0, dtype=torch.bool, device=device)

    @property
    def joins(self) -> bool:
        """Whether it is nothing but keys and values."""
        return all(isinstance(getattr(layer, "keys", None), Tensor) for layer in self.past.layers)

    def open(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Take in so many columns: the mask (B, columns) and the places (B, tokens) of the new tokens."""
        places = self._used.sum(1, keepdim=True) + torch.arange(tokens, device=self._used.device)
        self._used = pad(self._used, (0, tokens), value=True)
        return self._used.long(), places

    def with_row(self, other: "_Rows") -> "_Rows":
        """These rows and those of `other`, in this cache."""
        columns = max(self._used.shape[1], other._used.shape[1])
        for mine, theirs in zip(self.past.layers, other.past.layers, strict=True):
            for name in ("keys", "values"):  # (B, heads, columns, D)
                stores = getattr(mine, name), getattr(theirs, name)
                wide = [pad(store, (0, 0, columns - store.shape[2], 0)) for store in stores]
                setattr(mine, name, torch.cat(wide))
        self._used = torch.cat([pad(used, (columns - used.shape[1], 0)) for used in (self._used, other._used)])
        return self

    def only(self, rows: list[int]) -> "_Rows":
        """Some of the rows, without the columns that none of them uses."""
        self._used = self._used[rows]
        first = int(self._used.any(0).long().argmax())
        self._used = self._used[:, first:]
        for layer in self.past.layers:
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name)[rows][:, :, first:])
        return self
