"""Products of an adapter's factors, by definition: over NumPy arrays, in the order that every backend follows.

All of it is float32; every operation is rounded on its own, nothing is fused. A product of factors is summed over the
rank from its first term on, one term after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..operands.low_rank import LowRank, Matrix
from .decoding import Numbers

Array = Any  # a NumPy array of floats


def product(left: Array, right: Array) -> Array:
    """``left · right`` of [rows, rank] and [rank, columns]: the terms of every element added in the order of the rank,
    each product and each sum rounded to the arrays' type. This order is a promise: native kernels follow it."""
    total: Array = left[:, :1] * right[:1]
    for k in range(1, left.shape[1]):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total


def computed(made: LowRank, numbers: Numbers) -> Array:
    """All of a computed operand, float32, flat; ``start`` is not left out."""
    left, place = values_of(made.left, numbers), made.place
    found = np.zeros((place.rows, place.columns), np.float32)
    part = found[place.first : place.first + made.rows, : made.columns]
    if made.kind == "by_row":
        part[...] = left.reshape(-1, 1)
    elif made.kind == "by_column":
        part[...] = np.repeat(left.reshape(-1), made.columns // left.size)
    elif made.kind == "matrix":
        part[...] = left
    else:
        assert made.right is not None
        right = values_of(made.right, numbers)
        part[...] = product(left, right) if made.kind == "product" else np.kron(left, right)
    return found.reshape(-1)


def values_of(matrix: Matrix, numbers: Numbers) -> Array:
    """A factor, float32."""
    made = _MADE[matrix.form](matrix, *(numbers(part) for part in matrix.parts))
    return made.T if matrix.turned else made


def _turned_product(matrix: Matrix, left: Array, core: Array, right: Array) -> Array:
    made = with_kernel(core.reshape(matrix.rank, matrix.inner, -1), right.reshape(matrix.inner, -1))
    return product(left.reshape(matrix.rank, -1).T, made)


def _sparse(matrix: Matrix, places: Array, values: Array) -> Array:
    return scattered(places.reshape(2, -1), values, (matrix.rows, matrix.columns))


_MADE: dict[str, Callable[..., Array]] = {
    "stored": lambda matrix, all_of_it: all_of_it.reshape(matrix.rows, matrix.columns),
    "product": lambda matrix, a, b: product(a.reshape(matrix.rows, -1), b.reshape(-1, matrix.columns)),
    "with_kernel": lambda matrix, core, right: with_kernel(
        core.reshape(matrix.rows, matrix.inner, -1), right.reshape(matrix.inner, -1)
    ),
    "turned_product": _turned_product,
    "sparse": _sparse,
}


def with_kernel(core: Array, right: Array) -> Array:
    """The right factor [rank, in·kh·kw] of a Tucker form: ``Σⱼ core[i, j, y, x] · right[j, q]``."""
    rank, inner = core.shape[:2]
    taps = core.reshape(rank, inner, -1)
    left = np.moveaxis(taps, 1, 2).reshape(-1, inner)  # [(i, tap), j]
    made = product(left, right.reshape(inner, -1)).reshape(rank, taps.shape[2], -1)
    return np.moveaxis(made, 1, 2).reshape(rank, -1)


def scattered(places: Array, values: Array, shape: tuple[int, int]) -> Array:
    """Values at places [2, n] of a matrix of zeros, one after the other."""
    found = np.zeros(shape, np.float32)
    rows, columns = places.astype(np.int64)
    if len(rows) and not (
        rows.min() >= 0 and rows.max() < shape[0] and columns.min() >= 0 and columns.max() < shape[1]
    ):
        raise ValueError("an adapter's factors do not fit")
    np.add.at(found, (rows, columns), values.reshape(-1))
    return found
