"""torch.compile, imported only where something is compiled: its import takes two seconds, which no chat should wait."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_decisions: list[Callable[..., Any]] = []


def decision(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of types and sizes that compiled code asks once, when it is compiled, and never looks into."""
    _decisions.append(function)
    return function


def compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """`torch.compile(function, **options)`, which knows the decisions."""
    for each in _decisions:
        torch.compiler.assume_constant_result(each)
    return torch.compile(function, **options)
