"""The Triton kernel under Triton's interpreter, bit for bit against the reference: every registered method, dtype
and policy. (On a GPU the same is tested compiled: tests/backends/test_gpu.py.)"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numeric_tools import (
    CASES,
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
    thorough,
    without_stages,
)
from sdsurgery.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType
from sdsurgery.methods import Method
from sdsurgery.program import Formula, Program
from sdsurgery.program.tracing import trace
from triton_support import require_triton

require_triton(interpreted=True)

from sdsurgery.kernels import elementwise  # noqa: E402

MIXTURES = [
    *((dtype,) for dtype in FLOATS),
    (F16, F32),
    (F8_E4M3, BF16, F8_E5M2),
    (F32, F64),
]


def run(
    formula: Formula, row: list[tuple[np.ndarray, DType]], out: DType,
    *, overflow: str = "default", wide: bool = False, uncounted: bool = False,
) -> Result:  # fmt: skip
    """``uncounted``: the codes are those of the kernel that counts nothing, which is another one."""

    def tensor(codes: np.ndarray, dtype: DType) -> Any:
        return torch.from_numpy(codes.astype(CODE[dtype]).view(f"i{dtype.itemsize}").copy())

    assert elementwise.unsupported(formula.program, wide) is None
    result = torch.zeros(row[0][0].size, dtype=getattr(torch, f"int{out.bits}"))
    counts = torch.zeros(2, dtype=torch.int64)
    with np.errstate(all="ignore"):
        inputs = [(tensor(codes, dtype), dtype) for codes, dtype in row]
        elementwise.launch(formula, inputs, result, out, overflow=overflow, wide=wide, counts=counts)
        if uncounted:
            elementwise.launch(formula, inputs, result.zero_(), out, overflow=overflow, wide=wide)
    return Result(result.numpy().view(CODE[out]), *(int(value) for value in counts))


@pytest.mark.parametrize(("name", "mixture"), every(MIXTURES), ids=label)
def test_every_method_and_dtype_equals_the_reference(name: str, mixture: tuple[DType, ...]) -> None:
    case: Case = CASES[name]
    rng = np.random.default_rng(len(name))
    kinds = list(itertools.islice(itertools.cycle(mixture), case.count))
    row = [(SORTS["wild"](kind, 2100, rng), kind) for kind in kinds]  # one or two full blocks, and a tail
    first = MIXTURES.index(mixture)  # three of the six dtypes each, every one for half of the mixtures
    for number, out in enumerate(outputs(name)):
        if thorough(name) and number % 2 != first % 2:
            continue
        for overflow, wide in (("default", False), (("inf", "saturate", "default")[number % 3], number % 2 == 1)):
            how: dict[str, Any] = {"overflow": overflow, "wide": wide}
            if (wide or F64 in kinds) and elementwise.unsupported(case.formula.program, True):
                continue  # exp, log and pow of float64
            left, whole_row = without_stages(case.formula, row, wide)
            found = run(left, whole_row, out, uncounted=overflow != "default", **how)
            difference = found.differs(expected(case.formula, row, out, **how))
            assert not difference, f"to {out}, {how}: {difference}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025])
def test_every_operation_at_every_size(size: int) -> None:
    def body(a: Any, b: Any) -> Any:
        return -(abs(a - b * 3.0) / (a + 0.5)) * 2.0 - a / b

    formula = trace(Method("all", ("a", "b"), {}, body), 2, {})
    rng = np.random.default_rng(size)
    for kinds, wide in (((F32, F16), False), ((F64, F32), False), ((F8_E5M2, BF16), True)):
        row = [(SORTS["wild"](kind, 1025, rng)[:size], kind) for kind in kinds]
        for out in FLOATS:
            difference = run(formula, row, out, wide=wide).differs(expected(formula, row, out, wide=wide))
            assert not difference, f"{kinds} to {out}: {difference}"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", OPERATIONS)
def test_comparisons_choices_and_roots(name: str) -> None:
    case, rng = OPERATIONS[name], np.random.default_rng(1)
    for first, (mixture, out) in enumerate(itertools.product(((F32,), (F16, F32), (F64, F32)), (F32, F16))):
        kinds = list(itertools.islice(itertools.cycle(mixture), case.count))
        if F64 in kinds and elementwise.unsupported(case.formula.program, True):
            continue
        row = [(SORTS[("wild", "plain")[first % 2]](kind, 1025, rng), kind) for kind in kinds]
        difference = run(case.formula, row, out).differs(expected(case.formula, row, out))
        assert not difference, f"{mixture} to {out}: {difference}"


def test_functions_that_need_float32_are_refused_in_float64() -> None:
    program = OPERATIONS["exponential"].formula.program
    assert elementwise.unsupported(program) is None
    assert elementwise.unsupported(program, True) == "the Triton kernel has no exp in float64 arithmetic"


def test_an_unknown_operation_is_said() -> None:
    program = Program(1, 0, (("cube", ((0, 0),), 0),), (2, 0))
    assert "cube" in str(elementwise.unsupported(program))
