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
_STEPS = 80
"""Of Newton's method, and rounds in which bounds are added."""
_ADDED = 16
"""Bounds that are added in a round, for each ratio."""
_AROUND = 60.0
"""Standard errors of the start within which the ratios are sought."""


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
    ``start`` [k]; None where there are none: it is no single rounded sum of them.

    All elements' bounds make a polytope, of which few are sides. So the analytic centre of some is taken, those that it
    lies beyond are added, until there are none (Goffin, Haurie & Vial, 1992: cutting planes at analytic centres). Its
    errors are the half axes of the ellipsoid there (Dikin), as many times as there are ratios. Of two inputs all bounds
    are bounds of one number: then it is the middle between the closest, and the errors are how far these are away.
    """
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
    found = _middle(slope[0], goal, half) if len(rest) == 1 else _centre(slope, goal, half, start.astype(float)[rest])
    if found is None:
        return None
    ratios, own, ofall = found
    return Cell(np.insert(ratios, origin, 1 - ratios.sum()), np.insert(own, origin, ofall))


def _middle(slope: Array, goal: Array, half: Array) -> tuple[Array, Array, float] | None:
    """What ``_centre`` gives, of one ratio: ``slope`` [n]."""
    moves = slope != 0
    if not moves.any() or (np.abs(goal[~moves]) > half[~moves]).any():
        return None
    centres, widths = goal[moves] / slope[moves], half[moves] / np.abs(slope[moves])
    low, high = float((centres - widths).max()), float((centres + widths).min())
    return None if low > high else (np.array([(low + high) / 2]), np.array([(high - low) / 2]), (high - low) / 2)


def _centre(slope: Array, goal: Array, half: Array, start: Array) -> tuple[Array, Array, float] | None:
    """The centre [p] of the ratios for which all of ``goal`` − ratios·``slope`` [p, n] are within ±``half``, by how
    much each may be wrong [p], and by how much their sum."""
    scale = np.sqrt((slope**2).sum(axis=1))
    if not (scale > 0).all():
        return None
    rows = slope / scale[:, None]
    x = start * scale
    reach = _AROUND * np.linalg.eigvalsh(rows @ rows.T)[0].clip(1e-12) ** -0.5  # an element is off by half a unit
    sides = np.vstack([np.eye(len(x)), -np.eye(len(x))])
    limits = np.concatenate([x + reach, reach - x])
    for _ in range(_STEPS):
        left = goal - x @ rows
        beyond = np.abs(left) - half
        most = min(_ADDED * len(x), len(beyond))
        worst = np.argpartition(-beyond, most - 1)[:most]
        worst = worst[beyond[worst] > 1e-9]
        if not worst.size:
            break
        sign = np.sign(left[worst])
        # goal − r·slope ≤ half, where that is beyond; ≥ −half, else. Each once: many would move the centre.
        more = np.column_stack([-(rows[:, worst] * sign).T, half[worst] - goal[worst] * sign])
        more = np.array(sorted(set(map(tuple, np.round(more, 12)))))
        sides, limits = np.vstack([sides, more[:, :-1]]), np.concatenate([limits, more[:, -1]])
        inside = _inside(sides, limits, x)
        if inside is None:
            return None
        x = _centred(sides, limits, inside)
    else:
        return None
    slack = limits - sides @ x
    second = (sides / slack[:, None] ** 2).T @ sides
    inverse = np.linalg.pinv(second, hermitian=True) / scale[:, None] / scale[None, :]
    axes = len(x) * np.sqrt(np.append(np.diag(inverse), inverse.sum()).clip(0))
    return x / scale, axes[:-1], float(axes[-1])


def _inside(sides: Array, limits: Array, x: Array) -> Array | None:
    """A point with sides·x < limits, from x: with limits + t in their place, and t falling until it is negative."""
    t = float((sides @ x - limits).max())
    if t < 0:
        return x
    wide = np.hstack([sides, -np.ones((len(sides), 1))])
    y = np.append(x, t * 1.1 + 1e-6)
    weight = len(sides) / y[-1]
    for _ in range(_STEPS):
        for _ in range(3):
            y = _newton(wide, limits, y, np.append(np.zeros(len(x)), weight))
            if float((sides @ y[:-1] - limits).max()) < 0:
                return np.asarray(y[:-1])
        gap = len(sides) / weight  # of t from the least one
        if gap < max(1e-9, y[-1] / 100):
            return None
        weight *= 8
    return None


def _centred(sides: Array, limits: Array, x: Array) -> Array:
    for _ in range(_STEPS):
        after = _newton(sides, limits, x, np.zeros(len(x)))
        if np.abs(sides @ (after - x) / (limits - sides @ x)).max() < 1e-4:
            return after
        x = after
    return x


def _newton(sides: Array, limits: Array, x: Array, cost: Array) -> Array:
    """A damped step of Newton's method towards the least cost·x − Σ log(limits − sides·x)."""
    slack = limits - sides @ x
    scaled = sides / slack[:, None]
    gradient = cost + scaled.sum(axis=0)
    second = scaled.T @ scaled
    try:
        step = np.linalg.solve(second, -gradient)
    except np.linalg.LinAlgError:  # singular: the shortest step
        step = np.linalg.lstsq(second, -gradient, rcond=1e-15)[0]
    decrement = float(max(-(gradient @ step), 0.0)) ** 0.5
    towards = scaled @ step  # shares of the slack that a whole step uses up
    whole = min(1.0, 0.9 / max(float(towards.max()), 1e-300))
    return np.asarray(x + step * (whole if decrement < 0.25 else max(min(whole, 1 / (1 + decrement)), whole * 0.5)))
