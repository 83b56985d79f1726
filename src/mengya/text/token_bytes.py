"""What each token of a tokenizer stands for, in bytes."""

import json
import re
from collections.abc import Iterator

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _letters() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for: GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _steps(decoder: dict | None) -> Iterator[dict]:
    if decoder and decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether a text is the bytes of its tokens, one after the other, whatever they are."""
    decoder = json.loads(backend.to_str())["decoder"]
    return [step["type"] for step in _steps(decoder)] == ["ByteLevel"]


def token_bytes(backend: tokenizers.Tokenizer) -> tuple[bytes, ...]:
    """The bytes of each token, a space that a text drops at its beginning included; empty where there is no token.

    Byte-level and SentencePiece vocabularies; of others what each token is decoded to by itself."""
    kinds = {step["type"] for step in _steps(json.loads(backend.to_str())["decoder"])}
    letters = _letters() if "ByteLevel" in kinds else {}
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    spaced = bool(kinds & {"Metaspace", "ByteFallback", "Replace"})
    found = {number: content.encode() for number, content in added.items()}
    for token, number in backend.get_vocab().items():
        if number in found:
            continue
        if letters:
            known = all(letter in letters for letter in token)
            found[number] = bytes(letters[letter] for letter in token) if known else token.encode()
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
            found[number] = bytes([int(byte[1], 16)])
        else:
            text = token.replace("▁", " ") if spaced else backend.decode([number])
            found[number] = text.encode()
    return tuple(found.get(number, b"") for number in range(max(found, default=-1) + 1))
