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

COUNT = 300_032  # no multiple of a strip
SMALLER = [40_008, 5_003, 3]  # sampled with other steps, and not sampled
TOGETHER = 16  # of the sample: so many elements of a step's (csrc/bracket.h)


def normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=count)


def misleading(rng: np.random.Generator, count: int) -> np.ndarray:
    """The elements of the sample are much larger than the others."""
    length = min(1024, max(count // 256 // TOGETHER, 1) * TOGETHER)
    step, within = np.divmod(np.arange(count), length)
    place = (step * 2654435769 % 2**32 * (length // TOGETHER) >> 32) * TOGETHER
    return np.where((within >= place) & (within < place + TOGETHER), 100, 1) * rng.normal(size=count)


def zeros(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.zeros(count)


def few_values(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(-3, 4, count) / 4


def mostly_zeros(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.9, 0, rng.normal(size=count))


def rising(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.linspace(-3, 1, count)


def some_nan(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 1e-4, np.nan, rng.normal(size=count))


def all_nan(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.full(count, np.nan)


def some_infinite(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.3, -np.inf, rng.normal(size=count))


Kind = Callable[[np.random.Generator, int], np.ndarray]
KINDS: list[Kind] = [normal, misleading, zeros, few_values, mostly_zeros, rising, some_nan, all_nan, some_infinite]


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
def test_the_chosen_are_those_of_sorting(tmp_path: Path, kind: Kind, dtype: Any, shares: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    with np.errstate(over="ignore"):
        a = kind(rng, COUNT).astype(dtype)
        b = (a.astype(np.float32) + 0.1 * normal(rng, COUNT)).astype(dtype)
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
@pytest.mark.parametrize("count", [COUNT, *SMALLER])
def test_every_target_finds_the_same(kind: Kind, target: str, count: int) -> None:
    rng, k = np.random.default_rng(6), max(1, min(1000, count // 3))
    a = kind(rng, count).astype(np.float32)
    b = (a + 0.1 * normal(rng, count)).astype(np.float32)

    def body(a: Any, b: Any) -> Any:
        return largest(abs(b - a), k) + largest(abs(a), count // 2) + a * kth_largest(abs(a), max(count - 7, 1))

    formula = trace(Method("test", ("A", "B"), {}, body), 2, {})
    data = a.tobytes() + b.tobytes()
    operands = (Operand(0, F32, 0), Operand(0, F32, a.nbytes))
    job = Job(0, F32, 0, 1, operands, 0, formula.numbers, shape=(count,), read=count)
    plan = Plan((data,), (formula.program,), Jobs([job]), 0, 4)
    with np.errstate(invalid="ignore"):
        sizes, changes = np.abs(a), np.abs(b - a)
    found = engine.examine(plan, [_native.Source.memory(data)], Options(cpu=target), values=True).values[0]
    wanted = (*kth_and_last(changes, k), *kth_and_last(sizes, count // 2), kth_and_last(sizes, max(count - 7, 1))[0])
    assert np.array_equal(sorted(found, key=repr), sorted(wanted, key=repr), equal_nan=True)
