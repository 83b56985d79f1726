"""How a conversation is answered, as the page says it: the model, the system prompt, how tokens are drawn."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from mengya.errors import UserError
from mengya.infer.request import Sampling

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
_SYSTEM = 20_000
"""Characters of a system prompt, at most."""

_BASES = 20


@dataclass(frozen=True)
class Settings:
    model: str = ""
    """Its name; "": the first one."""
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    bases: tuple[str, ...] = ()
    """Places of knowledge bases that are asked, besides the conversation's own files."""

    @staticmethod
    def read(given: Mapping[str, Any], usual: Sampling) -> "Settings":
        """What is left out is as usual. UserError for what cannot be used."""
        model, system = given.get("model") or "", given.get("system") or ""
        if not isinstance(model, str) or not isinstance(system, str):
            raise UserError("model and system must be texts")
        if len(system) > _SYSTEM:
            raise UserError(f"the system prompt has {len(system)} characters; at most {_SYSTEM} are taken")
        bases = given.get("bases") or ()
        if not isinstance(bases, list | tuple) or not all(isinstance(name, str) for name in bases):
            raise UserError("bases must be a list of places")
        named = {name: given[name] for name in SAMPLING if given.get(name) is not None}
        try:
            sampling = Sampling(**(asdict(usual) | named))
        except ValidationError as error:
            wrong = error.errors()[0]
            name = wrong["loc"][-1] if wrong["loc"] else "a value"
            raise UserError(f"{name}={str(wrong.get('input'))[:40]} is not usable; {wrong['msg'].lower()}") from error
        return Settings(model, system, sampling, tuple(bases[:_BASES]))

    def kept(self) -> dict[str, Any]:
        """As JSON that `read` takes."""
        named = {"model": self.model, "system": self.system, "bases": list(self.bases)}
        return named | {name: getattr(self.sampling, name) for name in SAMPLING}
