"""What functions of whole tensors take while they compute, so that a tensor that is too large is refused beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Bytes = Callable[[tuple[int, ...]], int]


def needs(working: int | Bytes) -> Callable[[Function], Function]:
    """Declare what a function works in besides its arguments and its result: bytes per element, or for a shape."""

    def decorate(function: Function) -> Function:
        function.working = working  # type: ignore[attr-defined]
        return function

    return decorate


def working(function: Callable[..., Any], shape: tuple[int, ...]) -> int:
    """The bytes that a function works in for a tensor's shape; 0 for one that declares none."""
    declared: int | Bytes = getattr(function, "working", 0)
    return declared * math.prod(shape) if isinstance(declared, int) else declared(shape)
