"""Methods that turn one model towards another, instead of walking straight to it."""

from __future__ import annotations

from typing import Any

from ..functions import acos, clip, copysign, cos, dot, is_nan, lerp, maximum, multiply_add, norm, sin, sqrt, where
from .iterated import MANY
from .registry import Flag, Param, PerInput, method
from .sums import FUSED, left_to_right, nonzero, total

ARC = Param(0.5, "position on the arc from A to B, 0 to 1")
STRAIGHT = 1e-14
"""1 − cos² of tensors that lie on a line: a few roundings of the cosine, and those of a tensor that was scaled."""
PAIR = PerInput("weights of the two; B's share is its part of their sum", default=0.5)


@method("slerp", inputs="A B", alpha=ARC)
def slerp(a: Any, b: Any, alpha: Any) -> Any:
    """sin((1−α)·θ)/sin θ·A + sin(α·θ)/sin θ·B: from A to B along the arc; θ is the angle between the two tensors.

    Where they point the same way (or opposite ways: |cos θ| > 0.9995) it is the weighted sum. A norm of at most 1e-8
    counts as 1. Source: Shoemake, "Animating rotation with quaternion curves", 1985; limits as in mergekit 0.1.5.
    """
    cosine = clip(dot(a, b) / (_or_one(norm(a)) * _or_one(norm(b))), -1, 1)
    theta = acos(cosine)
    curved = sin((1 - alpha) * theta) / sin(theta) * a + sin(alpha * theta) / sin(theta) * b
    return where(abs(cosine) > 0.9995, (1 - alpha) * a + alpha * b, curved)


@method("slerp.norm", inputs="A B", alpha=ARC, fused=FUSED)
def slerp_norm(a: Any, b: Any, alpha: Any, fused: bool) -> Any:
    """The arc between the unit vectors A/‖A‖ and B/‖B‖, times (1 − α)·‖A‖ + α·‖B‖; the weighted sum where that is 0/0.

    ``slerp`` of sd-mecha. Of opposite tensors, whose cosine is −1 but for rounding, it is the weighted sum too.
    """
    length_a, length_b = norm(a), norm(b)
    cosine = clip(dot(a, b) / (length_a * length_b), -1, 1)
    theta = acos(cosine)
    length = (1 - alpha) * length_a + alpha * length_b
    first = sin((1 - alpha) * theta) / sin(theta) / length_a * length
    second = sin(alpha * theta) / sin(theta) / length_b * length
    curves = (first - first == 0) * (second - second == 0) * (cosine > STRAIGHT / 2 - 1)
    return where(curves, first * a + second * b, lerp(a, b, alpha, fused))


def _or_one(length: Any) -> Any:
    return where(length > 1e-8, length, 1)


@method("nuslerp", inputs="A B", weights=PAIR)
def nuslerp(a: Any, b: Any, weights: tuple[float, float]) -> Any:
    """The arc from A to B at t = w₂/(w₁ + w₂), of the whole tensors; t = ½ for |w₁ + w₂| < 1e-6.

    ``nuslerp`` of mergekit. Norms are 1e-7 at least; where 1 − cos² ≤ 1e-14 it is the weighted sum (mergekit: 1e-16,
    less than the rounding of a cosine).
    """
    return along_the_arc(a, b, weights, None)


@method("nuslerp.last-axis", inputs="A B", weights=PAIR)
def nuslerp_last(a: Any, b: Any, weights: tuple[float, float]) -> Any:
    """As nuslerp, of each vector along the last axis.

    ``nuslerp`` of mergekit with ``nuslerp_flatten`` off and ``nuslerp_row_wise`` off.
    """
    return along_the_arc(a, b, weights, -1)


@method("nuslerp.first-axis", inputs="A B", weights=PAIR)
def nuslerp_first(a: Any, b: Any, weights: tuple[float, float]) -> Any:
    """As nuslerp, of each vector along the first axis.

    ``nuslerp`` of mergekit with ``nuslerp_flatten`` off and ``nuslerp_row_wise`` on.
    """
    return along_the_arc(a, b, weights, 0)


@method("nuslerp.base", inputs="A B C", base="A", weights=PerInput("weights of B and C", default=0.5, after=1))
def nuslerp_base(base: Any, a: Any, b: Any, weights: tuple[float, float]) -> Any:
    """A + nuslerp(B − A, C − A): the arc between two differences; A is the base.

    ``nuslerp`` of mergekit with a base model.
    """
    return base + along_the_arc(a - base, b - base, weights, None)


def along_the_arc(a: Any, b: Any, weights: tuple[float, float], axis: int | None) -> Any:
    w1, w2 = weights
    t = where(abs(w1 + w2) < 1e-6, 0.5, w2 / where(abs(w1 + w2) < 1e-6, 1.0, w1 + w2))
    length_a, length_b = maximum(norm(a, axis), 1e-7), maximum(norm(b, axis), 1e-7)
    cosine = clip(dot(a, b, axis) / (length_a * length_b), -1, 1)
    theta = acos(cosine)
    straight = 1 - cosine * cosine <= STRAIGHT
    scale = where(straight, 1, sin(theta))
    first = where(straight, 1 - t, sin((1 - t) * theta) / scale)
    second = where(straight, t, sin(t * theta) / scale)
    return first * a + second * b


@method("multislerp", inputs="A …", weights=PerInput("weight of each input", default=1.0),
        normalize=Flag(True, "divide the weights by their sum"))  # fmt: skip
def multislerp(*models: Any, weights: tuple[float, ...], normalize: bool) -> Any:
    """The weighted mean of directions on the sphere, times the weighted mean of the norms.

    u = T/(‖T‖ + 1e-8); μ = Σ w·u, normalised; v = Σ w·(u − ⟨u, μ⟩·μ), ν = ‖v‖ + 1e-8; Σ w·‖T‖·(cos ν·μ + sin ν/ν·v).
    One model is left unchanged; where the directions cancel it is the weighted sum (mergekit refuses more than two such
    models). ``multislerp`` of mergekit; refused for weights that sum to 0.
    """
    return on_the_sphere(models, weights, normalize)


@method("multislerp.base", inputs="A B …", base="A",
        weights=PerInput("weight of each input but A", default=1.0, after=1),
        normalize=Flag(True, "divide the weights by their sum"))  # fmt: skip
def multislerp_base(base: Any, *models: Any, weights: tuple[float, ...], normalize: bool) -> Any:
    """A + multislerp(B − A, C − A, …); A is the base. A single model is left unchanged.

    ``multislerp`` of mergekit with a base model.
    """
    if len(models) == 1:
        return models[0]
    return base + on_the_sphere([model - base for model in models], weights, normalize)


def on_the_sphere(models: Any, weights: tuple[float, ...], normalize: bool) -> Any:
    """All of it is a combination of the models, whose coefficients follow from their products."""
    if len(models) == 1:
        return models[0]
    if normalize:
        whole = nonzero(left_to_right(weights), "the weights sum to 0", weights)
        weights = tuple(weight / whole for weight in weights)
    if len(models) > MANY:
        return of_many(models, weights)
    each = range(len(models))
    products = [[dot(models[min(i, j)], models[max(i, j)]) for j in each] for i in each]
    lengths = [sqrt(products[i][i]) for i in each]
    units = [1 / (length + 1e-8) for length in lengths]  # of u, in terms of T

    def inner(x: Any, y: Any) -> Any:
        """The product of two combinations."""
        return left_to_right([x[i] * y[j] * products[i][j] for i in each for j in each])

    mean = [weight * unit for weight, unit in zip(weights, units, strict=True)]
    alone = left_to_right([mean[i] * mean[i] * products[i][i] for i in each])
    square = inner(mean, mean)
    straight = where(square <= 1e-14 * alone, 0, sqrt(maximum(square, 0)))  # so little may be rounding
    mu = [number / where(straight < 1e-8, 1, straight) for number in mean]
    own = [[units[i] if i == k else 0 * units[i] for i in each] for k in each]
    slopes = [inner(own[k], mu) for k in each]
    turned = left_to_right([weight * slope for weight, slope in zip(weights, slopes, strict=True)])
    v = [weight * unit - turned * number for weight, unit, number in zip(weights, units, mu, strict=True)]
    nu = sqrt(maximum(inner(v, v), 0)) + 1e-8
    length = left_to_right([weight * length for weight, length in zip(weights, lengths, strict=True)])
    found = [length * (cos(nu) * mu[k] + sin(nu) / nu * v[k]) for k in each]
    # Zeros, and directions that cancel, leave no mean: the weighted sum.
    return total([where(straight < 1e-8, w, number) for w, number in zip(weights, found, strict=True)], models)


def of_many(models: Any, weights: tuple[float, ...]) -> Any:
    """The same, without the products of all models with each other."""
    lengths = [norm(model) for model in models]
    units = [1 / (length + 1e-8) for length in lengths]
    mean = total([weight * unit for weight, unit in zip(weights, units, strict=True)], models)
    straight = norm(mean)
    mu = mean / where(straight < 1e-8, 1, straight)
    slopes = [unit * dot(model, mu) for unit, model in zip(units, models, strict=True)]
    turned = left_to_right([weight * slope for weight, slope in zip(weights, slopes, strict=True)])
    v = mean - turned * mu
    nu = norm(v) + 1e-8
    length = left_to_right([weight * length for weight, length in zip(weights, lengths, strict=True)])
    return where(straight < 1e-8, total(weights, models), length * (cos(nu) * mu + sin(nu) / nu * v))


@method("norm-direction", inputs="A B", alpha=Param(0.5, "weight of B, for directions and norms"))
def norm_direction(a: Any, b: Any, alpha: float) -> Any:
    """The direction of (1 − α)·A/‖A‖ + α·B/‖B‖ with the norm (1 − α)·‖A‖ + α·‖B‖ (1e-12 is added to each norm).

    "NORM" of Chattiori-Model-Merger. Zeros where the two directions cancel but for rounding, which would have none.
    """
    square_a, square_b = dot(a, a), dot(b, b)
    length_a, length_b = sqrt(square_a) + 1e-12, sqrt(square_b) + 1e-12
    x, y = (1 - alpha) / length_a, alpha / length_b  # the mix is x·A + y·B
    alone = x * x * square_a + y * y * square_b
    square = alone + 2 * x * y * dot(a, b)
    scale = ((1 - alpha) * length_a + alpha * length_b) / (sqrt(maximum(square, 0)) + 1e-12)
    scale = where(square < 2.0**-42 * alone, 0, scale)
    return scale * x * a + scale * y * b


@method("perpendicular", inputs="A B")
def perpendicular(a: Any, b: Any) -> Any:
    """B − A·⟨A, B⟩/‖A‖²: what of B is perpendicular to A; zeros where that is not a number.

    ``perpendicular_component`` of sd-mecha.
    """
    return across(a, b)


def across(a: Any, b: Any) -> Any:
    part = b - a * (dot(a, b) / dot(a, a))
    return where(is_nan(part), 0, part)


@method("add-perpendicular", inputs="A B C", base="C", alpha=Param(1.0, "how much is added"), fused=FUSED)
def add_perpendicular(a: Any, b: Any, c: Any, alpha: float, fused: bool) -> Any:
    """A + α·p with p = (B − C) − (A − C)·⟨A − C, B − C⟩/‖A − C‖²: what B learned in other directions than A.

    ``perpendicular_component`` of sd-mecha, of differences.
    """
    return multiply_add(across(a - c, b - c), alpha, a, fused)


@method("ortho", inputs="A B", alpha=Param(1.0, "how much is added"))
def ortho(a: Any, b: Any, alpha: float) -> Any:
    """A + α·(D − A·⟨D, A⟩/(‖A‖² + 1e-12)) with D = B − A: what of B − A is perpendicular to the weights of A.

    "ORTHO" of Chattiori-Model-Merger.
    """
    away = b - a
    return a + alpha * (away - a * (dot(away, a) / (dot(a, a) + 1e-12)))


@method(
    "euclidean-add-diff",
    inputs="A B C",
    base="C",
    alpha=Param(0.5, "0: what A learned beyond C, 1: what B learned", "[0, 1]"),
)
def euclidean_add_difference(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """C + d·‖s‖/‖d‖ with d = √((1 − α)·x² + α·y²), x and y the directions of A − C and B − C, s = (1 − α)·A + α·B − C.

    d has the signs of s. ``euclidean_add_difference`` of meh; C where A = B = C.
    """
    s = (1 - alpha) * a + alpha * b - c
    x, y = direction(a - c), direction(b - c)
    d = copysign(sqrt((1 - alpha) * (x * x) + alpha * (y * y)), s)
    length = norm(d)
    return c + where(length == 0, 0, d * (norm(s) / where(length == 0, 1, length)))


def direction(x: Any) -> Any:
    """x/‖x‖, 0 of zeros."""
    length = norm(x)
    return x / where(length == 0, 1, length)
