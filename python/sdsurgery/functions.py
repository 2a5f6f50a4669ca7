"""What a method's body may use besides + − × ÷ and comparisons: the same function on symbols, NumPy arrays, torch
tensors and plain numbers.

The definitions are those of the engine (``csrc/program.h``), spelled out where NumPy and torch differ or leave
something open: which zero a minimum gives, what becomes of a NaN.
"""

from __future__ import annotations

import math
from typing import Any

from .program import Scalar, Symbol


def minimum(a: Any, b: Any) -> Any:
    """The smaller of each two elements: ``a`` where a < b or a is NaN, else ``b`` (so a NaN in either is carried)."""
    return _binary(
        "minimum", a, b,
        lambda x, y: where((x < y) | _library(x).isnan(x), x, y),
        lambda x, y: x if x < y or math.isnan(x) else y,
    )  # fmt: skip


def maximum(a: Any, b: Any) -> Any:
    """The larger of each two elements: ``a`` where a > b or a is NaN, else ``b`` (so a NaN in either is carried)."""
    return _binary(
        "maximum", a, b,
        lambda x, y: where((x > y) | _library(x).isnan(x), x, y),
        lambda x, y: x if x > y or math.isnan(x) else y,
    )  # fmt: skip


def clip(x: Any, low: Any, high: Any) -> Any:
    """``minimum(maximum(x, low), high)``."""
    return minimum(maximum(x, low), high)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded; NaN for a negative number."""
    if isinstance(x, Symbol):
        return x.tracer.apply("sqrt", x)
    if isinstance(x, Scalar):
        return Scalar(math.sqrt, x)
    if isinstance(x, int | float):
        return math.sqrt(x)
    return _library(x).sqrt(x)


def sign(x: Any) -> Any:
    """−1, 0 or 1; a NaN is carried, and both zeros give +0."""
    if isinstance(x, Symbol):
        return x.tracer.apply("sign", x)
    if isinstance(x, Scalar):
        return Scalar(_sign, x)
    if isinstance(x, int | float):
        return _sign(x)
    one = _library(x).ones_like(x)
    return where(x > 0, one, where(x < 0, -one, where(x == 0, one * 0, x)))


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where the condition is not 0 (a NaN is not), else ``b``. Both are evaluated."""
    for item in (condition, a, b):
        if isinstance(item, Symbol):
            return item.tracer.apply("where", condition, a, b)
    if any(isinstance(item, Scalar) for item in (condition, a, b)):
        return Scalar(lambda truth, x, y: x if truth else y, condition, a, b)
    if all(isinstance(item, int | float) for item in (condition, a, b)):
        return a if condition else b
    array = next(item for item in (condition, a, b) if hasattr(item, "dtype"))
    library = _library(array)
    truth = condition if str(getattr(condition, "dtype", "")).endswith("bool") else condition != 0
    return library.where(truth, a, b)


def _sign(x: float) -> float:
    return x if math.isnan(x) else float(x > 0) - float(x < 0)


def _binary(op: str, a: Any, b: Any, on_arrays: Any, on_numbers: Any) -> Any:
    for item in (a, b):
        if isinstance(item, Symbol):
            return item.tracer.apply(op, a, b)
    if isinstance(a, Scalar) or isinstance(b, Scalar):
        return Scalar(on_numbers, a, b)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return on_numbers(a, b)
    return on_arrays(*_as_arrays(a, b))


def _as_arrays(a: Any, b: Any) -> tuple[Any, Any]:
    """Both as arrays of one kind: a number takes the other's dtype."""
    if isinstance(a, int | float):
        return _library(b).full_like(b, a), b
    if isinstance(b, int | float):
        return a, _library(a).full_like(a, b)
    return a, b


def _library(array: Any) -> Any:
    """NumPy or torch, whichever made the array."""
    import importlib

    return importlib.import_module("torch" if type(array).__module__.split(".")[0] == "torch" else "numpy")
