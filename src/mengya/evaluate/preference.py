"""Preference accuracy: does the model rate the chosen completion above the rejected one?"""

from collections.abc import Sequence

from mengya.data.preferences import Preference
from mengya.data.rendering import Rendered, render_pair
from mengya.errors import UserError
from mengya.evaluate.accuracy import Result, accuracy
from mengya.evaluate.scoring import Row, log_probs
from mengya.model.language_model import LanguageModel
from mengya.tasks.task import Words
from mengya.text.chat import Chat

HEADING = Words("Preference", "偏好判断")
NOTE = Words(
    "the share of held-out pairs whose chosen answer has the higher log-probability per token.",
    "在未见过的偏好对中，被选回答的每词元对数概率更高的比例。",
)


def preference_accuracy(model: LanguageModel, chat: Chat, pairs: Sequence[Preference]) -> tuple[Result, float]:
    """The share of pairs whose chosen completion has the higher log-probability, and the mean margin.

    Log-probabilities and the margin are in nats *per token*, so that a longer completion has no handicap. The tokens of
    a completion are those that training supervises: its text and the end of its turn, given the prompt. A tie is not a
    success. Of a pair that does not fit in the context, both prompts lose the same number of tokens on the left; of a
    completion that alone is longer, the part that fits counts. UserError without pairs.
    """
    if not pairs:
        raise UserError("no held-out preference pairs to measure; hold out some, or leave the metric out")
    rows = [row for pair in pairs for row in _rows(chat, pair, model.context)]
    scores = [total / (row.last - row.first) for total, row in zip(log_probs(model, rows), rows, strict=True)]
    margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    result = Result("preference_accuracy", HEADING, NOTE, accuracy(margin > 0 for margin in margins))
    return result, sum(margins) / len(margins)


def _rows(chat: Chat, pair: Preference, context: int) -> tuple[Row, Row]:
    """The scored spans of the chosen and of the rejected completion, at most `context` + 1 ids each."""
    rendered = render_pair(chat, pair)
    longest = max(_end(rendered.chosen), _end(rendered.rejected))
    rendered = rendered.without_oldest(min(rendered.prompt - 1, max(0, longest - context - 1)))
    chosen, rejected = (
        Row(side.ids[: context + 1], rendered.prompt, min(_end(side), context + 1)) for side in rendered[1:]
    )
    return chosen, rejected


def _end(side: Rendered) -> int:
    """Where the completion ends."""
    return len(side.mask) - side.mask[::-1].index(1)
