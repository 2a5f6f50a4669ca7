"""Averages of many models that weigh them by how they lie to each other."""

from __future__ import annotations

from typing import Any

from ..functions import clip, dot, maximum, norm, rounded, where
from .iterated import MANY
from .registry import Param, method
from .sums import left_to_right


@method("model-stock", inputs="A B C …", base="A")
def model_stock(base: Any, *models: Any) -> Any:
    """t·mean(B, C, …) + (1 − t)·A with t = m·c/(1 + (m − 1)·c), c the mean cosine of all pairs of differences from A.

    ``model_stock`` of mergekit 0.1.5 (arXiv 2403.19522); A is the base. t = 0 where 1 + (m − 1)·c is below 1e-6.
    """
    return stock(base, models, None)


@method("model-stock.rows", inputs="A B C …", base="A")
def model_stock_rows(base: Any, *models: Any) -> Any:
    """As model-stock, with a t for each vector along the last axis.

    ``model_stock`` of mergekit with ``filter_wise``.
    """
    return stock(base, models, -1)


@method(
    "model-stock.consecutive", inputs="A B C …", base="A", cos_eps=Param(1e-6, "norms are at least this", "[0, inf)")
)
def model_stock_consecutive(base: Any, *models: Any, cos_eps: float) -> Any:
    """A + t·mean(B − A, C − A, …), t as of model-stock.rows from consecutive pairs only, without a guard.

    ``model_stock`` of sd-mecha.
    """
    deltas = [model - base for model in models]
    return base + left_to_right(deltas) / len(deltas) * consecutive(deltas, cos_eps)


def consecutive(deltas: Any, cos_eps: float) -> Any:
    """The t of sd-mecha's model stock, for each vector along the last axis."""
    count = len(deltas)
    lengths = [maximum(norm(delta, -1), cos_eps) for delta in deltas]
    cosines = [dot(deltas[i], deltas[i + 1], -1) / (lengths[i] * lengths[i + 1]) for i in range(count - 1)]
    mean = left_to_right(cosines) / len(cosines)
    return count * mean / (1 + (count - 1) * mean)


def stock(base: Any, models: Any, axis: int | None) -> Any:
    deltas = [model - base for model in models]
    count = len(deltas)
    mean = mean_cosine(deltas, axis)
    below = 1 + (count - 1) * mean
    t = where(abs(below) < 1e-6, 0, count * mean / where(abs(below) < 1e-6, 1, below))
    return mixed_with_base(base, models, t)


def mean_cosine(deltas: Any, axis: int | None) -> Any:
    """The mean cosine of all pairs. Of many that are from the norm of the sum of their unit vectors, whose square is
    m + Σ of the cosines; norms are 1e-3 at least there."""
    count = len(deltas)
    lengths = [norm(delta, axis) for delta in deltas]
    if count <= MANY:
        return left_to_right([
            clip(dot(deltas[i], deltas[j], axis) / maximum(lengths[i] * lengths[j], 1e-6), -1, 1)
            for i in range(count)
            for j in range(i + 1, count)
        ]) / (count * (count - 1) // 2)  # fmt: skip
    units = [delta / maximum(length, 1e-3) for delta, length in zip(deltas, lengths, strict=True)]
    whole = left_to_right(units)
    alone = left_to_right([dot(unit, unit, axis) for unit in units])
    return clip((dot(whole, whole, axis) - alone) / (count * (count - 1)), -1, 1)


def mixed_with_base(base: Any, models: Any, t: Any) -> Any:
    t = rounded(t, base)  # as a tensor's element, so 1 − t is rounded as such
    return t * (left_to_right(models) / len(models)) + (1 - t) * base
