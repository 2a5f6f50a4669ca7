"""What a method's body may use besides + − × ÷ and comparisons: the same function on symbols, NumPy arrays, torch
tensors and plain numbers.

The definitions are those of the engine (``csrc/program.h``, ``csrc/stages.h``), spelled out where NumPy and torch
differ or leave something open: which zero a minimum gives, what becomes of a NaN, the order of a sum.

A reduction gives one float64 number for the whole tensor, or (``axis=-1``, ``axis=0``) one for each row along the last
axis or for each column along the first. What it gives is used like a number: in expressions, which are evaluated in
float64, and beside tensors, where it is rounded once to their arithmetic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from .program import ALL, FIRST, LAST, Scalar, Symbol, Value

# ---- elementwise


def minimum(a: Any, b: Any = None, axis: int | None = None) -> Any:
    """The smaller of each two elements: ``a`` where a < b or a is NaN, else ``b`` (so a NaN in either is carried).

    Of one argument the smallest element, NaN when one is NaN; +0 when it is a zero.
    """
    return _extreme("minimum", operator.lt, a, b, axis)


def maximum(a: Any, b: Any = None, axis: int | None = None) -> Any:
    """The larger of each two elements: ``a`` where a > b or a is NaN, else ``b`` (so a NaN in either is carried).

    Of one argument the largest element, NaN when one is NaN; +0 when it is a zero.
    """
    return _extreme("maximum", operator.gt, a, b, axis)


def clip(x: Any, low: Any, high: Any) -> Any:
    """``minimum(maximum(x, low), high)``."""
    return minimum(maximum(x, low), high)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded; NaN for a negative number (refused in an expression of parameters alone)."""
    from . import scalars

    made = _traced("sqrt", scalars.sqrt if _is_numbers(x) else math.sqrt, x)
    return _library(x).sqrt(x) if made is None else made


def sign(x: Any) -> Any:
    """−1, 0 or 1; a NaN is carried, and both zeros give +0."""
    made = _traced("sign", _sign, x)
    if made is not None:
        return made
    one = _library(x).ones_like(x)
    return where(x > 0, one, where(x < 0, -one, where(x == 0, one * 0, x)))


def copysign(a: Any, b: Any) -> Any:
    """The magnitude of ``a`` with the sign of ``b`` (of a zero's too)."""
    made = _traced("copysign", math.copysign, a, b)
    if made is not None:
        return made
    x, y = _as_arrays(a, b)
    return _library(x).copysign(x, y)


def floor(x: Any) -> Any:
    """The largest integer that is not above x."""
    made = _traced("floor", math.floor, x)
    return _library(x).floor(x) if made is None else made


def exp(x: Any) -> Any:
    """e to the power x: of tensors as docs/numerics.md says, of numbers correctly rounded."""
    return _function("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm; −Inf of a zero, NaN below."""
    return _function("log", x)


def pow(x: Any, y: Any) -> Any:
    """x to the power y; NaN for x < 0 unless y is an integer; 1 for y = 0, whatever x is."""
    return _function("pow", x, y)


def is_nan(x: Any) -> Any:
    """Whether x is not a number."""
    return x != x  # noqa: PLR0124


def flag(condition: Any, like: Any) -> Any:
    """1 where the condition holds, else 0, in ``like``'s arithmetic: what a comparison gives, as a number."""
    if isinstance(condition, Symbol | Value | Scalar):
        return condition
    if isinstance(condition, bool):
        return float(condition)
    if _is_numbers(condition):
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
    if all(isinstance(item, int | float) or _is_numbers(item) for item in items):
        from .reductions import each

        return each(lambda truth, x, y: x if truth != 0 else y, condition, a, b)
    array = next(item for item in items if hasattr(item, "dtype"))
    library = _library(array)
    condition, a, b = (item.beside(array) if _is_numbers(item) else item for item in items)
    if isinstance(condition, int | float):
        condition = library.full_like(array, condition)
    truth = condition if str(condition.dtype).endswith("bool") else condition != 0
    return library.where(truth, a, b)


def fma(x: Any, y: Any, z: Any) -> Any:
    """x·y + z, rounded once; for tensors, or tensors and numbers."""
    for item in (x, y, z):
        if isinstance(item, Symbol):
            return item.tracer.apply("fma", x, y, z)
    from .fused import fma as definition

    return definition(x, y, z)


def multiply_add(x: Any, y: Any, z: Any, fused: bool = False) -> Any:
    """z + x·y of a number y: with two roundings, or ``fused`` with one (``fma``)."""
    return fma(x, y, z) if fused else z + y * x


def lerp(a: Any, b: Any, t: Any, fused: bool = False) -> Any:
    """a + t·(b − a) for |t| < ½, else b − (1 − t)·(b − a), of a number t, which is rounded to float32 first: what
    ``torch.lerp`` computes; ``fused`` with one rounding of each product and sum, as it does on AVX2 and later."""
    t = of_numbers(single, t)
    if abs(t) < 0.5:
        return multiply_add(b - a, t, a, fused)
    return fma(b - a, t - 1, b) if fused else b - (b - a) * (1 - t)


# ---- reductions


def sum(x: Any, axis: int | None = None) -> Any:
    """Σ x, in float64 and in the order that docs/numerics.md gives."""
    return _reduced("sum", axis, x)


def dot(a: Any, b: Any, axis: int | None = None) -> Any:
    """Σ a·b, every product and sum in float64, in the order that docs/numerics.md gives."""
    return _reduced("dot", axis, a, b)


def norm(x: Any, axis: int | None = None) -> Any:
    """The Euclidean norm, √Σ x²."""
    return sqrt(_reduced("dot", axis, x, x))


def mean(x: Any, axis: int | None = None) -> Any:
    """Σ x / n, of n elements; NaN of none."""
    return _reduced("sum", axis, x) / _reduced("count", axis, x)


# ---- of what reductions give, and of parameters


def sin(x: Any) -> Any:
    """The sine of x radians; NaN for an infinite x."""
    return _scalar("sin", x)


def cos(x: Any) -> Any:
    """The cosine of x radians; NaN for an infinite x."""
    return _scalar("cos", x)


def acos(x: Any) -> Any:
    """The angle from 0 to π whose cosine is x; NaN for |x| > 1."""
    return _scalar("acos", x)


def of_numbers(function: Callable[..., float], *args: Any) -> Any:
    """A Python function of parameters alone, evaluated for each set of numbers."""
    return Scalar(function, *args) if any(isinstance(arg, Scalar) for arg in args) else function(*args)


def rounded(value: Any, tensor: Any) -> Any:
    """What a reduction gives as an element of ``tensor``'s arithmetic: further operations on it are elementwise."""
    if isinstance(value, Value):
        return value.tracer.lift(value)
    return value.beside(tensor) if _is_numbers(value) else value


def single(x: float) -> float:
    """The float32 nearest to a number."""
    import struct

    nearest: float = struct.unpack("f", struct.pack("f", x))[0]
    return nearest


# ---- how


def _along(axis: int | None) -> int:
    if axis not in (None, 0, -1):
        raise TypeError(f"a reduction runs over a tensor, or along axis 0 or -1, not {axis!r}")
    return ALL if axis is None else FIRST if axis == 0 else LAST


def _reduced(op: str, axis: int | None, *args: Any) -> Any:
    along = _along(axis)
    for item in args:
        if isinstance(item, Symbol):
            symbols = () if op == "count" else tuple(item.tracer.lift(arg) for arg in args)
            return item.tracer.reduce(op, along, *symbols)
    if any(isinstance(item, Value | Scalar | int | float) for item in args):
        raise TypeError(f"a method's body takes the {op} of a single number; a reduction needs a tensor")
    from .reductions import reduced

    return reduced(op, along, *args)


def _traced(op: str, of_numbers: Callable[..., float], *args: Any) -> Any:
    """The operation on symbols, reduced values, parameters and plain numbers; None where the arguments are arrays."""
    for item in args:
        if isinstance(item, Symbol):
            return item.tracer.apply(op, *args)
    for item in args:
        if isinstance(item, Value):
            return item.tracer.scalar(op, *args)
    if any(isinstance(item, Scalar) for item in args):
        return Scalar(of_numbers, *args)
    if all(isinstance(item, int | float) for item in args):
        return float(of_numbers(*args))
    if all(isinstance(item, int | float) or _is_numbers(item) for item in args):
        from .reductions import each

        return each(of_numbers, *args)
    return None


def _function(op: str, *args: Any) -> Any:
    """exp, log or pow."""
    from . import scalars

    made = _traced(op, getattr(scalars, op), *args)
    if made is not None:
        return made
    from .reductions import on_arrays

    return on_arrays(op, *(_as_arrays(*args) if len(args) == 2 else args))


def _scalar(op: str, *args: Any) -> Any:
    for item in args:
        if isinstance(item, Symbol):
            raise TypeError(f"a method's body takes the {op} of a tensor; {op} is for parameters and reduced values")
    from . import scalars

    made = _traced(op, getattr(scalars, op), *args)
    if made is None:
        from .reductions import each

        return each(getattr(scalars, op), *args)
    return made


def _sign(x: float) -> float:
    return x if math.isnan(x) else float(x > 0) - float(x < 0)


def _extreme(op: str, wins: Callable[[Any, Any], Any], a: Any, b: Any, axis: int | None) -> Any:
    """``a`` where it wins against b or is NaN, else b; of one argument the reduction."""
    if b is None:
        return _reduced(op, axis, a)

    def of_numbers(x: float, y: float) -> float:
        return x if wins(x, y) or math.isnan(x) else y

    made = _traced(op, of_numbers, a, b)
    if made is not None:
        return made
    x, y = _as_arrays(a, b)
    return where(wins(x, y) | _library(x).isnan(x), x, y)


def _as_arrays(a: Any, b: Any) -> tuple[Any, Any]:
    """Both as arrays of one kind: a number takes the other's dtype."""
    if _is_numbers(a) or _is_numbers(b):
        return (a.beside(b), b) if _is_numbers(a) else (a, b.beside(a))
    if isinstance(a, int | float):
        return _library(b).full_like(b, a), b
    if isinstance(b, int | float):
        return a, _library(a).full_like(a, b)
    return a, b


def _is_numbers(item: Any) -> bool:
    """Whether it is what a reduction of arrays gives (``reductions.Numbers``, which needs NumPy)."""
    return hasattr(type(item), "beside")


def _library(array: Any) -> Any:
    """NumPy or torch, whichever made the array."""
    import importlib

    return importlib.import_module("torch" if type(array).__module__.split(".")[0] == "torch" else "numpy")
