"""Every registered method on every CPU target, bit for bit against the reference: nothing here names a method."""

from __future__ import annotations

import functools
import itertools
import zlib

import numpy as np
import pytest
from numeric_tools import (
    CASES,
    CODE,
    OPERATIONS,
    SORTS,
    TARGETS,
    Case,
    Result,
    every,
    expected,
    label,
    last_stage,
    native,
    outputs,
    thorough,
    values_of,
)
from sdsurgery import program
from sdsurgery.backends import cpu
from sdsurgery.definitions.programs import Beside, run_steps, stage_values
from sdsurgery.dtypes import F16, F32, F64, DType
from sdsurgery.methods.registry import get
from sdsurgery.program.tracing import trace

# Around the widths of the vectors (4, 8, 16), the strip (512) and the stretch (16384) of the kernels.
SMALL = (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 511, 512, 513)
LARGE = (16383, 16385)
POLICIES = ("default", "inf", "saturate")


@functools.lru_cache(maxsize=64)
def operands(name: str, mixture: tuple[DType, ...], sort: str) -> tuple[tuple[np.ndarray, DType], ...]:
    rng = np.random.default_rng(zlib.crc32(f"{name} {mixture} {sort}".encode()))
    kinds = list(itertools.islice(itertools.cycle(mixture), CASES[name].count))
    return tuple((SORTS[sort](kind, LARGE[-1], rng), kind) for kind in kinds)


def cut(name: str, mixture: tuple[DType, ...], sort: str, size: int) -> list[tuple[np.ndarray, DType]]:
    """``size`` elements of the operands, from another place for every size."""
    first = min(37 * size, LARGE[-1] - size)
    return [(codes[first : first + size], dtype) for codes, dtype in operands(name, mixture, sort)]


# The targets of one case follow each other: the reference is evaluated once for all of them.
@functools.lru_cache(maxsize=2048)
def wanted(
    name: str, mixture: tuple[DType, ...], sort: str, size: int, out: DType, *, overflow: str, wide: bool
) -> Result:
    return expected(CASES[name].formula, cut(name, mixture, sort, size), out, overflow=overflow, wide=wide)


def compare(
    case: tuple[str, tuple[DType, ...], str], sort: str, size: int, out: DType,
    *, overflow: str = "default", wide: bool = False, shift: int = 0,
) -> None:  # fmt: skip
    """``case``: a case's name, the input dtypes and the CPU target."""
    name, mixture, target = case
    inputs = cut(name, mixture, sort, size)
    got = native(CASES[name].formula, inputs, out, overflow=overflow, wide=wide, target=target, shift=shift)
    difference = got.differs(wanted(name, mixture, sort, size, out, overflow=overflow, wide=wide))
    assert not difference, f"{sort}, {size} elements to {out}, {overflow}, wide={wide}, shift={shift}: {difference}"


EVERY = [(*pair, target) for pair in every() for target in TARGETS]
FEW = [
    (*pair, target) for pair in every(few=True) for target in TARGETS
]  # how a result is stored is no matter of steps


@pytest.mark.parametrize(("name", "mixture", "target"), EVERY, ids=label)
def test_native_kernels_equal_the_reference_at_every_size_and_alignment(
    name: str, mixture: tuple[DType, ...], target: str
) -> None:
    for out in outputs(name):
        for sort in ("wild", "plain"):
            for number, size in enumerate(SMALL if thorough(name) else (0, 1, 9, 33, 513)):
                compare((name, mixture, target), sort, size, out, shift=number % 3)


@pytest.mark.parametrize(("name", "mixture", "target"), FEW, ids=label)
def test_native_kernels_equal_the_reference_for_every_policy_and_precision(
    name: str, mixture: tuple[DType, ...], target: str
) -> None:
    for out in outputs(name):
        for overflow in POLICIES:
            compare((name, mixture, target), "wild", 2049, out, overflow=overflow)
            compare((name, mixture, target), "wild", 1025, out, overflow=overflow, wide=True)
        compare((name, mixture, target), "wild", LARGE[1], out, shift=1)
        for size in LARGE if thorough(name) else LARGE[1:]:
            compare((name, mixture, target), "mixed", size, out)
        compare((name, mixture, target), "plain", 1025, out, wide=True, shift=3)


def test_the_values_reach_both_paths_and_all_counts() -> None:
    """The tests above would prove little if no value were odd, or if all of them were."""
    quiet = []
    for name, case in CASES.items():
        result = wanted(name, (F32,), "wild", 4097, F16, overflow="default", wide=False)
        assert result.nonfinite > 8, name
        ordinary = wanted(name, (F32,), "plain", 1025, F16, overflow="default", wide=False)
        assert ordinary.nonfinite == 0, name
        assert np.unique(ordinary.codes).size > 100, case
        if result.overflow <= 100 or ordinary.overflow:
            quiet.append(name)
    # A method may take the smaller of its inputs, or give something large for ordinary ones.
    assert len(quiet) < 0.03 * len(CASES) and not any(thorough(name) for name in quiet), quiet


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_the_reference(name: str, target: str) -> None:
    case = OPERATIONS[name]
    for first, (mixture, out) in enumerate(itertools.product(((F32,), (F16, F32), (F64, F32)), (F32, F16, F64))):
        rng = np.random.default_rng(first)
        kinds = list(itertools.islice(itertools.cycle(mixture), case.count))
        for sort in ("wild", "plain"):
            given = [(SORTS[sort](kind, 1025, rng), kind) for kind in kinds]
            got = native(case.formula, given, out, target=target, shift=first % 2)
            difference = got.differs(expected(case.formula, given, out))
            assert not difference, f"{mixture} {sort} to {out}: {difference}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_what_its_body_gives_for_numpy_and_torch(name: str) -> None:
    import torch

    case, rng = OPERATIONS[name], np.random.default_rng(1)
    arrays = [SORTS["wild"](F32, 2000, rng).view(np.float32) for _ in range(case.count)]
    steps = stepped(case.formula, arrays)
    for library in ("numpy", "torch"):
        tensors = arrays if library == "numpy" else [torch.from_numpy(x.copy()) for x in arrays]
        found = np.asarray(body_on(case, list(tensors)))
        assert found.dtype == np.float32 and np.array_equal(np.isnan(found), np.isnan(steps))
        number = ~np.isnan(steps)
        if library == "torch" and any(step[0] == "sqrt" for step in case.formula.program.steps):
            continue  # torch's square root is not always the correctly rounded one
        assert np.array_equal(found[number].view(np.uint32), steps[number].view(np.uint32))


def test_the_bodies_above_have_every_operation() -> None:
    used = {step[0] for case in (*OPERATIONS.values(), *CASES.values()) for step in case.formula.program.steps}
    assert used | {"neg"} == set(program.OPERATIONS)


def test_the_hot_formulas_have_a_fused_kernel() -> None:
    fused = {name for name, case in CASES.items() if cpu.native_program(case.formula.program, False).fused}
    assert {"cast", "weighted-sum", "weighted-sum-2", "weighted-sum-3", "add-diff"} <= fused
    assert {"train-diff", "clamp-3", "add-diff.clamped", "ram-3"} <= fused


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("slerp", 2, {}),
        ("tensor-sum", 2, {}),
        ("ties", 2, {"density": 0.5}),
        ("ties", 3, {"density": 0.5, "weights": (0.5, 0.25), "lam": 0.7}),
        ("ties", 4, {}),
        ("breadcrumbs", 2, {}),
        ("breadcrumbs", 3, {"density": (0.7, 0.5), "gamma": 0.1}),
        ("sparse-top-k", 2, {"beta": 0.5}),
        ("dare", 2, {"p": 0.5}),
        ("dare", 3, {}),
        ("dare", 4, {"weights": (1.0, 0.5, 0.25)}),
        ("add-noise", 1, {}),
        ("add-cosine-a", 2, {}),
        ("cosine-a", 2, {}),
        ("cosine-b", 2, {}),
        ("cosine-channel", 2, {}),
        ("channel-cosine-gate", 2, {}),
        ("norm-direction", 2, {}),
        ("model-stock", 3, {}),
        ("model-stock", 4, {}),
    ],
)
def test_the_last_stages_of_hot_methods_have_a_fused_kernel(name: str, count: int, options: dict[str, object]) -> None:
    method = get(name, None)
    rng = np.random.default_rng(1)
    tensors = [(rng.normal(size=(24, 48)).astype(np.float16).view(np.uint16), F16) for _ in range(count)]
    assert last_stage(trace(method, count, method.bind(count, options)), tensors).native.fused


# ---- the body of a method is what runs


def stepped(formula: program.Formula, arrays: list[np.ndarray]) -> np.ndarray:
    """The formula's stages and steps over whole arrays."""
    shape = arrays[0].shape
    beside = Beside(formula, shape, stage_values(formula, arrays, shape), 0, arrays[0].size)
    return run_steps(formula, arrays, beside)


def body_on(case: Case, tensors: list[object]) -> object:
    with np.errstate(all="ignore"):
        return case.method.body(*tensors, **case.params)


@pytest.mark.parametrize("name", CASES)
def test_traced_steps_equal_the_body_called_on_numpy_arrays(name: str) -> None:
    case = CASES[name]
    for kind, dtype in ((np.float32, F32), (np.float64, F64)):
        arrays = [codes.view(kind) for codes, _ in cut(name, (dtype,), "wild", 4097 if thorough(name) else 1025)]
        steps = stepped(case.formula, arrays)
        body = np.asarray(body_on(case, list(arrays)))
        assert steps.dtype == body.dtype == kind
        number = ~np.isnan(steps)  # a NaN is written as the canonical one, whichever it was
        assert np.array_equal(number, ~np.isnan(body))
        assert np.array_equal(steps[number].view(CODE[dtype]), body[number].view(CODE[dtype]))


@pytest.mark.parametrize("name", CASES)
def test_results_equal_the_body_called_on_float32_torch_tensors(name: str) -> None:
    import torch

    case = CASES[name]
    for sort in ("wild", "plain"):
        given = cut(name, (F32,), sort, LARGE[0] if thorough(name) else 4097)
        result = body_on(case, [torch.from_numpy(codes.view(np.float32).copy()) for codes, _ in given])
        ours = native(case.formula, given, F32).codes.view(np.float32)
        theirs = result.numpy()  # type: ignore[attr-defined]
        assert np.array_equal(np.isnan(ours), np.isnan(theirs)), sort
        number = ~np.isnan(ours)
        assert np.array_equal(ours[number].view(np.uint32), theirs[number].view(np.uint32)), sort


@pytest.mark.parametrize("target", TARGETS)
def test_subnormal_and_overflowing_parameters_meet_tensors_as_float32(target: str) -> None:
    from sdsurgery.methods import registered
    from sdsurgery.program.tracing import trace

    method = registered()["add-diff"]
    given = operands("add-diff", (F32,), "wild")
    for alpha in (1e-40, 1e-46, 1e39, -1e300, 16777217.0, 0.1, 0.0, -0.0):
        formula = trace(method, 3, method.bind(3, {"alpha": alpha}))
        difference = native(formula, given, F32, target=target).differs(expected(formula, given, F32))
        assert not difference, f"alpha={alpha}: {difference}"


@pytest.mark.parametrize("target", TARGETS)
def test_operations_are_rounded_one_by_one_and_never_fused(target: str) -> None:
    """A fused multiply-add would keep the low half of the product and give another result."""
    case = CASES["weighted-sum-2"]
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=4096).astype(np.float32) for _ in range(2))
    c = [np.float32(value) for value in case.params["weights"]]
    separately = c[0] * x + c[1] * y
    fused = (np.float64(c[0]) * x + (c[1] * y)).astype(np.float32)
    assert not np.array_equal(separately, fused), "the values cannot distinguish them"
    inputs = [(x.view(np.uint32), F32), (y.view(np.uint32), F32)]
    got = native(case.formula, inputs, F32, target=target).codes.view(np.float32)
    assert np.array_equal(got, separately)


def test_threads_change_nothing() -> None:
    programs = {}  # methods that differ in their numbers alone are one
    for name, case in CASES.items():
        programs.setdefault(case.formula.program, name)
    for name in programs.values():
        case = CASES[name]
        sort = "plain" if case.formula.program.stages else "wild"  # of a tensor with a NaN little else comes out
        given = [(np.tile(codes, 19), dtype) for codes, dtype in operands(name, (F16,), sort)]
        once = native(case.formula, given, F16, threads=1)
        for threads in (0, 5):
            assert not native(case.formula, given, F16, threads=threads).differs(once)
        assert once.nonfinite or once.overflow or sort == "plain"
        assert np.isfinite(values_of(once.codes, F16)).any()
