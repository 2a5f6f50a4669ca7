"""Selections, places and random numbers: the same on every target, thread count, tile size and backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import TARGETS, wild
from sdsurgery import _native
from sdsurgery.backends import cpu
from sdsurgery.definitions import draws
from sdsurgery.definitions.keys import key_word
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import F32, F64
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


def native(formula: Formula, arrays: list[np.ndarray], target: str = "", wide: bool = False) -> np.ndarray:
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    code = (F32 if out.dtype == np.float32 else F64).native
    _native.apply(
        cpu.native_program(formula.program, wide), formula.numbers, [(array.ctypes.data, code) for array in arrays],
        out.ctypes.data, code, out.size, target=target, shape=out.shape,
    )  # fmt: skip
    return out


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
        assert same(native(formula, arrays, target), body), target
    expected, *_ = evaluate_tensor(formula, [(array, F32) for array in arrays], F32, "default", False)
    assert same(expected.reshape(shape), body)
    tensors = BODIES[name](*(torch.from_numpy(array) for array in arrays), 0.3)
    assert same(np.asarray(tensors), body)
    wide = [array.astype(np.float64) for array in arrays]
    with np.errstate(all="ignore"):
        body = np.asarray(BODIES[name](*wide, 0.3))
    for target in TARGETS:
        assert same(native(formula, wide, target), body), target


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
            assert same(native(formula_of(name), arrays, target), body), (seed, target)


# ---- selection


def test_the_kth_largest_is_that_of_the_sorted_elements() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(size=5001), rng.integers(-4, 4, 5001), np.full(5001, -0.0)):
        a = values.astype(np.float32)
        for k in (1, 2, 700, 5000, 5001):
            formula = trace(Method("x", ("A",), {}, lambda a, k=k: kth_largest(a, k) + 0 * a), 1, {})
            assert native(formula, [a])[0] == np.sort(a)[-k]
    formulas = {k: trace(Method("x", ("A",), {}, lambda a, k=k: kth_largest(a, k) + 0 * a), 1, {}) for k in (0, 5002)}
    assert native(formulas[0], [a])[0] == math.inf and native(formulas[5002], [a])[0] == -math.inf


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
            chosen = native(formula, [a], target)
            assert chosen.sum() == min(k, n)
            expected = np.zeros(n, np.float32)
            expected[np.argsort(-a, kind="stable")[:k]] = 1
            assert np.array_equal(chosen, expected), k


# ---- random numbers


def test_philox_is_the_published_one() -> None:
    """The known answers of the authors' Random123 library, for seven rounds."""
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    ones = (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2
    for counter, key, expected in (
        ((0, 0, 0, 0), (0, 0), "5f6fb709 0d893f64 4f121f81 4f730a48"),
        (*ones, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (*pi, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ):
        block = np.array([counter[0] | counter[1] << 32], np.uint64)
        found = draws._philox(block, counter[2], counter[3], (float(key[0]), float(key[1])))
        assert " ".join(f"{int(word[0]):08x}" for word in found) == expected


def test_an_element_takes_a_byte_and_a_half_of_its_blocks() -> None:
    """Written out with bytes, as docs/numerics.md says it."""
    key = (key_word(1, "x", 0), key_word(1, "x", 1))

    def block(number: int, part: int) -> bytes:
        words = draws._philox(np.array([number], np.uint64), 3, part, key)
        return b"".join(int(word[0]).to_bytes(4, "little") for word in words)

    for first in (0, 13, 2**32 * 16 - 5, 2**40 + 3):
        found = draws.uniform(key, 3, first, 40) * 2**24
        for i, n in enumerate(found, first):
            half = block(i // 8, 1)[i % 8 * 2 :][:2]
            assert n == block(i // 16, 0)[i % 16] * 2**16 + int.from_bytes(half, "little")


def test_a_number_depends_on_seed_name_element_and_draw_alone() -> None:
    key = (key_word(1, "x", 0), key_word(1, "x", 1))
    whole = draws.uniform(key, 0, 0, 1000), draws.normal(key, 0, 0, 1000)
    for first, number in ((0, 7), (1, 300), (513, 487), (999, 1)):
        assert np.array_equal(draws.uniform(key, 0, first, number), whole[0][first : first + number])
        assert np.array_equal(draws.normal(key, 0, first, number), whole[1][first : first + number])
    others = [(key_word(2, "x", 0), key[1]), (key_word(1, "y", 0), key[1])]
    for other in others:
        assert not np.array_equal(draws.uniform(other, 0, 0, 1000), whole[0])
    assert not np.array_equal(draws.uniform(key, 1, 0, 1000), whole[0])


def test_the_numbers_are_distributed_as_they_should() -> None:
    key = (key_word(5, "w", 0), key_word(5, "w", 1))
    count = 2_000_000
    flat, bell = draws.uniform(key, 0, 0, count), draws.normal(key, 0, 0, count)
    assert flat.min() >= 0 and flat.max() < 1
    assert abs(flat.mean() - 0.5) < 1e-3 and abs(flat.var() - 1 / 12) < 5e-4
    assert abs(bell.mean()) < 3e-3 and abs(bell.var() - 1) < 5e-3 and abs((bell**3).mean()) < 1e-2
    assert abs((bell**4).mean() - 3) < 3e-2 and abs(np.corrcoef(bell[:-1], bell[1:])[0, 1]) < 3e-3
    for bits in (flat, flat * 2**8 % 1, flat * 2**16 % 1):  # the upper ones, and lower ones
        histogram, expected = np.histogram(bits, 256, (0, 1))[0], count / 256
        assert ((histogram - expected) ** 2 / expected).sum() < 350
    for least, share in ((3, 2.699796e-3), (4, 6.334248e-5)):
        assert abs((np.abs(bell) > least).sum() - count * share) < 4 * math.sqrt(count * share)
    below = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in np.sort(bell)])  # Kolmogorov and Smirnov
    places = np.arange(count)
    assert max((below - places / count).max(), ((places + 1) / count - below).max()) < 1.63 / math.sqrt(count)


def test_normal_is_the_inverse_of_the_distribution_function() -> None:
    import mpmath

    n = np.arange(2**24)
    x = draws.normal_of(n)
    assert x.dtype == np.float32 and np.array_equal(x, -x[::-1]) and (np.diff(x) >= 0).all() and (x[2**23 :] > 0).all()
    # Of each octave's numbers up to 65,536, and every fifth of the others; a step of Newton's method says how far off.
    some = np.r_[: 2**16, 2**16 : 2**23 : 5]
    wide = x[some].astype(np.float64)
    below = np.array([math.erfc(-value) / 2 for value in wide / math.sqrt(2)])
    away = (below - (some + 0.5) / 2**24) / (np.exp(wide * wide / -2) / math.sqrt(2 * math.pi))
    assert np.abs(away).max() < 2**-20
    for place in (0, 1, 5, 1000, 2**15, 2**20 + 1, 2**22, 2**23 - 1):
        exact = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(2 * place + 1) / 2**24 - 1)
        assert abs(float(x[place]) - exact) < 2**-20 and abs(x[place] / exact - 1) < 2**-15


@pytest.mark.parametrize("target", TARGETS)
def test_normal_numbers_are_the_definition_s_in_every_octave(target: str) -> None:
    """The rare ones too, which SIMD registers leave to be made one by one."""
    a = np.zeros(3_000_001, np.float32)
    formula = trace(Method("x", ("A",), {}, lambda a: a + normal(a, 9) * 1), 1, {})
    key = (key_word(9, "", 0), key_word(9, "", 1))
    expected = draws.normal(key, 0, 0, a.size)
    assert np.abs(expected).max() > 5
    assert np.array_equal(native(formula, [a], target), expected.astype(np.float32))
    assert np.array_equal(native(formula, [a.astype(np.float64)], target), expected)


def bounds() -> list[float]:
    numbers = [0.0, -0.0, 1.0, 1.5, -0.25, math.nan, math.inf, -math.inf, 0.9, 0.1, 0.5, 1 / 3, 1e-9, 2.0**-24, 1e-45]
    for k in (1, 3, 128, 255):
        middle = np.float32(k / 256)
        numbers += [float(np.nextafter(middle, np.float32(side))) for side in (0, 1)]
        numbers += [k / 256, k / 256 + 2.0**-24, k / 256 - 2.0**-24, math.nextafter(k / 256, 1)]
    return numbers


@pytest.mark.parametrize("target", TARGETS)
def test_a_comparison_with_a_number_is_that_of_the_whole_numbers(target: str) -> None:
    """Of these the byte alone is made wherever it decides; other uses of the numbers beside it need all of them."""
    key = (key_word(3, "", 0), key_word(3, "", 1))
    for number in (1, 15, 255, 256, 257, 511, 513, 4099):
        a = np.full(number, 2, np.float32)
        drawn = draws.uniform(key, 0, 0, number)
        for bound in bounds():
            alone, both = (
                trace(Method("x", ("A",), {"seed": Param(0, "")}, body), 1, {"seed": 3.0})
                for body in (
                    lambda a, seed, bound=bound: a * bernoulli(a, bound, seed),
                    lambda a, seed, bound=bound: a * bernoulli(a, bound, seed) + uniform(a, seed),
                )
            )
            assert len(both.program.made) == 1
            narrow, wide = a * (drawn < np.float32(bound)), a.astype(np.float64) * (drawn < bound)
            assert np.array_equal(native(alone, [a], target), narrow), bound
            assert np.array_equal(native(alone, [a.astype(np.float64)], target), wide), bound
            assert np.array_equal(native(both, [a], target), narrow + drawn.astype(np.float32)), bound


@pytest.mark.parametrize("target", TARGETS)
def test_masks_are_the_same_from_any_element_on(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of odd lengths begin within a block; dare has a kernel of its own, dare-mean has none."""
    from safetensors.numpy import load_file, save_file

    monkeypatch.setenv("SDS_CPU", target)
    rng = np.random.default_rng(8)
    paths = [tmp_path / f"{letter}.safetensors" for letter in "abc"]
    for path in paths:
        save_file({"w": rng.normal(size=(701, 37)).astype(np.float16)}, path)
    out = tmp_path / "o.safetensors"
    for name, given in (
        ("dare", {}), ("dare", {"p": 0.4}), ("dare", {"p": 0.5}), ("dare-mean", {}), ("add-noise", {"alpha": 0.3}),
    ):  # fmt: skip
        inputs = paths[: 1 if name == "add-noise" else 3]
        sds.merge(name, inputs, out=out, backend="reference", overwrite=True, **given)
        expected = load_file(out)["w"].tobytes()
        for tile in (4096, 4099, 70_003):
            sds.merge(name, inputs, out=out, tile_bytes=tile, threads=2, overwrite=True, **given)
            assert load_file(out)["w"].tobytes() == expected, (name, tile)


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
        assert same(native(formula, arrays, target), total), target


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
    assert same(native(trace(chosen, 200, given), arrays, TARGETS[0]), body)
