"""What a tensor is multiplied by, by definition: over NumPy arrays, in the order of ``csrc/mixing.h``.

Formulas of the rotations: KohakuBlueleaf/LyCORIS 4.1.3 ``lycoris/functional/{diag_oft,boft}.py``; of the constraint
kohya-ss/sd-scripts 48d368f ``networks/oft.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..operands.mixing import Mixing
from .decoding import Numbers
from .products import product, values_of

Array = Any  # a NumPy array of the run's float type


def mixed(what: Mixing, tensor: Array, numbers: Numbers) -> Array:
    """All of a tensor, flat, with its matrix multiplied."""
    place = what.place
    found = tensor.reshape(place.rows, place.columns).copy()
    rows, columns = (what.columns, what.rows) if what.turned else (what.rows, what.columns)
    part = found[place.first : place.first + rows, :columns]
    matrix = part.T if what.turned else part
    left = values_of(what.left, numbers)
    if what.kind == "inputs":
        assert what.right is not None
        made = through(matrix, left, values_of(what.right, numbers), what.size)
    else:
        blocks = left.reshape(-1, what.size, what.size)
        made = turned(what.kind, blocks, matrix, what.limit)
    part[...] = made.T if what.turned else made
    return found.reshape(-1)


def through(matrix: Array, left: Array, right: Array, taps: int) -> Array:
    """Rows [rows, inputs · taps] through ``left`` [inputs, r] and ``right`` [r, inputs], at every place of a kernel."""
    lines = np.moveaxis(matrix.reshape(len(matrix), -1, taps), 1, 2)  # [row, tap, input]
    flat = lines.reshape(-1, lines.shape[2])
    made = product(product(flat, left.astype(flat.dtype)), right.astype(flat.dtype))
    return np.moveaxis(made.reshape(lines.shape), 2, 1).reshape(matrix.shape)


def turned(kind: str, blocks: Array, matrix: Array, limit: float) -> Array:
    """Rows [rows, columns] rotated by ``blocks`` [n, size, size]: all levels of a butterfly one after the other."""
    real, size = matrix.dtype, blocks.shape[-1]
    wide = blocks.astype(np.float64)
    turns = wide if kind == "given" else rotations(wide, limit)
    turns = (turns if kind == "butterfly" else np.swapaxes(turns, -1, -2)).astype(real)
    made = matrix
    for level in range(len(blocks) * size // len(matrix)):
        own = turns[level * len(matrix) // size :][: len(matrix) // size]
        half = 2**level * size // 2 if kind == "butterfly" else 0
        made = rotated(own, made, half)
    return made


def rotated(turns: Array, matrix: Array, half: int = 0) -> Array:
    """Blocks of rows, each turned: ``Σⱼ turn[n, i, j] · rows[n, j, :]``, added in the order of j. ``half``, where not
    0: they are taken in turn from both halves of 2 · half rows."""
    columns, size = matrix.shape[1], turns.shape[-1]
    if half:
        matrix = np.swapaxes(matrix.reshape(-1, 2, half, columns), 1, 2)
    blocks = matrix.reshape(-1, size, columns)
    total: Array = turns[:, :, :1] * blocks[:, :1]
    for j in range(1, size):
        total = total + turns[:, :, j : j + 1] * blocks[:, j : j + 1]
    if half:
        total = np.swapaxes(total.reshape(-1, half, 2, columns), 1, 2)
    return total.reshape(-1, columns)


def rotations(blocks: np.ndarray, limit: float) -> np.ndarray:
    """R = (I + Q)(I − Q)⁻¹ with Q = B − Bᵀ of float64 blocks [n, b, b], by Gaussian elimination without pivots: the
    symmetric part of I ± Q is I, so no pivot is below 1. A ``limit`` above 0 bounds the norm of all of Q together
    (OFT's constraint)."""
    with np.errstate(all="ignore"):
        skew = blocks - np.swapaxes(blocks, -1, -2)
        if limit > 0:
            norm = float(np.sqrt(np.add.accumulate((skew * skew).reshape(-1))[-1])) + 1e-8
            skew = skew * (min(norm, limit) / norm)
        eye, size = np.eye(blocks.shape[-1]), blocks.shape[-1]
        left, made = eye + skew, eye - skew  # left · Rᵀ = made
        for k in range(size):
            factor = left[:, k + 1 :, k : k + 1] / left[:, k : k + 1, k : k + 1]
            left[:, k + 1 :, k + 1 :] -= factor * left[:, k : k + 1, k + 1 :]
            made[:, k + 1 :] -= factor * made[:, k : k + 1]
        for k in range(size - 1, -1, -1):
            made[:, k] /= left[:, k, k : k + 1]
            made[:, :k] -= left[:, :k, k : k + 1] * made[:, k : k + 1]
    return np.swapaxes(made, -1, -2)
