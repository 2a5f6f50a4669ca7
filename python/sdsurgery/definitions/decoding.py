"""The definition of ``csrc/encoding.h`` over NumPy arrays, written for clarity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..dtypes import F8_E4M3, F8_E5M2
from ..operands.encoding import PACKED, Companion, Encoding
from . import small_floats

Numbers = Callable[[Companion], np.ndarray]
"""Gives a companion's numbers as float32 (of U8: the integers)."""

# NF4: Dettmers and others, QLoRA (arXiv 2305.14314); FP4: bitsandbytes; E2M1: OCP Microscaling Formats 1.0.
_NF4 = (
    "bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000 "
    "3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000"
)
_FP4 = "00000000 3baaaaab 3f2aaaab 3f800000 3eaaaaab 3f000000 3e2aaaab 3e800000"


def _bits(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32).view(np.float32)


def _signed(magnitudes: np.ndarray) -> np.ndarray:
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


VALUES = {
    "e4m3": small_floats.values(F8_E4M3.format).astype(np.float32),
    "e5m2": small_floats.values(F8_E5M2.format).astype(np.float32),
    "i8": np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32),
    "nf4": _bits(_NF4),
    "fp4": _signed(_bits(_FP4)),
    "e2m1": _signed(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])),
    "i4": np.array([*range(8), *range(-8, 0)], np.float32),
}


def e8m0(codes: np.ndarray) -> np.ndarray:
    """Powers of two by their exponent; 0 and 255 are 0 and Inf, as comfy-kitchen reads them."""
    found = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return np.where(codes == 0, 0, np.where(codes == 255, np.inf, found)).astype(np.float32)


def decoded(encoding: Encoding, codes: bytes, numbers: Numbers) -> np.ndarray:
    """All weights, float32, row by row; ``start`` is not left out."""
    with np.errstate(all="ignore"):
        scales = _scales(encoding, numbers)
        value = VALUES[encoding.coding][_unpacked(encoding, codes)]
        rows, columns = np.arange(encoding.rows), np.arange(encoding.columns)
        per_element = scales[rows // encoding.block[0]][:, columns // encoding.block[1]]
        one_a_row = encoding.block[1] >= encoding.columns
        if encoding.group > 1 and one_a_row:  # sums of codes are exact
            value = _rotated(encoding, value) * per_element
        else:
            value = value * per_element
            if encoding.factor != 1:
                value = value * np.float32(encoding.factor)
            if encoding.group > 1:
                value = _rotated(encoding, value)
        if encoding.by_column is not None:
            value = value * numbers(encoding.by_column)[: encoding.columns]
    return np.ascontiguousarray(value, np.float32).reshape(-1)


def _scales(encoding: Encoding, numbers: Numbers) -> np.ndarray:
    """One for each block, as a grid."""
    stored = numbers(encoding.scales)
    if encoding.map is not None:
        stored = numbers(encoding.map)[stored.astype(np.int64)]
    if encoding.times is not None:
        stored = stored * numbers(encoding.times)[np.arange(stored.size) // encoding.per]
    if encoding.plus:
        stored = stored + np.float32(encoding.plus)
    grid_rows = -(-encoding.rows // encoding.block[0])
    grid_columns = -(-encoding.columns // encoding.block[1])
    if encoding.tiled:
        blocks = -(-encoding.stored_columns // encoding.block[1])
        i, j = np.arange(grid_rows)[:, None], np.arange(grid_columns)[None, :]
        place = (i // 128 * -(-blocks // 4) + j // 4) * 512 + i % 32 * 16 + i % 128 // 32 * 4 + j % 4
        return stored[place]
    return stored[: grid_rows * grid_columns].reshape(grid_rows, grid_columns)


def _unpacked(encoding: Encoding, codes: bytes) -> np.ndarray:
    stored = np.frombuffer(codes, np.uint8)
    if encoding.coding in PACKED:
        low, high = stored & 15, stored >> 4
        pair = (low, high) if encoding.low_first else (high, low)
        stored = np.stack(pair, axis=-1).reshape(encoding.rows, -1)
    return stored.reshape(encoding.rows, -1)[:, : encoding.columns]


def _rotated(encoding: Encoding, value: np.ndarray) -> np.ndarray:
    """Every group times H/√G, by butterflies in float64, the fastest digit first."""
    group, inner = encoding.group, encoding.inner
    x = value.astype(np.float64).reshape(encoding.rows, -1, group, inner)
    step = 1
    while step < group:
        parts = x.reshape(*x.shape[:2], group // (4 * step), 4, step, inner)
        a, b, c, d = (parts[:, :, :, digit] for digit in range(4))
        x = np.stack([((a + b) + c) - d, ((a + b) - c) + d, ((a - b) + c) + d, ((b - a) + c) + d], axis=3)
        x = x.reshape(encoding.rows, -1, group, inner)
        step *= 4
    return (x / math.sqrt(group)).astype(np.float32).reshape(value.shape)
