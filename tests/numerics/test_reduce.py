"""Reductions: every CPU target bit-equal to the reference in the order that csrc/reduce.h promises, for any threads,
tile size, io mode and alignment; the order itself spelled out in plain Python; close to torch in float64."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_tools import CODE, FLOATS, SORTS, TARGETS, plain, specials
from reduce_tools import BLOCK, CHUNK, INTEGERS, SIZES, bits, codes, expected, integers, native, nearly
from sdsurgery import _native
from sdsurgery.backends import Reduced
from sdsurgery.definitions.conversions import STORAGE, widen
from sdsurgery.dtypes import BF16, F8_E4M3, F16, F32, F64, I64, U8, DType

# ---- native against the reference


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_of_one_dtype_equal_the_reference_to_the_bit(dtype: DType, target: str) -> None:
    rng = np.random.default_rng(dtype.native)
    for count in SIZES:
        for sort in SORTS.values():
            a = sort(dtype, count, rng)
            late = np.where(np.arange(count) < BLOCK, a, nearly(a, rng))  # the first block is equal
            for b in (sort(dtype, count, rng), nearly(a, rng), late, a.copy()):
                wanted = expected((a, dtype), (b, dtype))
                for shift in (0, 3):
                    found = native((a, dtype), (b, dtype), target=target, shift=shift)
                    assert bits(found) == bits(wanted), (count, shift, found, wanted)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("other", (*FLOATS, I64, U8), ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_two_dtypes_equal_the_reference_to_the_bit(dtype: DType, other: DType, target: str) -> None:
    rng = np.random.default_rng(5)
    for count in (1, 9, 1024, 2500):
        for sort in SORTS.values():
            a = sort(dtype, count, rng)
            b = sort(other, count, rng) if other in FLOATS else integers(other, count, rng)
            wanted = expected((a, dtype), (b, other))
            assert bits(native((a, dtype), (b, other), target=target)) == bits(wanted)
            assert bits(native((b, other), (a, dtype), target=target)) == bits(expected((b, other), (a, dtype)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_equal_the_reference_to_the_bit(dtype: DType, target: str) -> None:
    rng = np.random.default_rng(6)
    for count in (1, 77, 1024, 5000):
        a = integers(dtype, count, rng)
        b = nearly(a, rng)
        assert bits(native((a, dtype), (b, dtype), target=target)) == bits(expected((a, dtype), (b, dtype)))


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1500])
def test_chunks_are_added_in_order(size: int) -> None:
    rng = np.random.default_rng(7)
    a, b = plain(F16, size, rng), plain(F16, size, rng)
    wanted = bits(expected((a, F16), (b, F16)))
    for target in TARGETS:
        assert bits(native((a, F16), (b, F16), target=target)) == wanted


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("tile", [4096, 12288, 1 << 20, 64 << 20])
def test_threads_and_tiles_change_no_bit(threads: int, tile: int) -> None:
    rng = np.random.default_rng(8)
    size = 5 * CHUNK + 777
    a, b = plain(F16, size, rng), plain(F32, size, rng)
    for pair in (((a, F16), (b, F32)), ((b, F32), (a, F16))):
        wanted = bits(expected(*pair))
        assert bits(native(*pair, threads=threads, tile_bytes=tile)) == wanted


@pytest.mark.parametrize("io", [1, 2, 3], ids=["pread", "mmap", "direct"])
def test_ways_of_reading_change_no_bit(tmp_path: Path, io: int) -> None:
    rng = np.random.default_rng(9)
    size = CHUNK + 4321
    pair = ((plain(F16, size, rng), F16), (plain(F32, size, rng), F32))
    sources = []
    for k, (array, _) in enumerate(pair):
        path = tmp_path / str(k)
        path.write_bytes(bytes(5 + k) + array.tobytes())
        sources.append(_native.Source(str(path).encode()))
    found = native(*pair, sources=sources, shift=5, io=io, threads=2)
    assert bits(found) == bits(expected(*pair))


# ---- the reference against the definition, and against torch


def by_hand(a: np.ndarray, b: np.ndarray) -> list[float]:
    """docs/numerics.md in plain Python floats, element by element (all finite)."""
    totals = []
    for term in (lambda x, y: x * y, lambda x, y: x * x, lambda x, y: y * y, lambda x, y: (x - y) * (x - y)):
        tensor = 0.0
        for first in range(0, len(a), CHUNK):
            chunk = 0.0
            for start in range(first, min(first + CHUNK, len(a)), BLOCK):
                lanes = [0.0] * 8
                for i in range(start, min(start + BLOCK, len(a))):
                    lanes[i % 8] += term(float(a[i]), float(b[i]))
                low = (lanes[0] + lanes[4]) + (lanes[2] + lanes[6])
                chunk += low + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
            tensor += chunk
        totals.append(tensor)
    return totals


def test_the_reference_follows_the_written_order() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=CHUNK + 2 * BLOCK + 13), rng.normal(size=CHUNK + 2 * BLOCK + 13)
    found = expected(codes(a, F64), codes(b, F64))
    assert list(found[:4]) == by_hand(a, b)
    assert found[:4] != tuple(map(float, (a @ b, a @ a, b @ b, ((a - b) ** 2).sum())))  # so the order is seen at all


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_close_to_torch_in_float64(dtype: DType) -> None:
    import torch

    rng = np.random.default_rng(11)
    arrays = [plain(dtype, 70001, rng) for _ in range(2)]
    kind = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32}[dtype]
    x, y = (torch.from_numpy(array.view(f"i{array.itemsize}").copy()).view(kind).double() for array in arrays)
    found = native(*((array, dtype) for array in arrays))
    for value, wanted in zip(found, (x @ y, x @ x, y @ y, ((x - y) ** 2).sum()), strict=False):
        assert math.isclose(value, float(wanted), rel_tol=1e-12, abs_tol=1e-12 * float(x @ x))
    assert found[4:7] == (float(x.abs().max()), float(y.abs().max()), float((x - y).abs().max()))
    assert found[7:] == (0, 0, int((arrays[0] == arrays[1]).sum()))


# ---- known answers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=str)
def test_known_answers(dtype: DType, target: str) -> None:
    found = native(codes([1, -2, 3, 0], dtype), codes([1, 2, 0.5, -0.0], dtype), target=target)
    assert found == Reduced(-1.5, 14, 5.25, 22.25, 3, 2, 4, 0, 0, 1)  # 0 and −0 are different bits
    found = native(codes([0.0], dtype), codes([-0.0], F32), target=target)
    assert found.equal == (0 if dtype is F32 else 1)  # and equal values


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_non_finite_elements_are_counted_and_left_out(dtype: DType, target: str) -> None:
    rng = np.random.default_rng(12)
    a, b = plain(dtype, 3000, rng), plain(dtype, 3000, rng)
    bad = np.array([code for code in specials(dtype) if not math.isfinite(value_of(code, dtype))], CODE[dtype])
    a[[5, 1030]], b[[5, 2999]] = bad[0], bad[-1]
    found = native((a, dtype), (b, dtype), target=target)
    assert (found.a_nonfinite, found.b_nonfinite) == (2, 2)
    for array in (a, b):
        array[[5, 1030, 2999]] = 0
    clean = native((a, dtype), (b, dtype), target=target)
    assert bits(found)[:7] == bits(clean)[:7]
    both = native((np.repeat(bad, 40), dtype), (np.repeat(bad, 40), dtype), target=target)
    assert both == Reduced(*[0.0] * 7, 40 * bad.size, 40 * bad.size, 40 * bad.size)  # bits count, NaN or not


def value_of(code: int, dtype: DType) -> float:
    stored = np.array([code], CODE[dtype]).view(STORAGE[dtype])
    return float(widen(stored, dtype, True)[0])


@pytest.mark.parametrize("target", TARGETS)
def test_overflow_in_float64_gives_inf_and_a_canonical_nan(target: str) -> None:
    a, b = codes([1e200, 1e200] * 9, F64), codes([1e200, -1e200] * 9, F64)
    found = native(a, b, target=target)
    assert found.aa == found.bb == found.dd == math.inf and found.difference_max == 2e200
    assert struct.pack("<d", found.dot) == (0x7FF8 << 48).to_bytes(8, "little")
    assert bits(found) == bits(expected(a, b))


def test_large_integers_are_compared_by_their_bits() -> None:
    a = np.array([2**62 + 1, 5], np.uint64)
    found = native((a, I64), (a - np.array([1, 0], np.uint64), I64))
    assert found.equal == 1 and found.dd == 0  # the values round to the same float64


def test_subnormals_count() -> None:
    found = native((np.array([1], np.uint16), F16), (np.array([0], np.uint16), F16))
    assert found.aa == 2.0**-48 and found.difference_max == 2.0**-24
    found = native((np.array([1], np.uint32), F32), (np.array([1], np.uint8), F8_E4M3))
    assert found.aa == 2.0**-298 and found.b_max == 2.0**-9


# ---- jobs that cannot be


@pytest.mark.parametrize(
    "job",
    [
        (3, 0, 0, 0, 4, ((0, 2, 0),)),
        (3, 0, 0, 0, 4, ((0, 2, 0), (1, 2, 0), (1, 2, 0))),
        (3, 0, 0, 0, 5, ((0, 2, 0), (1, 2, 0))),
        (3, 0, 0, 0, 4, ((0, 2, 0), (1, 14, 0))),
        (3, 0, 0, 0, 4, ((0, 2, 0), (2, 2, 0))),
        (1, 0, 2, 0, 4, ((0, 10, 0),), ()),
    ],
    ids=["one operand", "three operands", "past the end", "unknown dtype", "unknown source", "formula over integers"],
)
def test_impossible_jobs_are_refused(job: Any) -> None:
    sources = [_native.Source.memory(bytes(8)), _native.Source.memory(bytes(8))]
    program = _native.Program(1, 0, [], (0, 0), False)
    with pytest.raises(_native.Error):
        _native.Run(sources=sources, programs=[program], fills=[], jobs=[job], sink=None)


def test_a_reduction_has_no_sink(tmp_path: Path) -> None:
    sources = [_native.Source.memory(bytes(8))]
    sink = _native.Sink(str(tmp_path / "out").encode(), 8)
    with pytest.raises(_native.Error, match="no output"):
        _native.Run(sources=sources, programs=[], fills=[], jobs=[(3, 0, 0, 0, 4, ((0, 2, 0), (0, 2, 0)))], sink=sink)
    sink.abort()
