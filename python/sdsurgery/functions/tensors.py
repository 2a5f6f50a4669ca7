"""Functions of whole tensors, which NumPy computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..program.symbols import Symbol
from .dispatch import is_numbers, is_single


def whole(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of NumPy arrays makes of whole tensors: an element for each of theirs.

    ``args`` are tensors, and behind them numbers. The function, which a module must have by name, is called with
    float32 arrays (float64 in such arithmetic) in the tensors' shape, and floats, and returns an array of that shape.
    The tensors are in memory meanwhile, and the result until it is written; a tensor for which that is more than
    ``placing.WHOLE_MEMORY``, with what the function works in if it declares that (``definitions.memory.needs``), is
    refused. Its bits are NumPy's: the same on every backend, but not on every machine.
    """
    numbers = [item for item in args if is_single(item) or is_numbers(item)]
    arrays = args[: len(args) - len(numbers)]
    if any(is_single(item) or is_numbers(item) for item in arrays) or not arrays:
        raise TypeError("a function of whole tensors takes tensors first, and numbers after them")
    for item in arrays:
        if isinstance(item, Symbol):
            return item.tracer.whole(function, arrays, numbers)
    from ..definitions.reductions import whole_of

    return whole_of(function, arrays, numbers)


def rank(x: Any, axis: int | None = None) -> Any:
    """The rank of each element by its value, 1 for the smallest, in the tensor or along axis 1 or −1 of it; of equal
    ones the first has the lower rank, and a NaN is above everything. (``whole`` says what it needs.)"""
    from ..definitions.reductions import ranks

    if axis not in (None, 1, -1):
        raise TypeError(f"a rank runs over the tensor, or along axis 1 or -1, not {axis!r}")
    return whole(ranks, x, 0 if axis is None else axis)
