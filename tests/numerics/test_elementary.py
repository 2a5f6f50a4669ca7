"""exp, log and pow of tensors: one definition with the same bits everywhere, and its error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from numeric_tools import TARGETS
from sdsurgery import _native, functions
from sdsurgery.backends import cpu
from sdsurgery.definitions import elementary, scalars
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import F16, F32, F64
from sdsurgery.methods import Method
from sdsurgery.methods.registry import get
from sdsurgery.program.tracing import trace

BODIES: dict[str, Callable[..., Any]] = {
    "exp": lambda a, b: functions.exp(a),
    "log": lambda a, b: functions.log(a),
    "pow": functions.pow,
    "copysign": functions.copysign,
    "floor": lambda a, b: functions.floor(a),
}
SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 2.5, -1.5, np.inf, -np.inf, np.nan, 1e38, -1e38, 1e-45,
    -1e-45, 1.1754944e-38, 2.0**24, 2.0**24 + 2, 2.0**23 + 0.5, 88.7, 89.0, -87.3, -103.9, -104.1,
]  # fmt: skip


def values(dtype: type, seed: int = 0) -> list[np.ndarray]:
    """Pairs of every sort: specials with each other, any bits, weights, squares between two float32."""
    rng, bits = np.random.default_rng(seed), 8 * np.dtype(dtype).itemsize
    pairs = np.array(list(itertools.product(SPECIAL, SPECIAL)), dtype).T
    anything = rng.integers(0, 1 << (bits - 1), (2, 3000), np.uint64).astype(f"u{bits // 8}") * 2 + 1
    near_one = (1 + rng.normal(size=(2, 500)) * 1e-3).astype(dtype)
    weights = np.abs(rng.normal(size=(2, 3000)) * 0.02).astype(dtype)
    whole = rng.integers(-9, 9, (2, 300)).astype(dtype)
    middles = np.array([1 + np.arange(1, 999, 2) * 2.0**-12, np.full(499, 2)], dtype)
    sorts = (pairs, anything.view(dtype), near_one, weights, whole, middles)
    return [np.concatenate(parts) for parts in zip(*sorts, strict=True)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    number = ~np.isnan(a)
    code = f"u{a.itemsize}"
    return np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(a.view(code)[number], b.view(code)[number])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", BODIES)
def test_every_target_gives_what_the_body_gives_on_numpy_arrays_and_torch_tensors(name: str, kind: type) -> None:
    import torch

    arrays, formula = values(kind), trace(Method(name, ("A", "B"), {}, BODIES[name]), 2, {})
    with np.errstate(all="ignore"):
        body = BODIES[name](*arrays)
    assert body.dtype == kind
    code = (F32 if kind is np.float32 else F64).native
    for target in TARGETS:
        out = np.empty_like(arrays[0])
        _native.apply(
            cpu.native_program(formula.program, False), formula.numbers,
            [(array.ctypes.data, code) for array in arrays], out.ctypes.data, code, out.size, target=target,
        )  # fmt: skip
        assert same(out, body), target
    tensors = BODIES[name](*(torch.from_numpy(array) for array in arrays))
    assert same(np.asarray(tensors), body)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_the_error_is_what_the_docs_say(step: int) -> None:
    a, b = (array[np.isfinite(array)] for array in values(np.float32, seed=7))
    size = min(a.size, b.size)
    a, b = a[:size:step], b[:size:step]
    of_all = (("exp", scalars.exp, 0.87), ("log", scalars.log, 0.86), ("pow", scalars.pow, 0.50001))
    for name, of_numbers, most in of_all:
        args = (np.abs(a), b) if name == "pow" else (a,)
        found = getattr(elementary, name)(*args)
        for value, *given in zip(found.tolist(), *(arg.tolist() for arg in args), strict=True):
            wide = of_numbers(*given)  # 29 bits more: rounded again it differs only next to a middle
            with np.errstate(over="ignore"):
                exact = np.float32(wide)
            if not (np.isnan(value) and np.isnan(wide)) and value != exact:
                distance = abs(mpmath.mpf(value) - mpmath.mpf(wide)) / mpmath.mpf(float(np.spacing(np.abs(exact))))
                assert distance < most, (name, given)


def test_float64_arrays_take_the_correctly_rounded_functions() -> None:
    a, b = (array[::37] for array in values(np.float64, seed=3))
    for name, args in (("exp", (a,)), ("log", (a,)), ("pow", (a, b))):
        function = getattr(scalars, name)
        expected = np.array([function(*given) for given in zip(*(arg.tolist() for arg in args), strict=True)])
        assert same(elementary.correctly_rounded(name, *args), expected), name


def test_empty_and_0_d_arrays() -> None:
    for name, body in BODIES.items():
        for shape in ((), (0,), (3, 0), (1,)):
            arrays = [np.full(shape, 2, np.float32), np.full(shape, -3, np.float32)]
            assert np.shape(body(*arrays)) == shape, name


@pytest.mark.parametrize("name", ["multiply-diff", "geometric-sum", "multiply-quotient"])
def test_kernels_with_powers_give_what_the_steps_give(name: str) -> None:
    """Any length, zeros, equal and opposite elements, differences of a last place, and exponents of every size."""
    chosen, rng = get(name), np.random.default_rng(11)
    for alpha in (0.5, 0.3, 0.0, 1.0) + ((-0.7, 2.0, 9.0) if name != "multiply-diff" else ()):
        formula = trace(chosen, len(chosen.inputs), chosen.bind(len(chosen.inputs), {"alpha": alpha}))
        for size in (1, 7, 63, 64, 65, 1000, 5003):
            base = rng.normal(size=size) * 0.03
            arrays = [(base + rng.normal(size=size) * scale).astype(np.float16) for scale in (0, 1e-3, 1e-5)]
            for k, array in enumerate(arrays):
                array[rng.integers(0, size, size // 8 + 1)] = 0
                array[rng.integers(0, size, size // 8 + 1)] *= -1
                if size > 1000:
                    array[100 * k : 100 * k + 50] = np.inf if k else 65504
            arrays = arrays[: len(chosen.inputs)]
            expected, *_ = evaluate_tensor(formula, [(array, F16) for array in arrays], F16, "default", False)
            for target in TARGETS:
                out = np.empty(size, np.float16)
                _native.apply(
                    cpu.native_program(formula.program, False), formula.numbers,
                    [(array.ctypes.data, F16.native) for array in arrays], out.ctypes.data, F16.native, size,
                    target=target,
                )  # fmt: skip
                assert np.array_equal(out.view(np.uint16), expected.view(np.uint16)), (alpha, size, target)
