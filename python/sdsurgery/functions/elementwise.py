"""Elementwise functions of a body."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from ..program.symbols import Scalar, Symbol, Value
from .dispatch import Axis, as_arrays, function, is_numbers, library_of, reduced, traced
from .numbers import of_numbers, rounded, single


def minimum(a: Any, b: Any = None, axis: Axis = None) -> Any:
    """The smaller of each two elements: ``a`` where a < b or a is NaN, else ``b`` (so a NaN in either is carried).

    Of one argument the smallest element, NaN when one is NaN; +0 when it is a zero.
    """
    return _extreme("minimum", operator.lt, a, b, axis)


def maximum(a: Any, b: Any = None, axis: Axis = None) -> Any:
    """The larger of each two elements: ``a`` where a > b or a is NaN, else ``b`` (so a NaN in either is carried).

    Of one argument the largest element, NaN when one is NaN; +0 when it is a zero.
    """
    return _extreme("maximum", operator.gt, a, b, axis)


def clip(x: Any, low: Any, high: Any) -> Any:
    """``minimum(maximum(x, low), high)``."""
    return minimum(maximum(x, low), high)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded; NaN for a negative number (refused in an expression of parameters alone)."""
    from ..definitions import scalars

    made = traced("sqrt", scalars.sqrt if is_numbers(x) else math.sqrt, x)
    if made is not None:
        return made
    if hasattr(x, "new_tensor"):  # torch's own root of float32 is an ulp off here and there; one of float64 is not
        return x.double().sqrt().to(x.dtype)
    return library_of(x).sqrt(x)


def sign(x: Any) -> Any:
    """−1, 0 or 1; a NaN is carried, and both zeros give +0."""
    made = traced("sign", _sign, x)
    if made is not None:
        return made
    one = library_of(x).ones_like(x)
    return where(x > 0, one, where(x < 0, -one, where(x == 0, one * 0, x)))


def copysign(a: Any, b: Any) -> Any:
    """The magnitude of ``a`` with the sign of ``b`` (of a zero's too)."""
    made = traced("copysign", math.copysign, a, b)
    if made is not None:
        return made
    x, y = as_arrays(a, b)
    return library_of(x).copysign(x, y)


def floor(x: Any) -> Any:
    """The largest integer that is not above x."""
    made = traced("floor", _floor, x)
    return library_of(x).floor(x) if made is None else made


def exp(x: Any) -> Any:
    """e to the power x: of tensors as docs/numerics.md says, of numbers correctly rounded."""
    return function("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm; −Inf of a zero, NaN below."""
    return function("log", x)


def pow(x: Any, y: Any) -> Any:
    """x to the power y; NaN for x < 0 unless y is an integer; 1 for y = 0, whatever x is."""
    return function("pow", x, y)


def is_nan(x: Any) -> Any:
    """Whether x is not a number."""
    return x != x  # noqa: PLR0124


def flag(condition: Any, like: Any) -> Any:
    """1 where the condition holds, else 0, in ``like``'s arithmetic: what a comparison gives, as a number."""
    if isinstance(condition, Symbol | Value | Scalar):
        return condition
    if isinstance(condition, bool):
        return float(condition)
    if is_numbers(condition):
        return condition.beside(like)
    return condition.astype(like.dtype) if hasattr(condition, "astype") else condition.to(like.dtype)


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where the condition is not 0 (a NaN is not), else ``b``. Both are evaluated."""
    items = (condition, a, b)
    for item in items:
        if isinstance(item, Symbol):
            return item.tracer.apply("where", condition, a, b)
    for item in items:
        if isinstance(item, Value):
            return item.tracer.scalar("where", condition, a, b)
    if any(isinstance(item, Scalar) for item in items):
        return Scalar(lambda truth, x, y: x if truth else y, condition, a, b)
    if all(isinstance(item, int | float) for item in items):
        return a if condition else b
    if all(isinstance(item, int | float) or is_numbers(item) for item in items):
        from ..definitions.reductions import each

        return each(lambda truth, x, y: x if truth != 0 else y, condition, a, b)
    arrays = [item for item in items if hasattr(item, "dtype")]
    library = library_of(arrays[0])
    array = next((item for item in arrays if "bool" not in str(item.dtype)), None)
    if array is None:
        array = library.ones_like(arrays[0], dtype=library.float32)
    condition, a, b = (item.beside(array) if is_numbers(item) else item for item in items)
    if isinstance(condition, int | float):
        condition = library.full_like(array, condition)
    truth = condition if str(condition.dtype).endswith("bool") else condition != 0
    return library.where(truth, a, b)


def fma(x: Any, y: Any, z: Any) -> Any:
    """x·y + z, rounded once; for tensors, or tensors and numbers."""
    for item in (x, y, z):
        if isinstance(item, Symbol):
            return item.tracer.apply("fma", x, y, z)
    from ..definitions.fused import fma as definition

    return definition(x, y, z)


def multiply_add(x: Any, y: Any, z: Any, fused: bool = False) -> Any:
    """z + x·y of a number y: with two roundings, or ``fused`` with one (``fma``)."""
    return fma(x, y, z) if fused else z + y * x


def lerp(a: Any, b: Any, t: Any, fused: bool = False) -> Any:
    """a + t·(b − a) for |t| < ½, else b − (1 − t)·(b − a), of a number t, which is rounded to float32 first: what
    ``torch.lerp`` computes; ``fused`` with one rounding of each product and sum, as it does on AVX2 and later."""
    t = of_numbers(single, t)
    away = b - a
    return _from_a(a, away, t, fused) if abs(t) < 0.5 else _from_b(b, away, t, fused)


def lerp_by(a: Any, b: Any, t: Any, fused: bool = False) -> Any:
    """As lerp, of a t of its own for each element: a tensor, or what a reduction gives."""
    t, away = rounded(t, a), b - a
    return where(abs(t) < 0.5, _from_a(a, away, t, fused), _from_b(b, away, t, fused))


def _from_a(a: Any, away: Any, t: Any, fused: bool) -> Any:
    return multiply_add(away, t, a, fused)


def _from_b(b: Any, away: Any, t: Any, fused: bool) -> Any:
    return fma(away, t - 1, b) if fused else b - away * (1 - t)


def _extreme(op: str, wins: Callable[[Any, Any], Any], a: Any, b: Any, axis: Axis) -> Any:
    """``a`` where it wins against b or is NaN, else b; of one argument the reduction."""
    if b is None:
        return reduced(op, axis, a)
    if axis is not None:
        raise TypeError(f"the {op} takes two tensors, or one tensor and an axis")

    def of_numbers(x: float, y: float) -> float:
        return x if wins(x, y) or math.isnan(x) else y

    made = traced(op, of_numbers, a, b)
    if made is not None:
        return made
    x, y = as_arrays(a, b)
    return where(wins(x, y) | library_of(x).isnan(x), x, y)


def _floor(x: float) -> float:
    return x if x == 0 or not math.isfinite(x) else float(math.floor(x))


def _sign(x: float) -> float:
    return x if math.isnan(x) else float(x > 0) - float(x < 0)
