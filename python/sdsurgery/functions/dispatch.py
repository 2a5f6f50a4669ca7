"""What a function is called with: symbols, reduced values, parameters, NumPy arrays, torch tensors or numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..program import ALL, CHANNEL, FIRST, LAST
from ..program.symbols import Scalar, Symbol, Tracer, Value

Axis = int | str | None
"""None for the whole tensor, 0, -1 or "channel"."""
AXES: dict[Axis, int] = {None: ALL, 0: FIRST, -1: LAST, "channel": CHANNEL}


def along_of(axis: Axis) -> int:
    if axis not in AXES:
        found = f"{axis:g}" if isinstance(axis, float) else repr(axis)
        raise TypeError(f'a reduction runs over a tensor, along axis 0 or -1, or "channel", not {found}')
    return AXES[axis]


def axis_of(axis: Any) -> Axis:
    along_of(axis)
    found: Axis = axis
    return found


def tracer_of(x: Any) -> Tracer | None:
    """Of a symbol, while a body is traced."""
    if is_single(x):
        raise TypeError("a tensor is needed, and this is a single number")
    return x.tracer if isinstance(x, Symbol) else None


def length(along: int, x: Any) -> Any:
    tracer = tracer_of(x)
    if tracer is not None:
        return tracer.reduce("length", along)
    from ..definitions.reductions import length

    return length(x, along)


def reduced(op: str, axis: Axis, *args: Any) -> Any:
    along = along_of(axis)
    for item in args:
        if isinstance(item, Symbol):
            symbols = () if op == "count" else tuple(item.tracer.lift(arg) for arg in args)
            return item.tracer.reduce(op, along, *symbols)
    if any(map(is_single, args)):
        raise TypeError("a reduction needs a tensor, and this is a single number")
    from ..definitions.reductions import reduced

    return reduced(op, along, *args)


def traced(op: str, of_numbers: Callable[..., float], *args: Any) -> Any:
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
    if all(isinstance(item, int | float) or is_numbers(item) for item in args):
        from ..definitions.reductions import each

        return each(of_numbers, *args)
    return None


def function(op: str, *args: Any) -> Any:
    """exp, log or pow."""
    from ..definitions import scalars

    made = traced(op, getattr(scalars, op), *args)
    if made is not None:
        return made
    from ..definitions.reductions import on_arrays

    return on_arrays(op, *(as_arrays(*args) if len(args) == 2 else args))


def scalar(op: str, *args: Any) -> Any:
    for item in args:
        if isinstance(item, Symbol):
            raise TypeError("a single number is needed (a parameter, or what a reduction gives), and this is a tensor")
    from ..definitions import scalars

    made = traced(op, getattr(scalars, op), *args)
    if made is None:
        from ..definitions.reductions import each

        return each(getattr(scalars, op), *args)
    return made


def as_arrays(a: Any, b: Any) -> tuple[Any, Any]:
    """Both as arrays of one kind: a number takes the other's dtype."""
    if is_numbers(a) or is_numbers(b):
        return (a.beside(b), b) if is_numbers(a) else (a, b.beside(a))
    if isinstance(a, int | float):
        return library_of(b).full_like(b, a), b
    if isinstance(b, int | float):
        return a, library_of(a).full_like(a, b)
    return a, b


def is_single(item: Any) -> bool:
    """Whether it is a number, and not a 0-d array's element (NumPy's float64 is a float too)."""
    return isinstance(item, Value | Scalar | int | float) and not hasattr(item, "dtype")


def is_numbers(item: Any) -> bool:
    """Whether it is what a reduction of arrays gives (``reductions.Numbers``, which needs NumPy)."""
    return hasattr(type(item), "beside")


def library_of(array: Any) -> Any:
    """NumPy or torch, whichever made the array."""
    import importlib

    return importlib.import_module("torch" if type(array).__module__.split(".")[0] == "torch" else "numpy")
