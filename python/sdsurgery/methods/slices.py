"""Slices: rows of one model within another."""

from __future__ import annotations

import math
from typing import Any

from ..functions import axes, floor, index, of_numbers, size, where, whole
from .registry import Param, method

WIDTH = Param(0.5, "share of the rows that come from B", "[0, 1]", also="width")
START = Param(0.0, "where they begin", "[0, 1]", also="offset")


@method("tensor-sum", inputs="A B", alpha=WIDTH, beta=START)
def tensor_sum(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """Rows ⌊β·N⌋ to ⌊(α + β)·N⌋ of the first axis from B, the others from A.

    "tensor" of supermerger, ``tensor_sum`` of meh. For α + β > 1 the roles change: rows ⌊(α + β − 1)·N⌋ to ⌊β·N⌋ are
    A's. 0-d tensors stay A's. The products are float64: of 10 rows, α = 0.1 and β = 0.7 take none.
    """
    return where(axes(a) == 0, a, sliced(a, b, index(a, 0), bounds(alpha, beta, size(a, 0)), alpha + beta > 1))


@method("tensor-sum-2", inputs="A B", alpha=WIDTH, beta=START)
def tensor_sum_2(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """As tensor-sum, along the second axis of tensors that have one; N is its size above 100, else the first axis'.

    "tensor2" of supermerger.
    """
    several = axes(a) > 1
    count = where(several * (size(a, 1) > 100), size(a, 1), size(a, 0))
    place = where(several, index(a, 1), index(a, 0))
    return where(axes(a) == 0, a, sliced(a, b, place, bounds(alpha, beta, count), alpha + beta > 1))


@method("tensor-sum.round", inputs="A B", width=Param(0.5, "share of the rows that come from B", also="alpha"),
        offset=Param(0.0, "where they begin; it wraps around", also="beta"))  # fmt: skip
def tensor_sum_rounded(a: Any, b: Any, width: float, offset: float) -> Any:
    """As tensor-sum with rounded bounds; a negative width goes backwards, an offset wraps around.

    ``tensor_sum`` of sd-mecha; a 0-d tensor is B's for a width above ½.
    """
    count = size(a, 0)
    first, last, wraps = region(width, offset)
    ends = (to_nearest(first * count), to_nearest(last * count))
    return where(axes(a) == 0, b if width > 0.5 else a, sliced(a, b, index(a, 0), ends, wraps))


def bounds(alpha: float, beta: float, count: Any) -> tuple[Any, Any]:
    """The first row and the one after the last: B's, or A's where the slice goes past the end."""
    first = floor(beta * count)
    if alpha + beta > 1:
        return floor((alpha + beta - 1) * count), first
    return first, floor((alpha + beta) * count)


def sliced(a: Any, b: Any, place: Any, ends: tuple[Any, Any], wraps: bool) -> Any:
    """b within the bounds and a outside, or if it wraps the other way round."""
    within = (place >= ends[0]) * (place < ends[1])
    return where(within, a, b) if wraps else where(within, b, a)


def region(width: float, offset: float) -> tuple[float, float, bool]:
    """The ends of a slice as shares of the rows, and whether A's rows lie within them."""
    if width < 0:
        width, offset = -width, offset + width
    width = min(width, 1.0)
    if offset < 0:
        offset = 1 + offset - int(offset)
    offset = math.fmod(offset, 1.0)
    if width + offset <= 1.0:
        return offset, width + offset, False
    return width + offset - 1, offset, True


def to_nearest(x: Any) -> Any:
    """The nearest integer, of two the even one."""
    up = floor(x + 0.5)
    odd = up - 2 * floor(up / 2)
    return where((up - x == 0.5) * odd, up - 1, up)


# ---- values of A, in B's order


@method("top-k-tensor-sum", inputs="A B", alpha=Param(1.0, "share of the magnitudes that are moved", "[0, 1]"),
        beta=Param(0.0, "where they begin, from the smallest", "[0, 1]"))  # fmt: skip
def top_k_tensor_sum(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """A's values in the order of B's: the r-th smallest where B has its r-th; A where that one's magnitude is outside.

    ``top_k_tensor_sum`` of meh. Magnitudes are those in (k₁, k₂], the ⌊·⌉-th smallest of A at β and α + β of them.
    """
    return reordered(a, b, alpha, beta, closed=0.0)


@method("top-k-tensor-sum.le", inputs="A B", width=Param(1.0, "share of the magnitudes that are moved", also="alpha"),
        offset=Param(0.0, "where they begin, from the smallest; it wraps around", also="beta"))  # fmt: skip
def top_k_tensor_sum_le(a: Any, b: Any, width: float, offset: float) -> Any:
    """As top-k-tensor-sum, of the magnitudes in [k₁, k₂].

    ``top_k_tensor_sum`` of sd-mecha.
    """
    return reordered(a, b, width, offset, closed=1.0)


def reordered(a: Any, b: Any, width: float, offset: float, closed: float) -> Any:
    from ..definitions.orders import top_k_of

    return whole(top_k_of, a, b, *ends_of(width, offset), closed)


def ends_of(width: Any, offset: Any) -> list[Any]:
    """``region`` as numbers, of parameters."""
    return [of_numbers(lambda w, o, at=at: float(region(w, o)[at]), width, offset) for at in range(3)]
