"""What a method's body may use besides + − × ÷ and comparisons: the same function on symbols, NumPy arrays, torch
tensors and plain numbers.

The definitions are those of the engine (``csrc/program.h``, ``csrc/stages.h``), spelled out where NumPy and torch
differ or leave something open: which zero a minimum gives, what becomes of a NaN, the order of a sum.

A reduction gives one float64 number for the whole tensor, or one for each row along the last axis (``axis=-1``), for
each column along the first (``axis=0``), for each output channel (``axis="channel"``: along all axes but the first).
What it gives is used like a number: in expressions, which are evaluated in
float64, and beside tensors, where it is rounded once to their arithmetic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from .program import ALL, CHANNEL, FIRST, LAST, SECOND, TENSOR, Scalar, Symbol, Tracer, Value

Axis = int | str | None
"""None for the whole tensor, 0, -1 or "channel"."""
_AXES: dict[Axis, int] = {None: ALL, 0: FIRST, -1: LAST, "channel": CHANNEL}

# ---- elementwise


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
    from .definitions import scalars

    made = _traced("sqrt", scalars.sqrt if _is_numbers(x) else math.sqrt, x)
    if made is not None:
        return made
    if hasattr(x, "new_tensor"):  # torch's own root of float32 is an ulp off here and there; one of float64 is not
        return x.double().sqrt().to(x.dtype)
    return _library(x).sqrt(x)


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
    made = _traced("floor", _floor, x)
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
        from .definitions.reductions import each

        return each(lambda truth, x, y: x if truth != 0 else y, condition, a, b)
    arrays = [item for item in items if hasattr(item, "dtype")]
    library = _library(arrays[0])
    array = next((item for item in arrays if "bool" not in str(item.dtype)), None)
    if array is None:
        array = library.ones_like(arrays[0], dtype=library.float32)
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
    from .definitions.fused import fma as definition

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


def sum(x: Any, axis: Axis = None) -> Any:
    """Σ x, in float64 and in the order that docs/numerics.md gives."""
    return _reduced("sum", axis, x)


def dot(a: Any, b: Any, axis: Axis = None) -> Any:
    """Σ a·b, every product and sum in float64, in the order that docs/numerics.md gives."""
    return _reduced("dot", axis, a, b)


def norm(x: Any, axis: Axis = None) -> Any:
    """The Euclidean norm, √Σ x²."""
    return sqrt(_reduced("dot", axis, x, x))


def mean(x: Any, axis: Axis = None) -> Any:
    """Σ x / n, of n elements; NaN of none."""
    return _reduced("sum", axis, x) / _reduced("count", axis, x)


def variance(x: Any, axis: Axis = None) -> Any:
    """The mean of (x − mean)², of the population: divided by n, not n − 1. 0 of equal elements; NaN of none."""
    away = x - mean(x, axis)
    return mean_of_products(away, axis)


def mean_of_products(x: Any, axis: Axis = None) -> Any:
    """Σ x² / n, of n elements; NaN of none."""
    return _reduced("dot", axis, x, x) / _reduced("count", axis, x)


def count(condition: Any, axis: Axis = None) -> Any:
    """How many elements are not 0: those for which a condition holds. (``condition`` is no single number.)"""
    return _reduced("sum", axis, where(condition, 1, 0))


def size(x: Any, axis: int | str | None = None) -> Any:
    """The number of elements: of the tensor, or along axis 0, 1 or −1, or of an output channel. Of a tensor of one axis
    that one is axis 1 too; without axes it is 1."""
    if axis == 1:
        return _length(SECOND, x)
    return _length(FIRST, x) if axis == 0 else _length(LAST, x) if axis == -1 else _reduced("count", _axis(axis), x)


def axes(x: Any) -> Any:
    """The number of axes: 4 for a convolution's weight, 1 for a bias, 0 for a number."""
    return _length(ALL, x)


# ---- selection, exact


def kth_largest(x: Any, k: Any) -> Any:
    """The k-th largest element, k from 1 and rounded down; Inf for k < 1, −Inf for k > n. A NaN counts as the
    largest."""
    tracer = _tracer(x)
    if tracer is not None:
        return tracer.select("kth", tracer.lift(x), k)
    from .definitions.reductions import selected

    return selected(x, k)[0]


def quantile(x: Any, q: Any, between: str = "lower") -> Any:
    """The element that a share q, from 0 to 1, of the others lies below: position q·(n − 1) of the sorted elements.

    ``between``: where that is no whole number, the element at the next lower position (``lower``), their middle
    (``midpoint``), or what lies between in that proportion (``linear``).
    """
    place = q * (size(x) - 1)
    lower = floor(place)
    low = kth_largest(x, size(x) - lower)
    if between == "lower":
        return low
    if between not in ("midpoint", "linear"):
        raise TypeError(f"quantile takes the element between two as lower, midpoint or linear, not {between!r}")
    high = kth_largest(x, size(x) - minimum(lower + 1, size(x) - 1))
    share = place - lower if between == "linear" else where(place > lower, 0.5, 0)
    return where(share == 0, low, low + share * (high - low))


def largest(x: Any, k: Any, ties: str = "first") -> Any:
    """1 for the k largest elements (k rounded down), else 0. Of elements equal to the k-th those of lower index come
    first, so that exactly k are chosen; with ``ties="all"`` all of them are. Every NaN is among the chosen."""
    if ties not in ("first", "all"):
        raise TypeError(f"largest takes ties as first or all, not {ties!r}")
    tracer = _tracer(x)
    if tracer is None:
        from .definitions.reductions import largest_of

        return largest_of(x, k, ties == "all")
    if ties == "all":
        return where(x >= kth_largest(x, k), 1, is_nan(x))
    least = tracer.select("top", tracer.lift(x), k)
    return where(x > least, 1, where(x == least, tracer.make("within", ALL, tracer.last_of(least)), is_nan(x)))


# ---- places, and random numbers


def index(x: Any, axis: int) -> Any:
    """The element's index along axis 0, 1 or −1 of x: 0, 1, 2, …. A tensor of one axis is a row, whose axis 1 is its
    only one."""
    if axis not in (0, 1, -1):
        raise TypeError(f"an index runs along axis 0, 1 or -1, not {axis!r}")
    along = {0: FIRST, 1: SECOND, -1: LAST}[axis]
    tracer = _tracer(x)
    if tracer is not None:
        return tracer.make("index", along)
    from .definitions.reductions import index_of

    return index_of(x, along)


def uniform(x: Any, seed: Any, draw: int = 0) -> Any:
    """A random number in [0, 1) for each element of x, keyed by the seed, the tensor's name, the element and the number
    of the draw (docs/numerics.md): the same on every backend, in any order."""
    return _drawn("uniform", x, seed, draw)


def normal(x: Any, seed: Any, draw: int = 0) -> Any:
    """A normally distributed random number of mean 0 and deviation 1 for each element of x, keyed as ``uniform``."""
    return _drawn("normal", x, seed, draw)


def bernoulli(x: Any, p: Any, seed: Any, draw: int = 0) -> Any:
    """1 with probability p (a number, or one for each element), else 0, for each element of x: ``uniform(…) < p``."""
    return uniform(x, seed, draw) < p


def _drawn(kind: str, x: Any, seed: Any, draw: int) -> Any:
    from .definitions.draws import key_word

    key = [Scalar(key_word, seed, TENSOR, word) for word in (0, 1)]
    tracer = _tracer(x)
    if tracer is not None:
        return tracer.make(
            kind,
            ALL,
            *(tracer.once(("key", id(seed) if isinstance(seed, Scalar) else seed, word), key[word]) for word in (0, 1)),
            draw,
        )
    from .definitions.reductions import drawn

    return drawn(kind, x, (key_word(seed, "", 0), key_word(seed, "", 1)), draw)


# ---- whole tensors


def whole(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of NumPy arrays makes of whole tensors: an element for each of theirs.

    ``args`` are tensors, and behind them numbers. The function, which a module must have by name, is called with
    float32 arrays (float64 in such arithmetic) in the tensors' shape, and floats, and returns an array of that shape.
    The tensors are in memory meanwhile, and the result until it is written; a tensor for which that is more than
    ``outline.WHOLE_MEMORY`` is refused. Its bits are NumPy's: the same on every backend, but not on every machine.
    """
    numbers = [item for item in args if _is_single(item) or _is_numbers(item)]
    arrays = args[: len(args) - len(numbers)]
    if any(_is_single(item) or _is_numbers(item) for item in arrays) or not arrays:
        raise TypeError("a function of whole tensors takes tensors first, and numbers behind them")
    for item in arrays:
        if isinstance(item, Symbol):
            return item.tracer.whole(function, arrays, numbers)
    from .definitions.reductions import whole_of

    return whole_of(function, arrays, numbers)


def rank(x: Any, axis: int | None = None) -> Any:
    """The rank of each element by its value, 1 for the smallest, in the tensor or along axis 1 or −1 of it; of equal
    ones the first has the lower rank, and a NaN is above everything. (``whole`` says what it needs.)"""
    from .definitions.reductions import ranks

    if axis not in (None, 1, -1):
        raise TypeError(f"a rank is one in the tensor, or along axis 1 or -1, not {axis!r}")
    return whole(ranks, x, 0 if axis is None else axis)


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


def _along(axis: Axis) -> int:
    if axis not in _AXES:
        raise TypeError(f'a reduction runs over a tensor, along axis 0 or -1, or "channel", not {axis!r}')
    return _AXES[axis]


def _axis(axis: Any) -> Axis:
    _along(axis)
    found: Axis = axis
    return found


def _tracer(x: Any) -> Tracer | None:
    """Of a symbol, while a body is traced."""
    if _is_single(x):
        raise TypeError("a method's body asks a single number for what only a tensor has")
    return x.tracer if isinstance(x, Symbol) else None


def _length(along: int, x: Any) -> Any:
    tracer = _tracer(x)
    if tracer is not None:
        return tracer.reduce("length", along)
    from .definitions.reductions import length

    return length(x, along)


def _reduced(op: str, axis: Axis, *args: Any) -> Any:
    along = _along(axis)
    for item in args:
        if isinstance(item, Symbol):
            symbols = () if op == "count" else tuple(item.tracer.lift(arg) for arg in args)
            return item.tracer.reduce(op, along, *symbols)
    if any(map(_is_single, args)):
        raise TypeError(f"a method's body takes the {op} of a single number; a reduction needs a tensor")
    from .definitions.reductions import reduced

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
        from .definitions.reductions import each

        return each(of_numbers, *args)
    return None


def _function(op: str, *args: Any) -> Any:
    """exp, log or pow."""
    from .definitions import scalars

    made = _traced(op, getattr(scalars, op), *args)
    if made is not None:
        return made
    from .definitions.reductions import on_arrays

    return on_arrays(op, *(_as_arrays(*args) if len(args) == 2 else args))


def _scalar(op: str, *args: Any) -> Any:
    for item in args:
        if isinstance(item, Symbol):
            raise TypeError(f"a method's body takes the {op} of a tensor; {op} is for parameters and reduced values")
    from .definitions import scalars

    made = _traced(op, getattr(scalars, op), *args)
    if made is None:
        from .definitions.reductions import each

        return each(getattr(scalars, op), *args)
    return made


def _floor(x: float) -> float:
    return x if x == 0 or not math.isfinite(x) else float(math.floor(x))


def _sign(x: float) -> float:
    return x if math.isnan(x) else float(x > 0) - float(x < 0)


def _extreme(op: str, wins: Callable[[Any, Any], Any], a: Any, b: Any, axis: Axis) -> Any:
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


def _is_single(item: Any) -> bool:
    """Whether it is a number, and not a 0-d array's element (NumPy's float64 is a float too)."""
    return isinstance(item, Value | Scalar | int | float) and not hasattr(item, "dtype")


def _is_numbers(item: Any) -> bool:
    """Whether it is what a reduction of arrays gives (``reductions.Numbers``, which needs NumPy)."""
    return hasattr(type(item), "beside")


def _library(array: Any) -> Any:
    """NumPy or torch, whichever made the array."""
    import importlib

    return importlib.import_module("torch" if type(array).__module__.split(".")[0] == "torch" else "numpy")
