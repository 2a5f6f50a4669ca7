"""Ratios that put elements of the mix where they were rounded from: each equation has its bounds, not only its noise.

A mix in a narrow dtype was rounded to nearest, so that |M − Σ rᵢ·Cᵢ| is at most half a unit in the last place of M, at
every element. Where parents are few units apart that error is not independent of their difference, which least squares
takes it to be: 0.81 of one unit always becomes a whole one. The bounds don't mind, and n of them know the ratios to
about 1/n, where least squares does to 1/√n.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType

Array = Any

_NARROW = 16
"""Bits of a mantissa up to which a dtype is so much coarser than float32 that its rounding is all that is seen."""
_STEPS = 60
_SWEEPS = 4


class Cell(NamedTuple):
    """Ratios [k] that sum to one, and by how much each may be wrong [k]."""

    ratios: Array
    errors: Array


def unit(mix: Array, dtype: DType) -> Array | None:
    """The distance of neighbouring values of the dtype around each element; None for a dtype that isn't narrow."""
    if not dtype.computable or dtype.format.mantissa_bits > _NARROW:
        return None
    exponents = np.frexp(np.abs(np.asarray(mix, np.float64)))[1] - 1
    return np.ldexp(1.0, np.maximum(exponents, dtype.format.least_exponent) - dtype.format.mantissa_bits)


def cell(mix: Array, inputs: Array, units: Array, start: Array) -> Cell | None:
    """The middle of the ratios for which all elements of ``mix`` [n] are the rounded sums of ``inputs`` [k, n], from
    ``start`` [k]; None where there are none: it is no single rounded sum of them."""
    finite = np.isfinite(mix) & np.isfinite(inputs).all(axis=0)
    origin = int(np.argmax(np.abs(start)))
    rest = [i for i in range(len(inputs)) if i != origin]
    if not rest or finite.sum() < 8 * len(inputs):
        return None
    x, m, u = inputs[:, finite].astype(np.float64), np.asarray(mix, np.float64)[finite], units[finite]
    slope = (x[rest] - x[origin]) / u
    goal = (m - x[origin]) / u
    # Half a unit, and what float32 loses on the way: a few roundings of the terms.
    half = 0.5 + 2.0**-22 * (np.abs(start) @ np.abs(x) + np.abs(m)) / u
    ratios = np.asarray(start, np.float64)[rest]
    for _ in range(_STEPS):  # Newton's method on the squares of what is outside
        left = goal - ratios @ slope
        beyond = left - np.clip(left, -half, half)
        outside = np.abs(beyond) > 1e-9
        if not outside.any():
            return _centred(goal, slope, half, ratios, origin)
        a = slope[:, outside]
        ratios = ratios + np.linalg.lstsq(a @ a.T, a @ (1.05 * beyond[outside]), rcond=1e-12)[0]
    return None


def _centred(goal: Array, slope: Array, half: Array, ratios: Array, origin: int) -> Cell:
    """The middle between the bounds of one ratio after the other, and their distance from it."""
    widths = np.full(len(ratios), np.inf)
    for _ in range(_SWEEPS):
        for i, own in enumerate(slope):
            left = goal - ratios @ slope
            used = own != 0
            middle, reach = left[used] / own[used], half[used] / np.abs(own[used])
            low, high = (middle - reach).max(initial=-np.inf), (middle + reach).min(initial=np.inf)
            if np.isfinite(low) and np.isfinite(high):
                ratios = ratios.copy()
                ratios[i] += (low + high) / 2
                widths[i] = (high - low) / 2
    # With the others fixed; when they move too, as many times as much.
    errors = np.abs(widths) * len(ratios)
    found, wrong = np.insert(ratios, origin, 1 - ratios.sum()), np.insert(errors, origin, errors.sum())
    return Cell(found, wrong)
