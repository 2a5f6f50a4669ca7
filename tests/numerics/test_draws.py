"""Random numbers: what they are, how they are distributed, and that comparisons with them take a shorter way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import TARGETS, native_tensor
from sdsurgery.definitions import draws
from sdsurgery.definitions.keys import key_word
from sdsurgery.functions import bernoulli, normal, uniform
from sdsurgery.methods import Method, Param
from sdsurgery.program.tracing import trace


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
    assert np.array_equal(native_tensor(formula, [a], target), expected.astype(np.float32))
    assert np.array_equal(native_tensor(formula, [a.astype(np.float64)], target), expected)


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
            assert np.array_equal(native_tensor(alone, [a], target), narrow), bound
            assert np.array_equal(native_tensor(alone, [a.astype(np.float64)], target), wide), bound
            assert np.array_equal(native_tensor(both, [a], target), narrow + drawn.astype(np.float32)), bound


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
