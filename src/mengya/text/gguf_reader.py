"""The tokenizer of a GGUF file as llama.cpp computes it: a second reader, by which an export is proven.

After src/llama-vocab.cpp of llama.cpp: special tokens are cut out first, the longest before others; byte-level BPE
("gpt2") then splits text by the expressions of its `tokenizer.ggml.pre`, SentencePiece ("llama") by scores alone.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import Regex, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""
SPACE = "▁"


class Pre(NamedTuple):
    """What a `tokenizer.ggml.pre` makes llama.cpp do."""

    expressions: tuple[str, ...]
    """Each cuts the pieces that those before it left, into what it matches and what lies between."""
    whole_words: bool = False
    """A piece that is in the vocabulary is not merged together."""


_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRES = {
    "qwen2": Pre((_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,)),
    "llama-bpe": Pre((_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL,), whole_words=True),
    "gpt-2": Pre((_GPT2,)),
    "qwen35": Pre(
        (
            _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "chatglm-bpe": Pre((_ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL,)),
    "starcoder": Pre((r"\p{N}", _GPT2)),
    "deepseek-v3": Pre(
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "seed-coder": Pre(
        (
            _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "ufakzeka": Pre((r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,)),
    "gpt-4o": Pre((_CASED % (_ENDINGS + "?", _ENDINGS + "?") + r"|\p{N}{1,3}|" + _SIGNS,)),
    "tekken": Pre((_CASED % ("", "") + r"|\p{N}|" + _SIGNS,)),
}
"""By `tokenizer.ggml.pre`; of equal ones the first is written."""


@lru_cache(maxsize=1)
def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(number if number in printable else next(others)) for number in range(256)]


class Reader:
    """The tokenizer that the `values` of a GGUF file describe."""

    def __init__(self, values: Mapping[str, Any]):
        tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
        self._ids = {token: number for number, token in enumerate(tokens)}
        special = [(len(t.encode()), t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (2, 3, 4)]
        self._special = [(text, kind) for _, text, kind in sorted(special, key=lambda entry: -entry[0])]
        self._words: dict[str, list[int]] = {}
        if values["tokenizer.ggml.model"] == "gpt2":
            self._pre = PRES[values["tokenizer.ggml.pre"]]
            pairs = (merge.split(" ", 1) for merge in values["tokenizer.ggml.merges"])
            self._ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
            self._encode_piece: Callable[[str, bool], list[int]] = self._byte_level
        else:
            self._pre = Pre(())
            self._scores = values["tokenizer.ggml.scores"]
            self._prefix = values["tokenizer.ggml.add_space_prefix"]
            self._encode_piece = self._sentence_piece

    def encode(self, text: str, special: bool = False) -> list[int]:
        """`special`: control tokens in the text stay control tokens."""
        pieces: list[str | int] = [text] if text else []
        for token, kind in self._special:
            if special or kind == USER_DEFINED:
                pieces = [part for piece in pieces for part in self._cut(piece, token)]
        out: list[int] = []
        after_special = True
        for piece in pieces:
            out += [piece] if isinstance(piece, int) else self._encode_piece(piece, after_special)
            after_special = isinstance(piece, int)
        return out

    def _cut(self, piece: str | int, token: str) -> Iterator[str | int]:
        if isinstance(piece, int) or token not in piece:
            yield piece
            return
        first, *others = piece.split(token)
        yield from [first] if first else []
        for other in others:
            yield self._ids[token]
            yield from [other] if other else []

    # ---- byte-level BPE ----------------------------------------------------------------------------------------------

    @cached_property
    def _splitter(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in self._pre.expressions]
        )

    def pieces(self, text: str) -> list[str]:
        """What text is cut into before anything is merged, as the vocabulary spells it; SentencePiece cuts nothing."""
        if not self._pre.expressions:
            return [text]
        letters = byte_letters()
        found = (piece for piece, _ in self._splitter.pre_tokenize_str(text))
        return ["".join(letters[byte] for byte in piece.encode()) for piece in found]

    def _byte_level(self, text: str, after_special: bool) -> list[int]:
        out: list[int] = []
        for word in self.pieces(text):
            if word not in self._words:
                self._words[word] = self._merged(word)
            out += self._words[word]
        return out

    def _merged(self, word: str) -> list[int]:
        if self._pre.whole_words and word in self._ids:
            return [self._ids[word]]
        parts = list(word)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        known = (part if part in self._ids else [*part] for part in parts)
        return [self._ids[t] for part in known for t in ([part] if isinstance(part, str) else part) if t in self._ids]

    # ---- SentencePiece -----------------------------------------------------------------------------------------------

    def _sentence_piece(self, text: str, after_special: bool) -> list[int]:
        text = (" " if self._prefix and after_special else "") + text
        parts: list[str] = list(text.replace(" ", SPACE))
        after = [*range(1, len(parts)), -1]
        before = [*range(-1, len(parts) - 1)]
        queue: list[tuple[float, int, int, str]] = []
        made: dict[str, tuple[str, str]] = {}

        def offer(left: int, right: int) -> None:
            joined = parts[left] + parts[right] if min(left, right) >= 0 else ""
            if joined in self._ids:
                heapq.heappush(queue, (-self._scores[self._ids[joined]], left, right, joined))
                made[joined] = (parts[left], parts[right])

        for left in range(len(parts) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            if not (parts[left] and parts[right] and len(parts[left]) + len(parts[right]) == len(joined)):
                continue
            parts[left], parts[right] = joined, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [number for part in parts if part for number in self._resolved(part, made)]

    def _resolved(self, part: str, made: Mapping[str, tuple[str, str]]) -> list[int]:
        if part in self._ids:
            return [self._ids[part]]
        if part in made:
            return [number for half in made[part] for number in self._resolved(half, made)]
        return [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]
