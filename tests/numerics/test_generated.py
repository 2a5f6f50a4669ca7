"""Selections, places and random numbers: the same on every target, thread count, tile size and backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import TARGETS, native_tensor, wild
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import F32
from sdsurgery.functions import (
    axes,
    bernoulli,
    count,
    index,
    kth_largest,
    largest,
    mean,
    normal,
    quantile,
    rank,
    size,
    sqrt,
    sum,
    uniform,
    variance,
    where,
    whole,
)  # fmt: skip
from sdsurgery.methods import Method, Param
from sdsurgery.methods.registry import _METHODS, method
from sdsurgery.program import Formula
from sdsurgery.program.tracing import trace


def top(a: Any, b: Any, share: Any) -> Any:
    return a + largest(abs(b), share * size(b)) * b


def top_with_ties(a: Any, b: Any, share: Any) -> Any:
    return where(largest(b, share * size(b), ties="all"), b, a)


def trimmed(a: Any, b: Any, share: Any) -> Any:
    """Several selections of one stage, and one of what they give."""
    low, high = quantile(a, 0.25), quantile(a, 0.75, between="linear")
    inner = where(a > low, a, low) - quantile(b, share, between="midpoint")
    return inner - kth_largest(inner, 2) + high + kth_largest(b, 1) * 0


def dropped(a: Any, b: Any, share: Any) -> Any:
    """Random numbers alone: no stage reads anything."""
    return a + bernoulli(b, share, seed=3) * (b - a)


def noisy(a: Any, b: Any, share: Any) -> Any:
    return a + share * normal(a, seed=share, draw=1) * sqrt(variance(a)) + uniform(b, seed=7)


def sliced(a: Any, b: Any, share: Any) -> Any:
    """Rows of axis 0, columns of axis 1, and lengths."""
    rows = index(a, 0) < share * size(a, 0)
    columns = (index(a, 1) >= 1) * (index(a, -1) < size(a, 1) + axes(a))
    return where(rows, b, a) + columns * a * size(a, -1) / size(a, "channel")


def by_channel(a: Any, b: Any, share: Any) -> Any:
    spread = variance(a, axis="channel")
    above = count(b > mean(b), axis="channel") + count(a, axis="channel")
    return (a - mean(a, axis="channel")) * spread + above * share + sum(a > b)


def reversed_rows(x: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """A function of whole tensors: rows of x from the other end, and a mean of y."""
    return x[::-1] * x.dtype.type(share) + y.mean(dtype=np.float64).astype(x.dtype) if x.size and x.ndim else x


def ranked(a: Any, b: Any, share: Any) -> Any:
    """Functions of whole tensors, of what a stage finds, and in an expression that a stage reduces."""
    other = whole(reversed_rows, a - mean(a), b, share)
    return where(rank(abs(b)) > share * size(b), a, other) + rank(a, axis=1) * rank(a, axis=-1) / size(a) - sum(other)


BODIES: dict[str, Callable[..., Any]] = {
    body.__name__: body for body in (top, top_with_ties, trimmed, dropped, noisy, sliced, by_channel, ranked)
}
SHAPES = [(10, 20), (3000, 7), (5,), (40, 4, 3, 3), (2, 100001), (1,), (4, 1030), (17, 0), ()]


def formula_of(name: str, share: float = 0.3) -> Formula:
    return trace(Method(name, ("A", "B"), {"share": Param(0.3, "")}, BODIES[name]), 2, {"share": share})


def pair(shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Values of half precision, so that many are equal."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float16).astype(np.float32) for _ in range(2)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    number, code = ~np.isnan(a), f"u{a.itemsize}"
    equal = np.array_equal(a.view(code)[number], b.view(code)[number])
    return a.dtype == b.dtype and equal and np.array_equal(np.isnan(a), np.isnan(b))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_every_target_gives_what_the_body_gives_on_numpy_arrays_and_torch_tensors(
    name: str, shape: tuple[int, ...]
) -> None:
    import torch

    arrays, formula = pair(shape), formula_of(name)
    with np.errstate(all="ignore"):
        body = np.asarray(BODIES[name](*arrays, 0.3))
    assert body.shape == shape and body.dtype == np.float32
    for target in TARGETS:
        assert same(native_tensor(formula, arrays, target), body), target
    expected, *_ = evaluate_tensor(formula, [(array, F32) for array in arrays], F32, "default", False)
    assert same(expected.reshape(shape), body)
    tensors = BODIES[name](*(torch.from_numpy(array) for array in arrays), 0.3)
    assert same(np.asarray(tensors), body)
    wide = [array.astype(np.float64) for array in arrays]
    with np.errstate(all="ignore"):
        body = np.asarray(BODIES[name](*wide, 0.3))
    for target in TARGETS:
        assert same(native_tensor(formula, wide, target), body), target


@pytest.mark.parametrize("name", BODIES)
def test_values_that_are_not_finite_and_equal_elements(name: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        arrays = [wild(F32, 700, rng).view(np.float32).reshape(70, 10) for _ in range(2)]
        if seed == 0:
            arrays = [np.full((70, 10), value, np.float32) for value in (0.5, -0.0)]
        elif seed % 2:
            arrays = [np.where(np.isnan(array), np.float32(1), array) for array in arrays]
        with np.errstate(all="ignore"):
            body = np.asarray(BODIES[name](*arrays, 0.3))
        for target in TARGETS:
            assert same(native_tensor(formula_of(name), arrays, target), body), (seed, target)


# ---- selection


def test_the_kth_largest_is_that_of_the_sorted_elements() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(size=5001), rng.integers(-4, 4, 5001), np.full(5001, -0.0)):
        a = values.astype(np.float32)
        for k in (1, 2, 700, 5000, 5001):
            formula = trace(Method("x", ("A",), {}, lambda a, k=k: kth_largest(a, k) + 0 * a), 1, {})
            assert native_tensor(formula, [a])[0] == np.sort(a)[-k]
    formulas = {k: trace(Method("x", ("A",), {}, lambda a, k=k: kth_largest(a, k) + 0 * a), 1, {}) for k in (0, 5002)}
    assert native_tensor(formulas[0], [a])[0] == math.inf and native_tensor(formulas[5002], [a])[0] == -math.inf


def test_quantiles_are_those_of_numpy() -> None:
    a = pair((37, 41))[0]
    for between in ("lower", "midpoint", "linear"):
        for q in (0, 0.01, 0.25, 0.5, 0.99, 1):
            found = float(quantile(a, q, between=between))
            assert found == pytest.approx(np.quantile(a.astype(np.float64), q, method=between), abs=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_exactly_k_are_chosen_and_of_equal_elements_the_first(target: str) -> None:
    for n, values in ((4000, 9), (2_000_000, 3)):  # the second has more equal elements than are remembered
        a = np.random.default_rng(2).integers(0, values, n).astype(np.float32)
        for k in (0, 1, n // 3, n // 2 + 7, n - 1, n, n + 5):
            formula = trace(Method("x", ("A",), {}, lambda a, k=k: largest(a, k) + 0 * a), 1, {})
            chosen = native_tensor(formula, [a], target)
            assert chosen.sum() == min(k, n)
            expected = np.zeros(n, np.float32)
            expected[np.argsort(-a, kind="stable")[:k]] = 1
            assert np.array_equal(chosen, expected), k


# ---- files


@pytest.fixture
def registered() -> Any:
    """The bodies as methods."""
    for name, body in BODIES.items():
        method(f"x-{name}", inputs="A B", share=Param(0.3, "a share"))(body)
    yield
    for name in BODIES:
        del _METHODS[f"x-{name}"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", BODIES)
def test_threads_tiles_io_targets_and_backends_write_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(3)
    shapes = {"a.weight": (70, 33, 3, 3), "b.weight": (300, 40), "c.bias": (77,), "d": (1,), "e": ()}
    paths = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for path in paths:
        save_file({name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}, path)
    out, expected = tmp_path / "o.safetensors", None
    for settings in (
        {"backend": "reference"}, {}, {"threads": 1}, {"threads": 5, "tile_bytes": 4096}, {"io": "mmap"},
        {"io": "pread"},
    ):  # fmt: skip
        sds.merge(f"x-{name}", paths, out=out, share=0.3, overwrite=True, **settings)
        found = {key: value.tobytes() for key, value in load_file(out).items()}
        expected = expected or found
        assert found == expected, settings
    for target in TARGETS:
        monkeypatch.setenv("SDS_CPU", target)
        sds.merge(f"x-{name}", paths, out=out, share=0.3, overwrite=True)
        assert {key: value.tobytes() for key, value in load_file(out).items()} == expected, target
    sources = [load_file(path) for path in paths]
    if name in ("dropped", "noisy"):  # keyed by the names
        alone = sds.apply(f"x-{name}", *(each["a.weight"] for each in sources), share=0.3)
        assert alone.tobytes() != expected["a.weight"]
    else:
        for key in shapes:
            alone = sds.apply(f"x-{name}", *(each[key] for each in sources), share=0.3)
            assert alone.tobytes() == expected[key], key


# ---- what a body may not do


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (lambda a, b: a * kth_largest(b, b), "several numbers where one is asked for"),
        (lambda a, b: a * kth_largest(b, sum(b, axis=0)), "several numbers where one is asked for"),
        (lambda a, b: a * kth_largest(2.0, 1), "a tensor is needed, and this is a single number"),
        (lambda a, b: a * quantile(b, 0.5, between="upper"), 'between="lower", "midpoint" or "linear"'),
        (lambda a, b: a * largest(b, 3, ties="last"), 'ties="first" or "all"'),
        (lambda a, b: a * index(b, 2), "along axis 0, 1 or -1"),
        (lambda a, b: a * uniform(mean(b), 1), "a tensor is needed"),
        (lambda a, b: whole(reversed_rows, a, 1.0, b), "tensors first, and numbers after them"),
        (lambda a, b: rank(a, axis=2), "along axis 1 or -1"),
    ],
)
def test_a_body_that_cannot_be_traced_gets_one_line(body: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text) as caught:
        trace(Method("x", ("A", "B"), {}, body), 2, {})
    assert "\n" not in str(caught.value)


def test_equal_selections_and_draws_are_made_once() -> None:
    program = trace(Method("x", ("A", "B"), {}, lambda a, b: largest(a, 2) * a + largest(a, 2) * b), 2, {}).program
    assert [op for op, *_ in program.stages[0].reductions] == ["top"] and len(program.made) == 1
    seeded = Method("x", ("A",), {"seed": Param(0, "")}, lambda a, seed: uniform(a, seed) * a - uniform(a, seed))
    assert len(trace(seeded, 1, {"seed": 4.0}).program.made) == 1


# ---- whole tensors, and any number of them


def test_ranks_count_from_one_and_equal_elements_in_order() -> None:
    a = np.array([[3, 1, 3], [2, np.nan, -0.0], [0, 5, 5]], np.float32)
    assert rank(a).tolist() == [[5, 3, 6], [4, 9, 1], [2, 7, 8]]
    assert rank(a, axis=-1).tolist() == [[2, 1, 3], [2, 3, 1], [1, 2, 3]]
    assert rank(a.reshape(1, 3, 3), axis=1).tolist() == [[[3, 1, 2], [2, 3, 1], [1, 2, 3]]]


def failing(x: np.ndarray) -> np.ndarray:
    raise ValueError("no such tensor")


def test_a_function_that_fails_is_one_line_and_a_wrong_shape_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for function, words in ((failing, "no such tensor"), (np.ravel, "returned")):
        method("x-failing", inputs="A")(lambda a, function=function: whole(function, a))
        try:
            save_file({"w": np.ones((3, 4), np.float32)}, tmp_path / "a.safetensors")
            with pytest.raises(sds.SdsError, match=words) as caught:
                sds.merge("x-failing", [tmp_path / "a.safetensors"], out=tmp_path / "o.safetensors")
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "o.safetensors").exists()
        finally:
            del _METHODS["x-failing"]


@pytest.mark.usefixtures("registered")
def test_a_tensor_that_needs_too_much_memory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file
    from sdsurgery import placing

    monkeypatch.setattr(placing, "WHOLE_MEMORY", 1 << 16)
    paths = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for path in paths:
        save_file({"small": np.ones(7, np.float32), "large": np.ones((100, 70), np.float32)}, path)
    with pytest.raises(sds.InputRefused, match=r"large.*needs .* MB of memory"):
        sds.merge("x-ranked", paths, out=tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


WHOLE = ("crossover", "distribution-crossover", "frequency-band", "feature-weighted", "rotate", "truncate-rank",
         "truncate-kronecker", "top-k-tensor-sum")  # fmt: skip
"""Methods whose body is one function of whole tensors."""


@pytest.mark.parametrize("shape", [(2000, 20), (20, 2000), (20, 20, 6, 6), (40, 9, 3, 3), (50_000,)])
def test_no_function_of_whole_tensors_takes_more_memory_than_it_declares(shape: tuple[int, ...]) -> None:
    import math
    import tracemalloc

    rng = np.random.default_rng(4)
    a, b, c = rng.normal(size=(3, *shape)).astype(np.float32)
    for name in WHOLE:
        chosen = sds.methods()[name]
        given = {"alignment": 0.5} if name == "rotate" else {}
        bound = chosen.bind(len(chosen.inputs), {**given, **({"alpha": 0.3} if "alpha" in chosen.params else {})})
        program = trace(chosen, len(chosen.inputs), bound).program
        arrays = (a, b, c)[: len(chosen.inputs)]
        chosen.body(*arrays, **bound)  # what is imported on first use
        tracemalloc.start()
        chosen.body(*arrays, **bound)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        declared = 4 * math.prod(shape) + program.working(shape)  # arguments are there already
        assert peak < declared + 100_000, (name, peak / math.prod(shape))
        assert program.working(shape) > 0 or len(shape) == 1


def test_drawn_numbers_are_those_of_each_tensor_s_name(tmp_path: Path) -> None:
    """In memory as from files: tensors of one shape have different masks."""
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(5)
    models = [{name: rng.normal(size=(30, 20)).astype(np.float32) for name in ("x.weight", "y.weight")} for _ in "ab"]
    paths = [tmp_path / f"{letter}.safetensors" for letter in "ab"]
    for path, model in zip(paths, models, strict=True):
        save_file(model, path)
    for name in ("dare", "della"):
        sds.merge(name, paths, out=tmp_path / "out.safetensors", overwrite=True)
        written, got = load_file(tmp_path / "out.safetensors"), sds.apply_many(name, *models)
        assert all(np.array_equal(written[key], got[key]) for key in written)
        kept = [got[key] != models[0][key] for key in models[0]]
        assert kept[0].any() and not np.array_equal(*kept)


@pytest.mark.parametrize("count", [4, 7, 200])
def test_sums_of_many_inputs_are_added_from_left_to_right(count: int) -> None:
    rng = np.random.default_rng(count)
    arrays = [rng.normal(size=1003).astype(np.float32) for _ in range(count)]
    arrays[1][[3, 900]] = np.inf, np.nan
    weights = rng.normal(size=count).tolist()
    total = np.float32(weights[0]) * arrays[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total = total + np.float32(weight) * array
    chosen = sds.methods()["weighted-sum"]
    formula = trace(chosen, count, chosen.bind(count, {"weights": weights}))
    for target in TARGETS:
        assert same(native_tensor(formula, arrays, target), total), target


def test_sums_take_any_mixture_of_dtypes_and_constants_that_are_shared() -> None:
    rng = np.random.default_rng(3)
    kinds = [np.float16, np.float32, np.float16, np.float32, np.float16]
    arrays = [rng.normal(size=1003).astype(kind) for kind in kinds]
    arrays[3][7] = np.inf
    for weights in ([0.25, 0.5, 0.25, 0.5, 0.125], [0.2] * 5):
        total = np.float32(weights[0]) * arrays[0].astype(np.float32)
        for weight, array in zip(weights[1:], arrays[1:], strict=True):
            total = total + np.float32(weight) * array.astype(np.float32)
        found = sds.apply("n-sum", *arrays, weights=weights, dtype="fp32")
        assert np.array_equal(found.view(np.uint32), total.view(np.uint32))


def test_200_selections_are_those_of_the_body() -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=70).astype(np.float32) for _ in range(200)]
    chosen = sds.methods()["ties"]
    given = chosen.bind(200, {"density": [0.5] * 199})
    body = np.asarray(chosen.body(*arrays, **given))
    assert same(native_tensor(trace(chosen, 200, given), arrays, TARGETS[0]), body)
