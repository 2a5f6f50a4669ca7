"""What the stages of jobs find, where a plan writes nothing: ``engine.examine(values=True)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import TARGETS, expected, native
from sdsurgery import _native, engine
from sdsurgery.backends import Options
from sdsurgery.definitions.reductions import lines_of, ordered_sum
from sdsurgery.dtypes import F16, F32, F64
from sdsurgery.functions import dot, sum
from sdsurgery.methods import Method
from sdsurgery.methods.registry import get
from sdsurgery.plan import Job, Jobs, Operand, Plan
from sdsurgery.program import CHANNEL, FIRST, LAST, Program
from sdsurgery.program.tracing import trace

COUNTS = (1, 7, 1024, 3001, 300_001)


def gram(a: Any, b: Any) -> Any:
    """Three dots of differences, a sum by columns (no whole-tensor value), an expression of the others."""
    d = b - a
    return a * (dot(d, d) + dot(a, d)) + sum(d, axis=0)


def plan_of(arrays: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Plan, list[Any]]:
    program = trace(Method("gram", ("A", "B"), {}, gram), 2, {}).program
    assert isinstance(program, Program)
    data = b"".join(each.tobytes() for pair in arrays for each in pair)
    jobs, at = [], 0
    for number, pair in enumerate(arrays):
        operands = []
        for each in pair:
            operands.append(Operand(0, F16 if each.dtype == np.float16 else F32, at))
            at += each.nbytes
        jobs.append(Job(0, F32, 4 * number, 1, tuple(operands), number, shape=(pair[0].size,), read=pair[0].size))
    return Plan((data,), (program,), Jobs(jobs), 0, 4 * len(jobs)), [_native.Source.memory(data)]


def pairs(dtype: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype)) for n in COUNTS]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_are_those_of_the_written_order_on_every_target_thread_count_and_backend(dtype: Any) -> None:
    arrays = pairs(dtype)
    plan, sources = plan_of(arrays)
    runs = [engine.examine(plan, sources, Options(), backend="reference", values=True)]
    runs += [engine.examine(plan, sources, Options(cpu=cpu, threads=3), values=True) for cpu in TARGETS]
    for run in runs:
        assert sorted(run.values) == list(range(len(arrays)))
        for number, pair in enumerate(arrays):
            a, b = (each.astype(np.float32) for each in pair)
            d = (b - a).astype(np.float64)
            dd, ad = ordered_sum(np.stack((d * d, a.astype(np.float64) * d))).tolist()
            assert list(run.values[number]) == [dd, ad, dd + ad]


@pytest.mark.parametrize("axis", ["0", "-1", '"channel"'])
@pytest.mark.parametrize("shape", [(7, 3, 3, 5), (2100, 3), (3, 2100), (17,), (0, 4), (1,)])
def test_what_each_row_column_or_channel_gives_is_added_in_the_order_of_a_tensor(
    axis: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(4)
    a, b = (np.asarray(rng.normal(size=shape)) for _ in range(2))  # float64, so the sum is not rounded to less
    formula = sds.formula(f"A*0 + sum(dot(A, B, axis={axis}))")
    along = {"0": FIRST, "-1": LAST}.get(axis, CHANNEL)
    lines = ordered_sum(lines_of(a, along) * lines_of(b, along))
    wanted = np.full(shape, ordered_sum(lines.reshape(1, -1))[0])
    traced, inputs = trace(get(formula), 2, {}), [(each.view(np.uint64), F64) for each in (a, b)]
    for target in TARGETS:
        assert np.array_equal(native(traced, inputs, F64, target=target).codes, wanted.reshape(-1).view(np.uint64))
    assert np.array_equal(expected(traced, inputs, F64).codes, wanted.reshape(-1).view(np.uint64))
    assert np.array_equal(get(formula).body(a, b), wanted)


def test_values_are_kept_only_where_they_are_wanted() -> None:
    plan, sources = plan_of(pairs(np.float32))
    assert engine.examine(plan, sources, Options()).values == {}


def test_a_backend_that_keeps_none_is_refused() -> None:
    from sdsurgery import backends

    plan, sources = plan_of(pairs(np.float32)[:1])
    with pytest.MonkeyPatch.context() as patch:
        without = backends.get("cpu")._replace(values=False)
        patch.setattr(backends, "choose", lambda name: without)
        with pytest.raises(sds.UsageError, match="keeps no values of stages"):
            engine.examine(plan, sources, Options(), values=True)
