"""Reductions of a method's body, by definition: over NumPy arrays (and, by way of them, torch tensors).

This is what ``functions.dot`` and the like compute where a body is called with arrays, and what the reference backend
computes. ``csrc/stages.h`` computes the same bits natively. Elements are widened to float64, exactly; products and sums
are rounded to float64 one by one, in the order of docs/numerics.md; expressions of what a reduction gives are evaluated
in float64 by IEEE 754, so that nothing raises on a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..program import ALL, CHANNEL, EACH, FIRST, INPUTS, SECOND
from . import draws, elementary, scalars
from .memory import needs

LANES, BLOCK, CHUNK = 8, 1024, 1 << 18  # of elements; csrc/reduce.h has the same numbers


def ordered_sum(terms: np.ndarray) -> np.ndarray:
    """Sums along the last axis of float64 ``terms`` [rows, n], each in the order that docs/numerics.md gives."""
    rows, count = terms.shape
    total = np.zeros(rows)
    for first in range(0, count, CHUNK):
        part = terms[:, first : first + CHUNK]
        part = np.pad(part, ((0, 0), (0, -part.shape[1] % BLOCK)))
        steps = part.reshape(rows, part.shape[1] // BLOCK, BLOCK // LANES, LANES)
        lanes = np.zeros((rows, steps.shape[1], LANES))
        for step in range(BLOCK // LANES):
            lanes += steps[:, :, step]
        lanes = lanes[..., :4] + lanes[..., 4:]
        lanes = lanes[..., :2] + lanes[..., 2:]
        chunk = np.zeros(rows)
        for block in np.moveaxis(lanes[..., 0] + lanes[..., 1], 1, 0):
            chunk = chunk + block
        total = total + chunk
    return total


def reduced_rows(op: str, *operands: np.ndarray) -> np.ndarray:
    """A reduction along the last axis of float64 [rows, n] operands; a NaN is the canonical one, a zero is +0."""
    with np.errstate(all="ignore"):
        if op == "count":
            found = np.full(len(operands[0]), float(operands[0].shape[1]))
        elif op in ("sum", "dot"):
            found = ordered_sum(operands[0] if op == "sum" else operands[0] * operands[1])
        else:
            start, library = (np.inf, np.minimum) if op == "minimum" else (-np.inf, np.maximum)
            found = library.reduce(operands[0], axis=1, initial=start) + 0.0
    return np.where(np.isnan(found), scalars.NAN, found)


def lines_of(x: np.ndarray, along: int) -> np.ndarray:
    """An array as [lines, n], where each line is what a reduction ``along`` runs over."""
    if along == ALL or x.ndim == 0:
        return x.reshape(1, -1)
    if along == FIRST:
        return x.reshape(x.shape[0], math.prod(x.shape[1:])).T
    if along == CHANNEL:
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if along == INPUTS:
        return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) if x.ndim > 1 else x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def places(shape: tuple[int, ...], along: int, index: np.ndarray) -> np.ndarray:
    """The indexes along an axis of the elements at ``index`` of a tensor."""
    if not shape:
        return index * 0
    axis = {FIRST: 0, SECOND: min(1, len(shape) - 1)}.get(along, len(shape) - 1)
    found: np.ndarray = index // math.prod(shape[axis + 1 :]) % shape[axis]
    return found


def line_numbers(shape: tuple[int, ...], along: int, index: np.ndarray) -> np.ndarray:
    """Which of the lines of ``lines_of`` the elements at ``index`` lie in."""
    if along == EACH:
        return index
    if along == ALL or not shape:
        return index * 0
    if along == FIRST:
        return index % math.prod(shape[1:])
    if along == INPUTS:
        return places(shape, SECOND, index)
    return index // (math.prod(shape[1:]) if along == CHANNEL else shape[-1])


def kth_and_last(x: np.ndarray, k: float) -> tuple[float, float]:
    """The k-th largest of flat elements, and the last index of its equals that belongs to the k largest, by sorting:
    the definition of ``csrc/select.h``."""
    if not (k >= 1 and x.size):
        return math.inf, -1.0
    if k > x.size:
        return -math.inf, float(x.size)
    number = int(k)
    nan = np.isnan(x)
    least = np.nan if number <= nan.sum() else np.sort(x[~nan])[::-1][number - 1 - nan.sum()] + 0.0
    equal = np.flatnonzero(nan if np.isnan(least) else x == least)
    above = 0 if np.isnan(least) else int((x > least).sum() + nan.sum())
    kept = number - above
    return float(least), math.inf if kept == equal.size else float(equal[kept - 1])


class Numbers:
    """What a reduction of arrays gives: float64, of a shape that broadcasts against the tensor. A tensor that it meets
    keeps its dtype, to which the numbers are rounded; among themselves they follow IEEE 754."""

    __array_ufunc__ = None  # NumPy leaves its operators to this class
    __slots__ = ("values",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.asarray(values, np.float64)

    def beside(self, tensor: Any) -> Any:
        """The numbers in the tensor's kind and dtype."""
        if isinstance(tensor, np.ndarray | np.generic):
            with np.errstate(over="ignore"):
                return self.values.astype(tensor.dtype)
        import torch

        return torch.as_tensor(self.values, device=tensor.device).to(tensor.dtype)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __float__(self) -> float:
        return float(self.values)


def _operator(name: str, reflected: bool) -> Callable[[Numbers, Any], Any]:
    def apply(self: Numbers, other: Any) -> Any:
        if isinstance(other, Numbers | int | float) and not hasattr(other, "dtype"):
            pair = (self.values, other.values if isinstance(other, Numbers) else np.float64(other))
            with np.errstate(all="ignore"):
                return Numbers(_OPERATIONS[name](*reversed(pair) if reflected else pair))
        if "bool" in str(other.dtype):  # a comparison: 1 or 0
            other = other.astype(np.float32) if isinstance(other, np.ndarray | np.generic) else other.float()
        pair = (self.beside(other), other)
        with np.errstate(all="ignore"):
            return _ON_TENSORS[name](*reversed(pair) if reflected else pair)

    return apply


_ON_TENSORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "truediv": lambda a, b: a / b,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
}  # fmt: skip
_OPERATIONS = {**_ON_TENSORS, "pow": lambda a, b: _each(scalars.pow, a, b)}
for _name in _OPERATIONS:
    setattr(Numbers, f"__{_name}__", _operator(_name, False))
    setattr(Numbers, f"__r{_name}__", _operator(_name, True))
setattr(Numbers, "__neg__", lambda self: Numbers(-self.values))  # noqa: B010
setattr(Numbers, "__abs__", lambda self: Numbers(np.abs(self.values)))  # noqa: B010


def reduced(op: str, along: int, *operands: Any) -> Numbers:
    """A reduction of arrays of one shape, or tensors."""
    arrays = [_array(item) for item in operands]
    shape = np.broadcast_shapes(*(item.shape for item in arrays))
    found = reduced_rows(op, *(lines_of(np.broadcast_to(item, shape).astype(np.float64), along) for item in arrays))
    if along == ALL or not shape:
        return Numbers(found[0])
    if along == CHANNEL:
        return Numbers(found.reshape((shape[0], *(1 for _ in shape[1:]))))
    return Numbers(found.reshape((1, *shape[1:]) if along == FIRST else (*shape[:-1], 1)))


def sum_values(x: Numbers) -> Numbers:
    """The sum of the numbers, in the order of a tensor's."""
    return Numbers(reduced_rows("sum", x.values.reshape(1, -1))[0])


def length(x: Any, along: int) -> Numbers:
    """The number of elements along an axis, or (ALL) of axes."""
    shape = tuple(x.shape)
    if along == ALL or not shape:
        return Numbers(np.asarray(len(shape) if along == ALL else 1))
    return Numbers(np.asarray(shape[{FIRST: 0, SECOND: min(1, len(shape) - 1)}.get(along, -1)]))


def selected(x: Any, k: Any) -> tuple[Numbers, Numbers]:
    """The k-th largest of an array or tensor, and the last index of its equals that belongs to the k largest."""
    found = kth_and_last(_array(x).reshape(-1), float(k))
    return Numbers(np.asarray(found[0])), Numbers(np.asarray(found[1]))


def largest_of(x: Any, k: Any, all_ties: bool) -> Any:
    """Whether each element is among the k largest: those above the k-th, and of its equals the first (or all)."""
    least, last = selected(x, k)
    index = np.arange(math.prod(x.shape)).reshape(x.shape)
    first: Any = (index <= last.values) | all_ties
    library: Any = np
    if not isinstance(x, np.ndarray | np.generic):
        import torch

        library, first = torch, torch.from_numpy(np.asarray(first)).to(x.device)
    return (x > least) | ((x == least) & first) | library.isnan(x)


def index_of(x: Any, along: int) -> Any:
    """The elements' indexes along an axis."""
    return _like(x, places(tuple(x.shape), along, np.arange(math.prod(x.shape))))


def whole_of(function: Callable[..., Any], arrays: Any, numbers: Any) -> Any:
    """A function of whole NumPy arrays, or tensors."""
    given = [_array(item, keep=True) for item in arrays]
    return _like(arrays[0], called(function, given, [float(number) for number in numbers]).reshape(-1))


def called(function: Callable[..., Any], arrays: Any, numbers: Any) -> np.ndarray:
    """What the function makes of arrays of one shape. TypeError unless it is of that shape."""
    with np.errstate(all="ignore"):
        found = np.asarray(function(*arrays, *numbers))
    if found.shape != arrays[0].shape:
        raise TypeError(f"a function of tensors of shape {arrays[0].shape} returned {found.shape}")
    return found.astype(arrays[0].dtype, copy=False)


def on_buffers(function: Callable[..., Any]) -> Callable[..., None]:
    """The same on the native engine's memory: called with the arguments' buffers, numbers, the shape, whether they hold
    float64, and the buffer to fill."""

    def call(buffers: Any, numbers: Any, shape: Any, wide: bool, out: Any) -> None:
        kind = np.float64 if wide else np.float32
        arrays = [np.frombuffer(buffer, kind).reshape(shape) for buffer in buffers]
        np.frombuffer(out, kind).reshape(shape)[...] = called(function, arrays, numbers)

    return call


@needs(16)
def ranks(x: np.ndarray, axis: float) -> np.ndarray:
    """The ranks of the elements, from 1: in the tensor (0), or along axis 1 (a tensor of one axis is a row) or −1."""
    along = min(1, x.ndim - 1) if axis == 1 else x.ndim - 1
    lines = x.reshape(-1) if axis == 0 else np.moveaxis(np.atleast_1d(x), along, -1)
    order = np.argsort(lines, axis=-1, kind="stable")
    found = np.empty(lines.shape, x.dtype)
    np.put_along_axis(found, order, np.arange(1, lines.shape[-1] + 1, dtype=x.dtype), axis=-1)
    return found.reshape(x.shape) if axis == 0 or x.ndim == 0 else np.moveaxis(found, -1, along)


def drawn(kind: str, x: Any, key: tuple[float, float], draw: int) -> Any:
    """Random numbers for the elements of a tensor without a name."""
    return _like(x, getattr(draws, kind)(key, draw, 0, math.prod(x.shape)))


def _like(x: Any, flat: np.ndarray) -> Any:
    """Elements in x's kind, dtype and shape."""
    if isinstance(x, np.ndarray | np.generic):
        return flat.astype(x.dtype).reshape(x.shape)
    import torch

    return torch.from_numpy(flat.astype(np.float64)).to(x.dtype).reshape(x.shape).to(x.device)


def each(function: Callable[..., float], *args: Any) -> Numbers:
    """A scalar function of numbers, one by one."""
    arrays = [arg.values if isinstance(arg, Numbers) else np.array(arg, np.float64) for arg in args]
    return Numbers(_each(function, *arrays))


def _each(function: Callable[..., float], *args: np.ndarray) -> np.ndarray:
    args = tuple(np.broadcast_arrays(*args))
    flat = zip(*(arg.ravel().tolist() for arg in args), strict=True)
    return np.array([function(*values) for values in flat]).reshape(args[0].shape)


def on_arrays(op: str, *args: Any) -> Any:
    """exp, log or pow of arrays, or tensors, of one kind; float64 ones by the functions of scalars."""
    arrays = [_array(item, keep=True) for item in args]
    dtype = np.result_type(*arrays)
    if dtype == np.float64:
        made = elementary.correctly_rounded(op, *(array.astype(np.float64) for array in arrays))
    else:
        made = getattr(elementary, op)(*(array.astype(np.float32) for array in arrays)).astype(dtype)
    if isinstance(args[0], np.ndarray | np.generic):
        return made
    import torch

    return torch.from_numpy(np.ascontiguousarray(made)).to(args[0].device)


def _array(item: Any, *, keep: bool = False) -> np.ndarray:
    if isinstance(item, np.ndarray | np.generic):
        return np.asarray(item)
    import torch

    values = item.detach().cpu() if keep else item.detach().to("cpu", torch.float64)
    array: np.ndarray = values.numpy()
    return array
