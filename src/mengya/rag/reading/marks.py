"""What raised, lowered and crossed out letters mean, where a format tells it: without it 10⁵ would be 105, and a price
that no longer holds would be one that does."""

import re

_RAISED = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_LOWERED = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")

_STRUCK = "〔划去：[^〔〕]*〕"
_STRUCK_RUN = re.compile(rf"{_STRUCK}(?:\s*{_STRUCK})+")


def raised(text: str) -> str:
    """Digits and signs as Unicode has them; what it lacks stays."""
    return _if_whole(text, _RAISED)


def lowered(text: str) -> str:
    return _if_whole(text, _LOWERED)


def _if_whole(text: str, table: dict[int, int]) -> str:
    return text.translate(table) if text.strip() and all(ord(c) in table or c.isspace() for c in text) else text


def struck(text: str) -> str:
    """Of words that are crossed out."""
    words = text.strip()
    return text.replace(words, f"〔划去：{words}〕") if words else text


def merged(text: str) -> str:
    """What is crossed out in several pieces that follow each other, as one."""
    return _STRUCK_RUN.sub(lambda run: re.sub(r"〕(\s*)〔划去：", r"\1", run[0]), text)
