"""Ties and breadcrumbs: stretches on both sides of the last equal of a threshold, zeros of both signs, any weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numeric_tools import CODE, TARGETS, last_stage, native_codes
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import BF16, F16, F32, DType
from sdsurgery.functions import is_nan, where
from sdsurgery.functions.selection import tracer_of
from sdsurgery.methods import Method
from sdsurgery.methods.registry import get
from sdsurgery.program import ALL, Formula
from sdsurgery.program.tracing import trace

SHAPE = (51, 97)  # several stretches, the last of them short
METHODS: list[tuple[str, dict[str, object]]] = [
    ("ties", {"density": 0.5}),
    ("ties", {"density": 0.1, "weights": (0.7, -0.4, 0.3), "lam": -0.5}),
    ("ties", {"density": 0.9, "weights": (1.0, -1.0, 0.0)}),
    ("ties", {"density": 1.0, "weights": (3e-9, 3e-9, 1e-9)}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.1}),
    ("breadcrumbs", {"density": 0.3, "gamma": 0.3, "weights": (-0.7, 0.4, 0.0), "lam": 0.3}),
]


def few_values(dtype: DType, seed: int) -> np.ndarray:
    """Numbers of which many are equal, zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    values = np.copysign(rng.integers(0, 4, SHAPE) / 8, rng.normal(size=SHAPE)).astype(np.float32)
    if dtype is BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if dtype is F16 else np.float32)


def same_on_every_target(formula: Formula, tensors: list[np.ndarray], dtype: DType) -> None:
    expected, *counts = evaluate_tensor(formula, [(codes, dtype) for codes in tensors], dtype, "default", False)
    for target in TARGETS:
        out, found = native_codes(formula, tensors, dtype, target)
        assert np.array_equal(out.reshape(-1), expected.view(CODE[dtype])), target
        assert found == counts, target


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_equals_zeros_and_weights_of_every_sign(
    name: str, options: dict[str, object], count: int, dtype: DType
) -> None:
    method = get(name, None)
    given = {key: value[: count - 1] if isinstance(value, tuple) else value for key, value in options.items()}
    formula = trace(method, count, method.bind(count, given))
    tensors = [few_values(dtype, seed) for seed in range(count)]
    same_on_every_target(formula, tensors, dtype)
    for at, value in ((7, np.nan), (2000, np.inf), (4800, -np.inf)):  # each shows in the result, and is counted
        if dtype is not BF16:
            tensors[at % count].reshape(-1)[at] = value
            same_on_every_target(formula, tensors, dtype)


@pytest.mark.parametrize("kept", [2, 0.5, -1])
def test_a_body_that_keeps_with_another_factor_than_1(kept: float) -> None:
    """Its steps are those of ties but for this number, which the kernel of ties leaves to the steps."""

    def body(a: Any, b: Any) -> Any:
        tracer = tracer_of(a)
        least = tracer.select("top", abs(b - a), 1000)
        within = tracer.make("within", ALL, tracer.last_of(least))
        size = abs(b - a)
        part = 0.7 * (where(size > least, kept, where(size == least, within, is_nan(size))) * (b - a))
        agrees = where(part >= 0, part > 0, part < 0)
        votes = 0.8 * agrees
        return a + 0.3 * (agrees * part / where(abs(votes) < 1e-8, kept, votes))

    formula = trace(Method("test", ("A", "B"), {}, body), 2, {})
    tensors = [few_values(F32, seed) for seed in range(2)]
    assert last_stage(formula, [(codes.view(np.uint32), F32) for codes in tensors]).native.fused
    same_on_every_target(formula, tensors, F32)
