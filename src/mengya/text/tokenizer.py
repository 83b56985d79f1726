"""Byte-level BPE: training, encoding of text and of conversations, and the Hugging Face files."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mengya.errors import UserError
from mengya.text.template import CHAT_TEMPLATE, CONTROL_TOKENS, END_OF_TEXT, IM_END, IM_START, ROLES, defuse

# Qwen2's pre-tokenizer (one digit a token, words with their leading space), because transformers, vLLM and llama.cpp
# (`tokenizer.ggml.pre = qwen2`) all know it.
PRE_TOKENIZER_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """A trained tokenizer with its chat template. Control tokens come only from structure, never from text."""

    def __init__(self, backend: tokenizers.Tokenizer):
        missing = [token for token in CONTROL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise UserError(f"the tokenizer lacks {', '.join(missing)}; use one trained by the tokenizer stage")
        backend.encode_special_tokens = True  # "<|im_end|>" typed by a user is split like any other text
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        ids = {token: number for token in CONTROL_TOKENS if (number := backend.token_to_id(token)) is not None}
        self.eos_id, self.im_start_id, self.im_end_id = ids[END_OF_TEXT], ids[IM_START], ids[IM_END]

    def __reduce__(self):
        return _unpickled, (self._backend.to_str(),)

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end an assistant's turn."""
        return {self.im_end_id, self.eos_id}

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def encode_chat(self, messages: Sequence[dict], add_generation_prompt: bool = False) -> tuple[list[int], list[int]]:
        """Token ids of a conversation and, for each, 1 if it is supervised (assistant content and its end of turn).

        Equal to `apply_chat_template` of the saved tokenizer on the same messages.
        """
        ids: list[int] = []
        mask: list[int] = []
        newline = self.encode("\n")
        for message in messages:
            role = message["role"]
            if role not in ROLES:
                raise UserError(f"unknown role {role!r}; use one of {', '.join(ROLES)}")
            header = [self.im_start_id, *self.encode(role), *newline]
            body = [*self.encode(defuse(message["content"])), self.im_end_id]
            ids += header + body + newline
            mask += [0] * len(header) + [int(role == "assistant")] * len(body) + [0] * len(newline)
        if add_generation_prompt:
            header = [self.im_start_id, *self.encode("assistant"), *newline]
            ids += header
            mask += [0] * len(header)
        return ids, mask

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (chat template inside)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # encode_special_tokens is a switch of this process; the file stays what every engine expects.
        self._backend.save(str(directory / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 1_000_000_000,
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        text = json.dumps(config, ensure_ascii=False, indent=2)
        (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        return Tokenizer(read_backend(directory))


def _unpickled(content: str) -> Tokenizer:
    """The library's own pickles forget `encode_special_tokens`."""
    return Tokenizer(tokenizers.Tokenizer.from_str(content))


def read_backend(directory: Path) -> tokenizers.Tokenizer:
    """Any tokenizer.json, with or without our control tokens. UserError if there is none, or it cannot be read."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"no tokenizer.json in {directory}; give a directory that the tokenizer stage wrote")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no readable tokenizer ({error}); train or copy it again") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_token_length: int) -> Tokenizer:
    """Train byte-level BPE. `vocab_size` counts the 256 bytes and the control tokens; `max_token_length` is in bytes.

    Raises UserError when the text is too small for so many merges.
    """
    smallest = 256 + len(CONTROL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size} is below the {smallest} bytes and control tokens; try 6400")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENIZER_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=max_token_length,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is more than this text allows: it gives {reached} entries; "
            f"set tokenizer.vocab_size={reached} or add text"
        )
    return Tokenizer(backend)
