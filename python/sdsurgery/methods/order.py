"""Order: the smallest, the largest and the middle of several models, and bounds made of them."""

from __future__ import annotations

import math
from typing import Any

from ..functions import clip, is_nan, maximum, minimum, where
from .registry import Param, method
from .sums import left_to_right


@method("min", inputs="A …")
def smallest(*models: Any) -> Any:
    """The smallest of the models' values; a NaN is carried, of equal ones it is the first."""
    found = models[0]
    for model in models[1:]:
        found = minimum(model, found)
    return found


@method("max", inputs="A …")
def largest(*models: Any) -> Any:
    """The largest of the models' values; a NaN is carried, of equal ones it is the first.

    ``weight_max`` of Chattiori-Model-Merger, of two.
    """
    found = models[0]
    for model in models[1:]:
        found = maximum(model, found)
    return found


@method("median", inputs="A …")
def median_of_models(*models: Any) -> Any:
    """The middle one of the models' values, of an even number the mean of the two in the middle; a NaN is carried."""
    ordered = list(models)
    for last in range(len(models) - 1, 0, -1):
        for at in range(last):
            low, high = ordered[at : at + 2]
            ordered[at : at + 2] = minimum(high, low), maximum(high, low)
    half = len(models) // 2
    middle = ordered[half] if len(models) % 2 else (ordered[half - 1] + ordered[half]) / 2
    lowest = smallest(*models)  # is NaN where one is
    return where(is_nan(lowest), lowest, middle)


@method(
    "clamp", inputs="A B …",
    stiffness=Param(0.0, "0: between the smallest and the largest bound; 1: between the bounds next to their mean",
                    "[0, 1]"),
)  # fmt: skip
def clamp(a: Any, *bounds: Any, stiffness: float) -> Any:
    """A, no smaller than the smallest and no larger than the largest of the other models.

    ``clamp`` of sd-mecha. With stiffness s the limits move to (1 − s)·limit + s·(the bound next to the bounds' mean).
    """
    return clamped(a, bounds, stiffness)


@method("clamp.ab", inputs="A B C")
def clamp_between(a: Any, b: Any, c: Any) -> Any:
    """C, no smaller than the smaller and no larger than the larger of A and B.

    ``clip_weights`` of meh.
    """
    return clamped(c, (a, b))


def clamped(result: Any, bounds: Any, stiffness: float = 0.0) -> Any:
    """The result within the bounds; a NaN stays."""
    low, high = smallest(*bounds), largest(*bounds)
    if stiffness:
        mean = left_to_right(bounds) / len(bounds)
        above = smallest(*(where(bound >= mean, bound, math.inf) for bound in bounds))
        below = largest(*(where(bound <= mean, bound, -math.inf) for bound in bounds))
        high = (1 - stiffness) * high + stiffness * above
        low = (1 - stiffness) * low + stiffness * below
    return clip(result, low, high)
