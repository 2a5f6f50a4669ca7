"""Bounds that rounding sets to the ratios of a mix."""

from __future__ import annotations

import numpy as np
import pytest


def test_bounds_of_rounding_give_what_least_squares_can_not() -> None:
    from sdsurgery.dtypes import F16
    from sdsurgery.surgery.cells import cell, unit

    rng = np.random.default_rng(1)
    a = rng.normal(size=4000).astype(np.float16).astype(np.float32)
    steps = np.spacing(a.astype(np.float16)).astype(np.float32) * rng.integers(-2, 3, 4000)  # two units at most
    b = (a + steps).astype(np.float16).astype(np.float32)
    mix = (np.float32(0.81) * b + np.float32(1 - 0.81) * a).astype(np.float16).astype(np.float32)
    d = (b - a).astype(np.float64)
    least_squares = float(d @ (mix - a) / (d @ d))
    units = unit(mix, F16)
    assert units is not None and abs(least_squares - 0.81) > 0.02
    found = cell(mix, np.stack([a, b]), units, np.array([1 - least_squares, least_squares]))
    assert found is not None and abs(found.ratios[1] - 0.81) <= found.errors[1] < 0.13
    assert found.ratios.sum() == pytest.approx(1.0, abs=1e-12)


def test_what_is_no_rounded_sum_has_no_bounds() -> None:
    from sdsurgery.dtypes import F16, F32
    from sdsurgery.surgery.cells import cell, unit

    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 4000)).astype(np.float16).astype(np.float32)
    mix = (0.5 * x[0] + 0.5 * x[1] + 0.01 * rng.normal(size=4000)).astype(np.float16).astype(np.float32)
    units = unit(mix, F16)
    assert units is not None and cell(mix, x, units, np.array([0.5, 0.5])) is None
    assert unit(mix, F32) is None
