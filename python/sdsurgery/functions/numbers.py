"""Functions of what reductions give, and of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..program.symbols import Scalar, Value
from .dispatch import is_numbers, scalar


def sin(x: Any) -> Any:
    """The sine of x radians; NaN for an infinite x."""
    return scalar("sin", x)


def cos(x: Any) -> Any:
    """The cosine of x radians; NaN for an infinite x."""
    return scalar("cos", x)


def acos(x: Any) -> Any:
    """The angle from 0 to π whose cosine is x; NaN for |x| > 1."""
    return scalar("acos", x)


def of_numbers(function: Callable[..., float], *args: Any) -> Any:
    """A Python function of parameters alone, evaluated for each set of numbers."""
    return Scalar(function, *args) if any(isinstance(arg, Scalar) for arg in args) else function(*args)


def rounded(value: Any, tensor: Any) -> Any:
    """What a reduction gives as an element of ``tensor``'s arithmetic: further operations on it are elementwise."""
    if isinstance(value, Value):
        return value.tracer.lift(value)
    return value.beside(tensor) if is_numbers(value) else value


def single(x: float) -> float:
    """The float32 nearest to a number."""
    import struct

    nearest: float = struct.unpack("f", struct.pack("f", x))[0]
    return nearest
