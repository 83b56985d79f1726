"""Preference accuracy: does the model rate the chosen completion above the rejected one?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mengya.errors import UserError
from mengya.evaluate.accuracy import Accuracy, accuracy
from mengya.evaluate.scoring import Row, log_probs
from mengya.model.language_model import LanguageModel
from mengya.text.tokenizer import Tokenizer


class Pair(Protocol):
    """A preference: `prompt` messages that end with the user's turn, and two completions."""

    @property
    def prompt(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...


@dataclass(frozen=True)
class PreferenceAccuracy:
    """`accuracy`: share of pairs with a positive margin. `margin`: its mean, in nats per token."""

    accuracy: Accuracy
    margin: float


def preference_accuracy(model: LanguageModel, tokenizer: Tokenizer, pairs: Sequence[Pair]) -> PreferenceAccuracy:
    """Compare the completions by log-probability *per token*, so that a longer one has no handicap.

    The tokens of a completion are those that training supervises: its text and the closing `<|im_end|>`, given the
    prompt. A tie is no success. Of a pair that does not fit in the context, both prompts lose the same number of tokens
    on the left; of a completion that alone is longer, the part that fits counts. UserError without pairs.
    """
    if not pairs:
        raise UserError("no held-out preference pairs to measure; hold out some, or leave the metric out")
    context = model.context
    rows = [row for pair in pairs for row in _rows(tokenizer, pair, context)]
    scores = [total / (row.last - row.first) for total, row in zip(log_probs(model, rows), rows, strict=True)]
    margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    return PreferenceAccuracy(accuracy(margin > 0 for margin in margins), sum(margins) / len(margins))


def _rows(tokenizer: Tokenizer, pair: Pair, context: int) -> tuple[Row, Row]:
    """The scored spans of the chosen and of the rejected completion, at most `context` + 1 ids each."""
    prompt = [dict(message) for message in pair.prompt]
    length = len(tokenizer.encode_chat(prompt, add_generation_prompt=True)[0])
    spans = []
    for completion in (pair.chosen, pair.rejected):
        ids, mask = tokenizer.encode_chat([*prompt, {"role": "assistant", "content": completion}])
        last = len(mask) - mask[::-1].index(1)  # earlier assistant turns are in the prompt: only the last one counts
        spans.append((ids, last))
    # one id of the prompt must stay: it predicts the first token of the completion
    drop = min(length - 1, max(0, max(last for _, last in spans) - context - 1))
    chosen, rejected = (
        Row(ids[drop : drop + context + 1], length - drop, min(last - drop, context + 1)) for ids, last in spans
    )
    return chosen, rejected
