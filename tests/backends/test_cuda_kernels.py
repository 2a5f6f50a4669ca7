"""The CUDA kernels' own code, thread by thread on the processor (tests/helpers/cuda_tools.py), bit for bit against the
reference: every registered method, dtype, policy, alignment, and many tensors in one launch."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_tools import fake_module
from numeric_tools import (
    CASES,
    CAST,
    CODE,
    FLOATS,
    OPERATIONS,
    SORTS,
    Case,
    Result,
    every,
    expected,
    label,
    outputs,
    without_stages,
)
from sdsurgery.backends.cpu import OVERFLOW
from sdsurgery.dtypes import BF16, F8_E5M2, F16, F32, F64, DType
from sdsurgery.program import OPERATIONS as CODES
from sdsurgery.program import Formula
from sdsurgery.program.tracing import trace

# Around a pack (2 to 16), a block's packs and a tile.
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 255, 511, 513, 4097)
GUARD = 64


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    return fake_module()


def program(cuda: ModuleType, formula: Formula, wide: bool) -> Any:
    shape = formula.program
    steps = [(CODES[op], args, to) for op, args, to in shape.steps]
    return cuda.Program(shape.inputs, shape.constants, steps, shape.result, wide, generated=shape.generated)


def run(
    cuda: ModuleType, formula: Formula, rows: Sequence[Sequence[tuple[np.ndarray, DType]]], out: DType,
    *, overflow: str = "default", wide: bool = False, shift: int = 0,
) -> list[Result]:  # fmt: skip
    """The rows in one launch; ``shift`` moves inputs and outputs off the pack's alignment, by whole elements."""
    words, rooms, kept = array("Q"), [], []
    for number, row in enumerate(rows):
        count = row[0][0].size
        room = np.full(2 * GUARD + count * out.itemsize + 32 * out.itemsize, 0xA5, np.uint8)
        start = GUARD + (-(room.ctypes.data + GUARD)) % 16 + (shift * number % 16) * out.itemsize
        rooms.append((room, start, count))
        words.extend((room.ctypes.data + start, count))
        for index, (codes, dtype) in enumerate(row):
            raw = codes.astype(CODE[dtype], copy=False).view(np.uint8)
            buffer = np.empty(raw.size + 32 * dtype.itemsize + 16, np.uint8)
            at = (-buffer.ctypes.data) % 16 + (shift * (number + index) % 16) * dtype.itemsize
            buffer[at : at + raw.size] = raw
            kept.append(buffer)
            words.append(buffer.ctypes.data + at)
    counts = np.zeros(2 * len(rows), np.uint64)
    dtypes = [dtype.native for _, dtype in rows[0]]
    native = program(cuda, formula, wide)
    assert cuda.unsupported(native, dtypes, out.native) == ""
    cuda.evaluate(0, 0, native, formula.numbers, dtypes, out.native, OVERFLOW[overflow], counts.ctypes.data, words)
    results = []
    for number, (room, start, count) in enumerate(rooms):
        end = start + count * out.itemsize
        assert (room[:start] == 0xA5).all() and (room[end:] == 0xA5).all(), "written outside the output"
        pair = (int(value) for value in counts[2 * number : 2 * number + 2])
        results.append(Result(room[start:end].copy().view(CODE[out]), *pair))
    return results


def kinds(case: Case, mixture: tuple[DType, ...]) -> list[DType]:
    return list(itertools.islice(itertools.cycle(mixture), case.count))


def check(cuda: ModuleType, case: Case, mixture: tuple[DType, ...], out: DType, sort: str, **how: Any) -> None:
    rng = np.random.default_rng(len(case.label) + out.bits)
    whole = [(SORTS[sort](kind, SIZES[-1] + SIZES[-1] // 2, rng), kind) for kind in kinds(case, mixture)]
    rows = [[(codes[size // 2 : size // 2 + size], kind) for codes, kind in whole] for size in SIZES]
    if case.formula.program.in_stages:
        found = [
            run(cuda, left, [whole_row], out, **how)[0]
            for left, whole_row in (without_stages(case.formula, row, how.get("wide", False)) for row in rows)
        ]
    else:
        found = run(cuda, case.formula, rows, out, **how)
    how.pop("shift", None)
    for size, row, result in zip(SIZES, rows, found, strict=True):
        difference = result.differs(expected(case.formula, row, out, **how))
        assert not difference, f"{sort}, {size} elements to {out}, {how}: {difference}"


@pytest.mark.parametrize(("name", "mixture"), every(), ids=label)
def test_every_method_and_dtype_equals_the_reference(cuda: ModuleType, name: str, mixture: tuple[DType, ...]) -> None:
    case = CASES[name]
    for number, out in enumerate(outputs(name)):
        check(cuda, case, mixture, out, "wild", shift=number % 4)
        check(cuda, case, mixture, out, "plain", shift=(number + 1) % 3, wide=number % 2 == 0)
        for overflow in ("inf", "saturate"):
            check(cuda, case, mixture, out, "wild", overflow=overflow, wide=number % 2 == 1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_the_reference(cuda: ModuleType, name: str) -> None:
    for number, (mixture, out) in enumerate(itertools.product(((F32,), (F16, F32), (F64, F32)), (F32, F16, F64))):
        check(cuda, OPERATIONS[name], mixture, out, "wild", shift=number % 3)
        check(cuda, OPERATIONS[name], mixture, out, "plain", wide=number % 2 == 0)


def test_a_thousand_small_tensors_and_in_place(cuda: ModuleType) -> None:
    case = CASES["add-diff"]
    rng = np.random.default_rng(3)
    whole = [SORTS["mixed"](F16, 40000, rng) for _ in range(3)]
    cuts = [(int(first), int(first + size)) for first, size in rng.integers(0, 70, (1000, 2)) * (500, 1)]
    rows = [[(codes[first:end], F16) for codes in whole] for first, end in cuts]
    for row, result in zip(rows, run(cuda, case.formula, rows, F16), strict=True):
        assert not result.differs(expected(case.formula, row, F16))
    codes = [SORTS["wild"](F32, 5000, rng) for _ in range(3)]
    wanted = expected(case.formula, [(item, F32) for item in codes], F32).codes
    kept = [item.astype(np.uint32) for item in codes]
    words = array("Q", [kept[1].ctypes.data, 5000, *(item.ctypes.data for item in kept)])
    cuda.evaluate(0, 0, program(cuda, case.formula, False), case.formula.numbers, [1, 1, 1], 1, 0, 0, words)
    assert np.array_equal(kept[1], wanted)


def test_long_programs_run_or_are_refused_with_a_reason(cuda: ModuleType) -> None:
    from sdsurgery.methods import Method

    def body(a: Any, b: Any, turns: float) -> Any:
        total, rest = a, b
        for turn in range(int(turns)):
            total, rest = total * 0.5 + rest, abs(rest - total) / (turn + 2.0)
        return -total

    rng = np.random.default_rng(4)
    for turns, runs in ((2, True), (20, True), (40, False)):
        formula = trace(Method("long", ("a", "b"), {}, body), 2, {"turns": turns})
        if runs:
            row = [(SORTS["wild"](kind, 700, rng), kind) for kind in (F16, F32)]
            for out in FLOATS:
                (result,) = run(cuda, formula, [row], out, shift=1)
                assert not result.differs(expected(formula, row, out))
        else:
            native = program(cuda, formula, False)
            assert "more than" in cuda.unsupported(native, [1, 1], 1)
            with pytest.raises(cuda.Error, match="cannot evaluate"):
                cuda.evaluate(0, 0, native, formula.numbers, [1, 1], 1, 0, 0, array("Q", [64, 1, 64, 64]))


def test_tensors_whose_memory_was_given_back_are_refused(cuda: ModuleType) -> None:
    native = program(cuda, CAST.formula, False)
    for out, source in ((64, 0), (0, 64)):
        with pytest.raises(cuda.Error, match="no memory"):
            cuda.evaluate(0, 0, native, (), [F32.native], F32.native, 0, 0, array("Q", [out, 1, source]))
    cuda.evaluate(0, 0, native, (), [F32.native], F32.native, 0, 0, array("Q", [0, 0, 0]))


def test_misaligned_elements_are_refused(cuda: ModuleType) -> None:
    native = program(cuda, CAST.formula, False)
    with pytest.raises(cuda.Error, match="alignment"):
        cuda.evaluate(0, 0, native, (), [F32.native], F32.native, 0, 0, array("Q", [64, 1, 66]))
    assert (F64.native, BF16.native, F8_E5M2.native) == (0, 3, 5)
