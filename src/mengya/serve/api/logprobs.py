"""Log-probabilities in the forms of chat and of completions."""

import codecs
import math
from collections.abc import Sequence
from typing import Any

from mengya.infer.request import LOWEST, LogProb


def _number(value: float | None) -> float | None:
    """JSON has neither infinity nor NaN."""
    if value is None:
        return None
    return max(value, LOWEST) if math.isfinite(value) else LOWEST


def as_chat(tokens: Sequence[LogProb]) -> list[dict[str, Any]]:
    def one(token: LogProb) -> dict[str, Any]:
        text = token.bytes.decode("utf-8", "replace")
        return {"token": text, "logprob": _number(token.logprob), "bytes": list(token.bytes)}

    return [one(token) | {"top_logprobs": [one(other) for other in token.top]} for token in tokens]


class CompletionLogprobs:
    """Of one answer, in lists; the offset of a token is where its first whole character stands in the text."""

    def __init__(self, offset: int = 0):
        self._decoder, self._offset = codecs.getincrementaldecoder("utf-8")("replace"), offset

    def add(self, tokens: Sequence[LogProb]) -> dict[str, Any]:
        lists: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            lists["tokens"].append(_spelt(token))
            lists["token_logprobs"].append(_number(token.logprob))
            top = {_spelt(other): _number(other.logprob) for other in token.top}
            lists["top_logprobs"].append(top if token.logprob is not None else None)
            lists["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(token.bytes))
        return lists


def _spelt(token: LogProb) -> str:
    """A token's text; that of a part of a character as OpenAI spells it, so that two of them are not one key."""
    try:
        return token.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
