"""Selections of large tensors that lie in memory: by bounds that a sample gives, or by histograms where these fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import TARGETS
from safetensors.numpy import load_file, save_file
from sdsurgery import _native, engine
from sdsurgery.backends import Options
from sdsurgery.definitions.reductions import kth_and_last
from sdsurgery.dtypes import F32
from sdsurgery.functions import kth_largest, largest
from sdsurgery.methods import Method
from sdsurgery.plan import Job, Jobs, Operand, Plan
from sdsurgery.program.tracing import trace

COUNT = 300_032  # above what is sampled, and no multiple of a strip
STEP, TOGETHER = 1024, 16  # of the sample: so many elements of so many (csrc/bracket.h)


def normal(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=COUNT)


def misleading(rng: np.random.Generator) -> np.ndarray:
    """The elements of the sample are much larger than the others."""
    step, within = np.divmod(np.arange(COUNT), STEP)
    place = (step * 2654435769 % 2**32 * (STEP // TOGETHER) >> 32) * TOGETHER
    return np.where((within >= place) & (within < place + TOGETHER), 100, 1) * rng.normal(size=COUNT)


def zeros(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(COUNT)


def few_values(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-3, 4, COUNT) / 4


def mostly_zeros(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(COUNT) < 0.9, 0, rng.normal(size=COUNT))


def rising(rng: np.random.Generator) -> np.ndarray:
    return np.linspace(-3, 1, COUNT)


def some_nan(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(COUNT) < 1e-4, np.nan, rng.normal(size=COUNT))


def all_nan(rng: np.random.Generator) -> np.ndarray:
    return np.full(COUNT, np.nan)


def some_infinite(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(COUNT) < 0.3, -np.inf, rng.normal(size=COUNT))


KINDS = [normal, misleading, zeros, few_values, mostly_zeros, rising, some_nan, all_nan, some_infinite]


FORMULA = (
    "largest(abs(A), k) + 2*largest(abs(B - A), k) + 4*largest(abs(A), l)"
    " + 8*(abs(B - A) >= kth_largest(abs(B - A), m))"
)


def among_largest(x: np.ndarray, k: int) -> np.ndarray:
    """The same by sorting: of equal elements those of lower index."""
    order = np.argsort(-np.where(np.isnan(x), np.inf, x), kind="stable")
    found = np.isnan(x)
    found[order[:k]] = True
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(0.5, 0.01), (0.9, 0.3), (1e-5, 1.0)])
def test_the_chosen_are_those_of_sorting(
    tmp_path: Path, kind: Callable[[np.random.Generator], np.ndarray], dtype: Any, shares: tuple[float, float]
) -> None:
    rng = np.random.default_rng(5)
    with np.errstate(over="ignore"):
        a = kind(rng).astype(dtype)
        b = (a.astype(np.float32) + 0.1 * normal(rng)).astype(dtype)
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, array in zip(paths, (a, b), strict=True):
        save_file({"x": array.reshape(586, 512)}, path)
    k, l = (max(1, int(share * COUNT)) for share in shares)  # noqa: E741
    m = COUNT // 3
    sizes = np.abs(a.astype(np.float32))
    with np.errstate(invalid="ignore"):
        changes = np.abs(b.astype(np.float32) - a.astype(np.float32))
        least = np.sort(np.where(np.isnan(changes), np.inf, changes))[::-1][m - 1]
        several = changes >= (np.nan if np.isnan(changes).sum() >= m else least)
    expected = among_largest(sizes, k) + 2 * among_largest(changes, k) + 4 * among_largest(sizes, l) + 8.0 * several
    for io in ("mmap", "pread"):
        out = tmp_path / f"{io}.safetensors"
        sds.merge(sds.formula(FORMULA), paths, k=k, l=l, m=m, dtype="fp32", io=io, out=out)
        assert np.array_equal(load_file(out)["x"].reshape(-1), expected), io


def test_outputs_of_one_reading_choose_each_its_own(tmp_path: Path) -> None:
    """Those of few elements between the bounds and those of too many for all of them, ties' twins among them."""
    rng = np.random.default_rng(7)
    shape, shares = (1536, 1024), [0.5, 0.01, 0.3, 0.9, 0.49, 0.48, 0.47, 0.46, 0.45, 0.44, 0.43, 0.42, 0.41, 0.4]
    a = rng.normal(size=shape).astype(np.float16)
    b = (a + np.where(rng.random(shape) < 0.4, 0, rng.integers(-4000, 4000, shape) / 2**12)).astype(np.float16)
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, array in zip(paths, (a, b), strict=True):
        save_file({"x": array}, path)
    changes = np.abs(b.astype(np.float32) - a.astype(np.float32)).reshape(-1)
    text = "largest(abs(B - A), k*size(A)) + 2*largest(abs(B - A), k*k*size(A))"
    for io in ("mmap", "pread"):
        out = str(tmp_path / f"{io}-{{k}}.safetensors")
        sds.sweep(sds.formula(text)(*paths, k=1), parameters={"k": shares}, dtype="fp32", io=io, out=out)
        for share in shares:
            found = load_file(out.format(k=share))["x"].reshape(-1)
            chosen = [among_largest(changes, int(k * changes.size)) for k in (share, share * share)]
            assert np.array_equal(found, chosen[0] + 2 * chosen[1]), (io, share)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_target_finds_the_same(kind: Callable[[np.random.Generator], np.ndarray], target: str) -> None:
    rng = np.random.default_rng(6)
    a = kind(rng).astype(np.float32)
    b = (a + 0.1 * normal(rng)).astype(np.float32)

    def body(a: Any, b: Any) -> Any:
        return largest(abs(b - a), 1000) + largest(abs(a), COUNT // 2) + a * kth_largest(abs(a), COUNT - 7)

    formula = trace(Method("test", ("A", "B"), {}, body), 2, {})
    data = a.tobytes() + b.tobytes()
    operands = (Operand(0, F32, 0), Operand(0, F32, a.nbytes))
    job = Job(0, F32, 0, 1, operands, 0, formula.numbers, shape=(COUNT,), read=COUNT)
    plan = Plan((data,), (formula.program,), Jobs([job]), 0, 4)
    with np.errstate(invalid="ignore"):
        sizes, changes = np.abs(a), np.abs(b - a)
    found = engine.examine(plan, [_native.Source.memory(data)], Options(cpu=target), values=True).values[0]
    wanted = (*kth_and_last(changes, 1000), *kth_and_last(sizes, COUNT // 2), kth_and_last(sizes, COUNT - 7)[0])
    assert np.array_equal(sorted(found, key=repr), sorted(wanted, key=repr), equal_nan=True)
