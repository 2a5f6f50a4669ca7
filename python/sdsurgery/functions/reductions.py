"""What a body reduces: over a tensor, or along an axis."""

from __future__ import annotations

from typing import Any

from ..program import ALL, FIRST, LAST, SECOND
from ..program.symbols import Value
from .dispatch import Axis, axis_of, is_numbers, length, reduced
from .elementwise import sqrt, where


def sum(x: Any, axis: Axis = None) -> Any:
    """Σ x, in float64 and in the order that docs/numerics.md gives. Of what a reduction gives for each row, column or
    channel the sum of these numbers."""
    if axis is None and isinstance(x, Value):
        return x.tracer.sum_values(x)
    if axis is None and is_numbers(x):
        from ..definitions.reductions import sum_values

        return sum_values(x)
    return reduced("sum", axis, x)


def dot(a: Any, b: Any, axis: Axis = None) -> Any:
    """Σ a·b, every product and sum in float64, in the order that docs/numerics.md gives."""
    return reduced("dot", axis, a, b)


def norm(x: Any, axis: Axis = None) -> Any:
    """The Euclidean norm, √Σ x²."""
    return sqrt(reduced("dot", axis, x, x))


def mean(x: Any, axis: Axis = None) -> Any:
    """Σ x / n, of n elements; NaN of none."""
    return reduced("sum", axis, x) / reduced("count", axis, x)


def variance(x: Any, axis: Axis = None) -> Any:
    """The mean of (x − mean)², of the population: divided by n, not n − 1. 0 of equal elements; NaN of none."""
    away = x - mean(x, axis)
    return mean_of_products(away, axis)


def mean_of_products(x: Any, axis: Axis = None) -> Any:
    """Σ x² / n, of n elements; NaN of none."""
    return reduced("dot", axis, x, x) / reduced("count", axis, x)


def count(condition: Any, axis: Axis = None) -> Any:
    """How many elements are not 0: those for which a condition holds. (``condition`` is no single number.)"""
    return reduced("sum", axis, where(condition, 1, 0))


def size(x: Any, axis: int | str | None = None) -> Any:
    """The number of elements: of the tensor, or along axis 0, 1 or −1, or of an output channel. Of a tensor of one axis
    that one is axis 1 too; without axes it is 1."""
    if axis == 1:
        return length(SECOND, x)
    return length(FIRST, x) if axis == 0 else length(LAST, x) if axis == -1 else reduced("count", axis_of(axis), x)


def axes(x: Any) -> Any:
    """The number of axes: 4 for a convolution's weight, 1 for a bias, 0 for a number."""
    return length(ALL, x)
