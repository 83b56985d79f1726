"""The tokenizer part of a GGUF file's metadata, proven on `proof.lines` by a second reader of what is written."""

from collections.abc import Callable, Sequence
from typing import Any

from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.gguf_reader import BYTE, CONTROL, NORMAL, PRES, UNKNOWN, UNUSED, USER_DEFINED, Reader
from mengya.text.proof import lines, talks
from mengya.text.template import Template, own_template, without_marks
from mengya.text.tokenizer import Tokenizer

Values = dict[str, Any]

_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<end_of_turn>")
"""Tokens at which llama.cpp ends an answer for their names alone."""
_SERVE = "serve the Hugging Face directory (mengya export without --gguf)"


def vocabulary(tokenizer: Tokenizer, stops: Sequence[int]) -> tuple[Values, list[str]]:
    """The keys tokenizer.*, and what the user should know. UserError if llama.cpp cannot be told this tokenizer.

    `stops`: the tokens that end an answer, or a document if there is no chat template.
    """
    content = tokenizer.content()
    _check(tokenizer, content)
    model = content["model"]
    notes: list[str] = []
    values = _tokens(tokenizer, content) | _named(tokenizer, stops, notes)
    if _composes(content):
        notes.append("llama.cpp does not bring text into Unicode's form NFC, which the tokenizer does")
    proof = proof_texts(tokenizer)
    if model.get("byte_fallback"):
        values |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": _scores(model, values)}
        choices: list[Values] = [{"tokenizer.ggml.add_space_prefix": prefix} for prefix in (True, False)]
    else:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        if not merges:
            raise UserError(f"{tokenizer.origin} has no merges, without which llama.cpp reads no tokenizer; {_SERVE}")
        values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}
        choices = [{"tokenizer.ggml.pre": pre} for pre in PRES]
    return values | _proven(tokenizer, values, choices, proof) | _templates(tokenizer), notes


def _check(tokenizer: Tokenizer, content: dict) -> None:
    """UserError for kinds of tokenizers that llama.cpp does not have, or that nothing here proves."""
    model, origin = content["model"], tokenizer.origin
    steps = _types(content.get("pre_tokenizer")) | _types(content.get("decoder"))
    if model["type"] != "BPE" or not (model.get("byte_fallback") or "ByteLevel" in steps):
        raise UserError(
            f"{origin} is of the kind {model['type']}; written into GGUF files are byte-level BPE and SentencePiece's "
            f"BPE with byte fallback: {_SERVE}"
        )
    set_ = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    strips = [t["content"] for t in content["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]]
    if set_ or strips:
        what = ", ".join(set_) or f"{strips[0]!r}, a token that takes spaces beside it along"
        raise UserError(f"{origin} has {what}, which llama.cpp does not have; {_SERVE}")


def _types(step: Any) -> set[str]:
    """The types of a step of tokenizer.json and of those in it."""
    if not isinstance(step, dict):
        return set()
    inner = [entry for value in step.values() if isinstance(value, list) for entry in value]
    return {str(step.get("type"))}.union(*map(_types, inner))


def _tokens(tokenizer: Tokenizer, content: dict) -> Values:
    """The list of tokens, one for each id, and their types; ids without a token get a name that no text contains."""
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    names = {number: text for text, number in content["model"]["vocab"].items()}
    names |= {number: entry["content"] for number, entry in added.items()}
    unknown = content["model"].get("unk_token")
    fallback = content["model"].get("byte_fallback")
    tokens, types = [], []
    for number in range(tokenizer.vocab_size):
        name = names.get(number, f"[UNUSED_{number}]")
        kind = NORMAL if number in names else UNUSED
        if name == unknown:
            kind = UNKNOWN
        elif number in added:
            kind = CONTROL if added[number]["special"] else USER_DEFINED
        elif fallback and len(name) == 6 and name.startswith("<0x"):
            kind = BYTE
        tokens.append(name)
        types.append(kind)
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UserError(f"{tokenizer.origin} has two tokens {twice!r}, which llama.cpp refuses; {_SERVE}")
    values: Values = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if unused := [number for number, kind in enumerate(types) if kind == UNUSED]:
        values["tokenizer.ggml.suppress_tokens"] = unused
    return values


def _named(tokenizer: Tokenizer, stops: Sequence[int], notes: list[str]) -> Values:
    """The ids with a role. What we encode has no token in front but those that the template writes, nor has this."""
    named = {
        name: tokenizer.control_ids[text]
        for name, text in tokenizer.special_tokens.items()
        if text in tokenizer.control_ids
    }
    names = {number: text for text, number in tokenizer.control_ids.items()}
    first = named.get("eos_token", tokenizer.eos_id)
    ends = sorted(stops, key=lambda number: (number != first, number))
    # Without an id of its own llama.cpp takes token 11, a sign, for what stands before a text; a document's end does.
    values: Values = {
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": named.get("bos_token", tokenizer.eos_id),
        "tokenizer.ggml.eos_token_id": ends[0],
        "tokenizer.ggml.padding_token_id": named.get("pad_token", tokenizer.eos_id),
    }
    if "unk_token" in named:
        values["tokenizer.ggml.unknown_token_id"] = named["unk_token"]
    unknown = [number for number in ends[1:] if names.get(number) not in _ENDS]
    turn = next((number for number in ends if number != tokenizer.eos_id), ends[0])
    values["tokenizer.ggml.eot_token_id"] = unknown[0] if unknown else turn
    if len(unknown) > 1:
        values["tokenizer.ggml.eom_token_id"] = unknown[1]
    if len(unknown) > 2:
        left = ", ".join(names.get(number, str(number)) for number in unknown[2:])
        notes.append(f"llama.cpp has no place for more ends of an answer than three; give it these as stops: {left}")
    return values


def _scores(model: dict, values: Values) -> list[float]:
    """For each token, minus the rank of the first merge that makes it; 0 for single characters."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"], start=1):
        ranks.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, 0)) for token in values["tokenizer.ggml.tokens"]]


def _composes(content: dict) -> bool:
    return (content.get("normalizer") or {}).get("type") == "NFC"


def proof_texts(tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Texts that must become the same tokens, and whether control tokens in them count: plain lines, conversations as
    the template writes them, and control tokens between words."""
    plain = lines(composed=_composes(tokenizer.content()))
    controls = sorted(tokenizer.control_ids)[:8]
    texts = [f"{control}你好 hi{control}\n  {control}{control} x" for control in controls]
    if own_template(tokenizer.files):
        chat = Chat(tokenizer)
        for talk in talks(chat.writes("system"), chat.writes("tool")):
            texts.append(chat.text(talk, add_generation_prompt=True))
    return [(text, False) for text in plain] + [(text, True) for text in texts]


def _proven(tokenizer: Tokenizer, values: Values, choices: Sequence[Values], proof: list[tuple[str, bool]]) -> Values:
    """The first of the choices by which a second reader finds our ids in all texts. UserError if there is none."""
    wanted = tokenizer.encode_batch([text for text, special in proof if not special])
    wanted += [tokenizer.encode_structure(text).ids for text, special in proof if special]
    failed = ""
    readers = [(choice, Reader(values | choice)) for choice in choices]
    # First those that also cut text into the same pieces: they would agree with merges that were never tried here.
    sample = [text for text, special in proof[:500] if not special]
    readers.sort(key=lambda entry: any(entry[1].pieces(text) != tokenizer.pieces(text) for text in sample))
    for choice, reader in readers:
        differing = _first(zip(proof, wanted, strict=True), reader.encode)
        if differing is None:
            return choice
        failed = failed or f"{' '.join(str(v) for v in choice.values())} differs at {differing!r}"
    raise UserError(
        f"{tokenizer.origin} splits text as none of those tokenizers that llama.cpp has ({failed}); {_SERVE}, or "
        "train or grow a tokenizer here"
    )


def _first(pairs: Any, encode: Callable[[str, bool], list[int]]) -> str | None:
    """The first text whose ids differ."""
    return next((text for (text, special), ids in pairs if encode(text, special) != ids), None)


def _templates(tokenizer: Tokenizer) -> Values:
    """The chat template, for readers that have no `{% generation %}` and write a token for a name without one."""
    own = own_template(tokenizer.files)
    if own is None:
        return {}
    values: Values = {"tokenizer.chat_template": _alone(own.source, tokenizer)}
    if own.tool_use is not None:
        values["tokenizer.chat_template.tool_use"] = _alone(own.tool_use, tokenizer)
        values["tokenizer.chat_templates"] = ["tool_use"]
    return values


def _alone(source: str, tokenizer: Tokenizer) -> str:
    missing = [f"{name}_token" for name in ("bos", "eos") if f"{name}_token" not in tokenizer.special_tokens]
    sets = "".join(f"{{%- set {name} = '' -%}}" for name in missing if name in source)
    return sets + without_marks(source)


def stored_template(values: Values) -> Template | None:
    """The chat template in a file's values."""
    source = values.get("tokenizer.chat_template")
    return Template(source, values.get("tokenizer.chat_template.tool_use")) if source else None
