"""Tokenizers: whatever a Hugging Face directory describes, and byte-level BPE of our own training."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mengya.errors import UserError
from mengya.text.token_bytes import is_byte_level, token_bytes

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
"""The control tokens of the tokenizers that we train or grow."""

# Qwen2's pre-tokenizer (one digit a token, words with their leading space), because transformers, vLLM and llama.cpp
# (`tokenizer.ggml.pre = qwen2`) all know it.
PRE_TOKENIZER_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CONFIG = "tokenizer_config.json"
_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "additional_chat_templates/*.jinja"),
)


def read_files(directory: Path) -> dict[str, bytes]:
    """The files in a model directory that belong to its tokenizer and chat template, by their path in it."""
    paths = sorted(path for pattern in _FILES for path in Path(directory).glob(pattern) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    for name, content in files.items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file. UserError if the file contains something else."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON ({error}); copy the tokenizer again") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} does not hold an object; copy the tokenizer again")
    return content


def as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


class Encoded(Protocol):
    """A text as tokens."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Where the characters of each token begin and end."""
        ...


class Tokenizer:
    """A tokenizer from the files of a directory. Plain text never becomes a control token (an added token that is
    marked as special)."""

    def __init__(self, files: Mapping[str, bytes], origin: str = "the tokenizer"):
        self.files = dict(files)
        """What `save` writes, byte for byte."""
        self.origin = origin
        """Where the files come from, for messages."""
        self._backend = _parse(_as_its_class_reads(self.files), origin)
        self._backend.no_truncation()  # a file may have switched them on
        self._backend.no_padding()
        self.special_tokens = _names(self.files)
        """Token by the name that templates know it by, such as eos_token."""
        _add_tokens(self._backend, self.files, self.special_tokens)
        self._backend.encode_special_tokens = True  # "<|im_end|>" typed by a user is split like any other text
        self.vocab_size: int = max(self._backend.get_vocab().values(), default=-1) + 1
        added = self._backend.get_added_tokens_decoder().items()
        self.control_ids: dict[str, int] = {token.content: number for number, token in added if token.special}
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # The token for unknown characters may come from any text, and controls nothing.
        model = json.loads(self.files["tokenizer.json"])["model"]
        unknown = {model.get("unk_id"), self.control_ids.get(model.get("unk_token"))}
        self._forbidden = set(self.control_ids.values()) - unknown

    def has(self, token: str) -> bool:
        """Whether the vocabulary has this entry, a control token or not."""
        return self._backend.token_to_id(token) is not None

    @cached_property
    def eos_id(self) -> int:
        """The token between documents, which also fills rows; UserError if the tokenizer has no such token.

        GPT-2, Qwen and we have `<|endoftext|>` for that, beside a token that ends a turn; others have one for both.
        """
        names = (self.special_tokens.get(f"{name}_token") for name in ("eos", "pad", "bos"))
        for token in (END_OF_TEXT, *names):
            if token in self.control_ids:
                return self.control_ids[token]
        raise UserError(
            f"{self.origin} has no token that could stand between documents; "
            "name an eos_token (or pad_token, bos_token) of its vocabulary in tokenizer_config.json"
        )

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """What each token stands for; it may be a part of a character."""
        return token_bytes(self._backend)

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether a text is the bytes of its tokens, one after the other, whatever they are."""
        return is_byte_level(self._backend)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        for number, text in enumerate(texts):
            if not self._forbidden.isdisjoint(rows[number]):
                rows[number] = self._backend.encode(self._broken(self._backend, text), add_special_tokens=False).ids
        return rows

    def encode_structure(self, text: str) -> Encoded:
        """An encoding in which control tokens in the text stay control tokens. Apply `defuse` to what users wrote."""
        return self._structure.encode(text, add_special_tokens=False)

    def pieces(self, text: str) -> list[str]:
        """What text is cut into before anything is merged, as the vocabulary spells it."""
        step = self._backend.pre_tokenizer
        return [text] if step is None else [piece for piece, _ in step.pre_tokenize_str(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def defuse(self, text: str) -> str:
        """`text` with each control token broken by a space, so that `encode_structure` finds none."""
        text = self._control.sub(lambda match: spaced(match[0]), text)
        # A normalizer may make a control token out of other characters, such as full-width ones.
        return self._broken(self._structure, text) if self._backend.normalizer else text

    def content(self) -> dict[str, Any]:
        """What tokenizer.json would hold with all that the other files add."""
        return json.loads(self._backend.to_str())

    def save(self, directory: Path) -> None:
        """Write the files that the tokenizer came from, its chat template among them."""
        write_files(self.files, directory)

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        return Tokenizer(read_files(directory), str(directory))

    def __reduce__(self) -> tuple:
        """For another process: the library's own pickles forget `encode_special_tokens`."""
        return Tokenizer, (self.files, self.origin)

    @cached_property
    def _structure(self) -> tokenizers.Tokenizer:
        """A copy without `encode_special_tokens`, which must not change while another thread encodes."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def _broken(self, backend: tokenizers.Tokenizer, text: str) -> str:
        """`text` with a space behind the first character of each control token that `backend` finds."""
        for _ in range(8):  # breaking one may let another appear
            encoding = backend.encode(text, add_special_tokens=False)
            found = [o[0] for i, o in zip(encoding.ids, encoding.offsets, strict=True) if i in self._forbidden]
            if not found:
                return text
            for begin in reversed(found):
                text = f"{text[: begin + 1]} {text[begin + 1 :]}"
        raise UserError(f"{self.origin} makes a control token of plain text ({text[:40]!r}); use another tokenizer")


def spaced(token: str) -> str:
    """A control token that is none any more: `<| x |>` of `<|x|>`, `< /s>` of `</s>`."""
    if token.startswith("<|"):
        return token.replace("<|", "<| ").replace("|>", " |>")
    return f"{token[0]} {token[1:]}" if token[1:] else " "


def _names(files: Mapping[str, bytes]) -> dict[str, str]:
    """{"eos_token": "</s>", ...}: in tokenizer_config.json, or in older directories in special_tokens_map.json."""
    named = json_object(files, CONFIG)
    if "added_tokens_decoder" not in named:
        named |= json_object(files, "special_tokens_map.json")
    return {name: text for name, token in named.items() if name.endswith("_token") and (text := _content(token))}


def _content(token: Any) -> str | None:
    """The text of a token that is written as a string or as {"content": ...}; None for anything else."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _add_tokens(backend: tokenizers.Tokenizer, files: Mapping[str, bytes], names: Mapping[str, str]) -> None:
    """Add the tokens that only the files beside tokenizer.json name, with the ids that transformers gives them."""
    config = json_object(files, CONFIG)
    decoder = config.get("added_tokens_decoder") or {}
    numbered = {int(number): AddedToken(**token) for number, token in decoder.items()}
    for text, number in json_object(files, "added_tokens.json").items():
        numbered[number] = AddedToken(text, special=text in names.values())
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    special = [*names.values(), *map(_content, listed.values() if isinstance(listed, dict) else listed)]
    tokens = [numbered[number] for number in sorted(numbered)] + [AddedToken(t, special=True) for t in special if t]
    present = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in present or (token.special and not present[token.content]):
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def _as_its_class_reads(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The files, with the tokenizer.json of Llama and its kin as transformers' class for them reads it.

    Converted long ago from SentencePiece, it has a normalizer for spaces, under which a control token behind text, such
    as "hi</s>", is text, too; the class has a pre-tokenizer instead.
    """
    config = json_object(files, CONFIG)
    if str(config.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return files
    content = json_object(files, "tokenizer.json")
    steps = (content.get("normalizer") or {}).get("normalizers") or []
    if [step["type"] for step in steps] != ["Prepend", "Replace"] or content.get("pre_tokenizer"):
        return files
    spaced = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if spaced else "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {**files, "tokenizer.json": as_json(content | {"normalizer": None, "pre_tokenizer": metaspace})}


def _parse(files: Mapping[str, bytes], origin: str) -> tokenizers.Tokenizer:
    """tokenizer.json of any kind. UserError if there is none, or it cannot be read."""
    if "tokenizer.json" not in files:
        others = [name for name in files if name.endswith((".model", ".tiktoken")) or name.startswith("vocab.")]
        if not others:
            below = Path(origin).glob("*/tokenizer.json")  # as that of a run has them
            newest = max(below, key=lambda path: path.stat().st_mtime, default=None)
            example = f", such as {newest.parent}" if newest else ""
            raise UserError(f"no tokenizer.json in {origin}; give a directory that the tokenizer stage wrote{example}")
        raise UserError(
            f"no tokenizer.json in {origin}; make it of {others[0]}, once: pip install transformers sentencepiece "
            'tiktoken; python -c "from transformers import AutoTokenizer as T; '
            f'T.from_pretrained({origin!r}).save_pretrained({origin!r})"'
        )
    try:
        return tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises bare Exception
        path = Path(origin) / "tokenizer.json"
        raise UserError(f"{path} is not a readable tokenizer ({error}); train or copy it again") from error


def read_backend(directory: Path) -> tokenizers.Tokenizer:
    """The tokenizer in tokenizer.json alone. UserError if there is none, or it cannot be read."""
    return _parse(read_files(directory), str(directory))


def trained_here(backend: tokenizers.Tokenizer) -> Tokenizer:
    """A tokenizer with our control tokens, and no chat template yet."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1_000_000_000,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer({"tokenizer.json": backend.to_str(pretty=True).encode(), CONFIG: as_json(config)})


def check_size(vocab_size: int) -> None:
    """UserError if a new tokenizer cannot be so small."""
    smallest = 256 + len(CONTROL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size} is below the {smallest} bytes and control tokens; try 6400")


_RUN = 256
"""Characters: training takes time with the square of the longest word, and no entry comes near this length."""
_CUT_AFTER = re.compile(rf"\w{{{_RUN}}}|\s{{{_RUN}}}|[^\w\s]{{{_RUN}}}")


def without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts to learn merges from, cut in runs of letters, of spaces or of signs that are longer than any word, as
    in Chinese without punctuation, rows of "=" or base64. Other texts pass unchanged."""
    for text in texts:
        begin = 0
        for run in _CUT_AFTER.finditer(text):
            yield text[begin : run.end()]
            begin = run.end()
        yield text[begin:]


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_token_length: int) -> Tokenizer:
    """Train byte-level BPE. `vocab_size` counts the 256 bytes and the control tokens; `max_token_length` is in bytes.

    Raises UserError when the text is too small for so many merges.
    """
    check_size(vocab_size)
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
        max_token_length=max_token_length + 1,  # the library's entries stay below it
        show_progress=False,
    )
    backend.train_from_iterator(without_long_runs(texts), trainer=trainer)
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is more than this text allows: it gives {reached} entries; "
            f"set tokenizer.vocab_size={reached} or add text"
        )
    return trained_here(backend)
