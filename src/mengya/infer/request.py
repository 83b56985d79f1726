"""How an answer is to be drawn."""

import math

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from mengya.errors import UserError


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Sampling:
    """How an answer is drawn. UserError for a value out of range."""

    temperature: float = 0.7
    """0: always the likeliest token, the filters then have no effect; 1: the model's own distribution."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.9
    """Keep the fewest likeliest tokens whose probabilities sum to top_p; 1: all."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer so far become less likely (Keskar et al. 2019); 1: off."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    seed: int | None = None
    """The same seed, prompt and machine give the same answer, whatever is asked beside it; none: another each time."""

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature) and math.isfinite(self.repetition_penalty)
        checks = (
            (finite and self.temperature >= 0, "temperature", "0 (always the likeliest token) or more, such as 0.7"),
            (self.top_k >= 0, "top_k", "0 (off) or a number of tokens, such as 50"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1, such as 0.9; 1 turns it off"),
            (0 <= self.min_p <= 1, "min_p", "from 0 (off) to 1, such as 0.05"),
            (finite and self.repetition_penalty > 0, "repetition_penalty", "above 0; 1 turns it off, 1.1 is mild"),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more"),
            (self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a whole number of at most 63 bits"),
        )
        for valid, name, remedy in checks:
            if not valid:
                raise UserError(f"{name}={getattr(self, name)} is out of range; choose {remedy}")
