"""For the tests of reductions: the native kernels and the reference on stored codes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numeric_tools import CODE
from sdsurgery import _native
from sdsurgery.backends import Reduced, reference
from sdsurgery.definitions.conversions import STORAGE
from sdsurgery.dtypes import BF16, BY_NAME, F16, F32, F64, DType

INTEGERS = tuple(BY_NAME[name] for name in ("I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8"))
BLOCK, CHUNK = 1024, 256 * 1024
SIZES = (1, 7, 8, 9, 15, 16, 17, 1023, 1024, 1025, 3000)

Tensor = tuple[np.ndarray, DType]  # codes


def codes(values: Sequence[float] | np.ndarray, dtype: DType) -> Tensor:
    """Values (exact in the dtype) as stored codes."""
    array = np.asarray(values, np.float64)
    if dtype is BF16:
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), dtype
    return array.astype({F64: np.float64, F32: np.float32, F16: np.float16}[dtype]).view(CODE[dtype]), dtype


def native(a: Tensor, b: Tensor, *, target: str = "", shift: int = 0, sources: Any = None, **options: Any) -> Reduced:
    """The native reduction through a run of the engine; ``shift`` moves both operands off their alignment."""
    raw = [item[0].astype(f"u{item[1].itemsize}", copy=False).tobytes() for item in (a, b)]
    inputs = sources or [_native.Source.memory(bytes(shift + k) + data) for k, data in enumerate(raw)]
    parts = tuple((k, item[1].native, shift + k) for k, item in enumerate((a, b)))
    job = (3, 0, 0, 0, a[0].size, parts)
    run = _native.Run(sources=inputs, programs=[], fills=[], jobs=[job], sink=None, target=target, **options)
    run.start()
    while not run.wait(1):
        pass
    run.finish()
    ((number, *values),) = run.reductions()
    assert number == 0
    return Reduced(*values)


def expected(a: Tensor, b: Tensor) -> Reduced:
    """The reference, chunk by chunk."""
    total = Reduced()
    for first in range(0, a[0].size, CHUNK):
        pieces = []
        for array, dtype in (a, b):
            pieces += [array[first : first + CHUNK].view(STORAGE[dtype]), dtype]
        total = reference.combine(total, reference.reduce_chunk(*pieces))
    return total


def bits(found: Reduced) -> tuple[int, ...]:
    """All fields as integers, so that NaN equals NaN and −0 differs from +0."""
    return (*(int.from_bytes(struct.pack("<d", value), "little") for value in found[:7]), *found[7:])


def integers(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(f"u{dtype.itemsize}")


def nearly(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same codes but for one in four, whose last bit differs."""
    return array ^ (rng.random(array.size) < 0.25).astype(array.dtype)
