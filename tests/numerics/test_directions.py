"""Methods that go by the products of tensors, where products cancel: opposite directions, small deviations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sdsurgery

SHAPES = [(2,), (32,), (8, 16), (4, 3, 3, 3), (7, 1), (300, 40)]


def opposites(shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs that point opposite ways, in float32: the rounding of B turns it by up to 1e-7."""
    rng = np.random.default_rng(5)
    pairs = []
    for factor in (-1, -2, -3, -0.7, -1 / 3):
        for _ in range(8):
            a = rng.normal(size=shape).astype(np.float32)
            pairs.append((a, a * np.float32(factor)))
    return pairs


def farthest(found: np.ndarray, wanted: Any) -> float:
    """The largest difference, in units of the largest wanted value."""
    return float(abs(found - wanted).max() / abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["slerp.norm", "nuslerp", "nuslerp.first-axis", "nuslerp.last-axis"])
def test_between_opposite_tensors_there_is_no_arc_but_the_weighted_sum(method: str, shape: tuple[int, ...]) -> None:
    name, _, variant = method.partition(".")
    given: dict[str, Any] = {"weights": [0.7, 0.3]} if name == "nuslerp" else {"alpha": 0.3}
    for a, b in opposites(shape):
        found = sdsurgery.apply(name, a, b, variant=variant or None, **given)
        assert abs(found - (0.7 * a + 0.3 * b)).max() < 3e-7 * max(abs(a).max(), abs(b).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_that_cancel_have_no_mean(shape: tuple[int, ...]) -> None:
    for a, b in opposites(shape):
        x, y = (each.astype(np.float64) for each in (a, b))
        assert not sdsurgery.apply("norm-direction", a, b).any()
        lengths = np.linalg.norm(x), np.linalg.norm(y)
        first = x / lengths[0] * sum(lengths) / 2
        assert farthest(sdsurgery.apply("karcher", a, b), first) < 1e-6
        if abs(1e-8 / lengths[0] - 1e-8 / lengths[1]) < 1e-8:  # what multislerp adds to the norms leaves no direction
            assert abs(sdsurgery.apply("multislerp", a, b) - (x + y) / 2).max() < 1e-6 * abs(x).max()


def test_directions_that_nearly_cancel_still_have_one() -> None:
    rng = np.random.default_rng(6)
    a = rng.normal(size=(8, 16)).astype(np.float32)
    b = (-3 * a + 1e-3 * rng.normal(size=a.shape)).astype(np.float32)
    x, y = (each.astype(np.float64) for each in (a, b))
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    mixed = x / lengths[0] + y / lengths[1]
    wanted = mixed / np.linalg.norm(mixed) * sum(lengths) / 2
    assert farthest(sdsurgery.apply("norm-direction", a, b), wanted) < 1e-3  # elements are mixed in float32


def matched_to_a(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """cosine-channel in float64, mean and deviation of the result itself."""
    rows_a, rows_b = (each.reshape(len(each) if each.ndim > 1 else 1, -1) for each in (a, b))
    lengths = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
    cosine = (rows_a * rows_b).sum(axis=1) / np.maximum(lengths, 1e-16)
    t = np.clip(abs(alpha) * (cosine + 1) / 2, 0, 1)[:, None]
    mixed = rows_a + t * (rows_b - rows_a)
    deviation = mixed.std() if (mixed != mixed.flat[0]).any() else 0
    scale = (a.std() + deviation) / 2 / deviation if deviation else 1
    found: np.ndarray = (mixed - mixed.mean()) * scale + (a.mean() + mixed.mean()) / 2
    return found.reshape(a.shape)


@pytest.mark.parametrize("deviation", [1e-2, 1e-4, 1e-6, 4e-7, 3e-7, 2e-7, 1e-7, 0])
@pytest.mark.parametrize("shape", [(1,), *SHAPES, (65, 2050)])
def test_a_deviation_is_found_beside_a_much_larger_mean(shape: tuple[int, ...], deviation: float) -> None:
    rng = np.random.default_rng(7)
    for alpha in (0.0, 0.5, 1.0):
        a, b = ((1 + deviation * rng.normal(size=shape)).astype(np.float32) for _ in range(2))
        wanted = matched_to_a(a.astype(np.float64), b.astype(np.float64), alpha)
        assert farthest(sdsurgery.apply("cosine-channel", a, b, alpha=alpha), wanted) < 4e-7


def test_of_equal_elements_the_deviation_is_none() -> None:
    rng = np.random.default_rng(8)
    for size in (1, 3, 40_000, 300_000):
        for _ in range(20):
            a, b = (np.full((2, size), number, np.float32) for number in rng.uniform(0.1, 10, 2))
            halfway = a[0, 0] + 0.5 * (b[0, 0] - a[0, 0])
            found = sdsurgery.apply("cosine-channel", a, b, alpha=0.5)
            assert farthest(found, np.full((2, size), (a[0, 0] + halfway) / 2)) < 1e-6
            uneven = a * (1 + 0.05 * np.sin(np.arange(size))).astype(np.float32)
            all_of_b = sdsurgery.apply("cosine-channel", uneven, b, alpha=1.5)
            assert farthest(all_of_b, np.full((2, size), (uneven.mean() + b[0, 0]) / 2)) < 1e-6
