"""The vocabulary and chat template in a GGUF file, as llama.cpp reads them."""

import ctypes
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from mengya.errors import UserError
from mengya.text.tokenizer import Tokenizer, spaced

_TEMPLATES = {"chat_template.jinja": None, "additional_chat_templates/tool_use.jinja": b"tool_use"}
"""Where `own_template` looks -> the name in the file."""


class Structure(NamedTuple):
    """Tokens of a text, and where each stands in it."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class GgufTokenizer(Tokenizer):
    """Not of files, but of a model that llama.cpp has loaded, and only as long as that is.

    Plain text never becomes a control token: `encode` parses none, and `defuse` breaks them in what stands in a
    template."""

    def __init__(self, library: Any, model: Any, origin: str):
        self._library = library
        self._vocab = library.llama_model_get_vocab(model)
        self.origin = origin
        self.vocab_size: int = library.llama_vocab_n_tokens(self._vocab)
        found = {file: library.llama_model_chat_template(model, name) for file, name in _TEMPLATES.items()}
        self.files = {file: template for file, template in found.items() if template}
        special = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes = (library.llama_vocab_get_attr(self._vocab, token) for token in range(self.vocab_size))
        self.control_ids = {self._name(t): t for t, attribute in enumerate(attributes) if attribute & special}
        longest_first = sorted(filter(None, self.control_ids), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.bos_id: int = library.llama_vocab_bos(self._vocab)
        named = {"bos_token": self.bos_id, "eos_token": library.llama_vocab_eos(self._vocab)}
        self.special_tokens = {name: self._name(token) for name, token in named.items() if token >= 0}
        self.begins: bool = self.bos_id >= 0 and library.llama_vocab_get_add_bos(self._vocab)
        """Whether the model learnt that `bos_id` begins every text."""

    def has(self, token: str) -> bool:
        return token in self.control_ids

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer, by the file and by what llama.cpp knows of their names."""
        ends = self._library.llama_vocab_is_eog
        return frozenset(token for token in range(self.vocab_size) if ends(self._vocab, token))

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(map(self._piece, range(self.vocab_size)))

    @cached_property
    def is_byte_level(self) -> bool:
        kinds = (self._library.LLAMA_VOCAB_TYPE_BPE, self._library.LLAMA_VOCAB_TYPE_RWKV)
        return self._library.llama_vocab_type(self._vocab) in kinds

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokens(text, control=False) for text in texts]

    def encode_structure(self, text: str) -> Structure:
        ids = self._tokens(text, control=True)
        return Structure(ids, list(self._offsets(text, ids)))

    def decode(self, ids: Sequence[int]) -> str:
        array, size = (ctypes.c_int32 * len(ids))(*ids), 16 * len(ids) + 16
        while True:
            buffer = ctypes.create_string_buffer(size)
            used = self._library.llama_detokenize(self._vocab, array, len(ids), buffer, size, False, False)
            if used >= 0:
                return buffer.raw[:used].decode(errors="replace")
            size = -used

    def defuse(self, text: str) -> str:
        for _ in range(8):  # breaking one may let another appear
            broken = self._control.sub(lambda match: spaced(match[0]), text)
            if broken == text:
                return text
            text = broken
        raise UserError(f"{self.origin} makes a control token of plain text ({text[:40]!r}); use another model")

    def _tokens(self, text: str, control: bool) -> list[int]:
        data = text.encode(errors="replace")
        size = len(data) + 16
        while True:
            array = (ctypes.c_int32 * size)()
            used = self._library.llama_tokenize(self._vocab, data, len(data), array, size, False, control)
            if used >= 0:
                return array[:used]
            size = -used

    def _offsets(self, text: str, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Characters that each token stands for; about, where a tokenizer adds or drops spaces."""
        data = text.encode(errors="replace")
        begun = list(accumulate((byte & 0xC0 != 0x80 for byte in data), initial=0))  # characters before each byte
        ends = list(accumulate((len(self.token_bytes[token]) for token in ids), initial=0))
        added = ends[-1] - len(data)  # such as the space that SentencePiece puts before a text
        places = [begun[min(max(end - added if number else 0, 0), len(data))] for number, end in enumerate(ends)]
        return pairwise(places)

    def _name(self, token: int) -> str:
        return (self._library.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            used = self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if used >= 0:
                return buffer.raw[:used]
            size = -used
