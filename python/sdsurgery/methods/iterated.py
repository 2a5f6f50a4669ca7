"""Averages that are found step by step: Karcher's mean on the sphere, the geometric median.

Each stays a combination of the models (of their differences from the first), so the steps are taken on its
coefficients: all that is needed of the tensors are the products of the models with each other.
"""

from __future__ import annotations

from typing import Any

from ..functions import acos, clip, cos, dot, maximum, norm, sin, sqrt, where
from .registry import Param, Whole, method
from .sums import left_to_right, total

MANY = 16
"""Of more tensors the products with each other are more than a combination's with each, step by step."""


class Gram:
    """The products of tensors with each other. A combination of them is a list of coefficients."""

    def __init__(self, tensors: Any) -> None:
        each = range(len(tensors))
        self.rows = [[dot(tensors[min(i, j)], tensors[max(i, j)]) for j in each] for i in each]
        self.squares = [row[k] for k, row in enumerate(self.rows)]

    def times(self, x: list[Any]) -> list[Any]:
        """The products of the combination x with each tensor."""
        return [left_to_right([x[j] * row[j] for j in range(len(x))]) for row in self.rows]

    def length(self, x: list[Any]) -> Any:
        """The norm of the combination x."""
        return sqrt(maximum(inner(x, self.times(x)), 0))

    def distances(self, x: list[Any]) -> list[Any]:
        """Of each tensor from the combination x: ‖T‖² − 2·⟨T, x⟩ + ‖x‖²."""
        products = self.times(x)
        square = inner(x, products)
        return [sqrt(maximum(own - 2 * products[k] + square, 0)) for k, own in enumerate(self.squares)]


class Combinations:
    """The same of many tensors: combinations are evaluated as tensors, so every step reads all of them again."""

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors
        self.squares = [dot(tensor, tensor) for tensor in tensors]

    def times(self, x: list[Any]) -> list[Any]:
        mixed = total(x, self.tensors)
        return [dot(mixed, tensor) for tensor in self.tensors]

    def length(self, x: list[Any]) -> Any:
        return norm(total(x, self.tensors))

    def distances(self, x: list[Any]) -> list[Any]:
        mixed = total(x, self.tensors)
        return [norm(tensor - mixed) for tensor in self.tensors]


def products(tensors: Any) -> Gram | Combinations:
    return Gram(tensors) if len(tensors) <= MANY else Combinations(tensors)


def inner(x: list[Any], y: list[Any]) -> Any:
    return left_to_right([a * b for a, b in zip(x, y, strict=True)])


@method("karcher", inputs="A …", max_iter=Whole(10, "largest number of steps", "[1, 100]"),
        tol=Param(1e-5, "stop when a step is shorter", "[0, inf)"))  # fmt: skip
def karcher(*models: Any, max_iter: float, tol: float) -> Any:
    """The mean of the models' directions on the sphere, times the mean of their norms.

    From the normalised mean of the unit vectors, u ← exp_u(mean of log_u(uᵢ)) until a step is shorter than ``tol``.
    ``karcher`` of mergekit (arXiv 2603.04972). Zero tensors count for the norm, not for the direction; of opposite
    models it is the first's direction.
    """
    if len(models) == 1:
        return models[0]
    gram = products(models)
    lengths = [sqrt(square) for square in gram.squares]
    counts = [where(length > 0, 1, 0) for length in lengths]
    alive = maximum(left_to_right(counts), 1)
    units = [where(length > 0, 1 / where(length > 0, length, 1), 0) for length in lengths]
    shares = [count / alive for count in counts]
    u = [unit / alive for unit in units]
    straight = gram.length(u)  # less than 1e-7 may be the rounding of products
    u = [
        where(straight > 1e-7, x / where(straight > 1e-7, straight, 1), units[0] if k == 0 else 0)
        for k, x in enumerate(u)
    ]
    going: Any = 1
    for _ in range(int(max_iter)):
        cosines = [clip(unit * product, -1, 1) for unit, product in zip(units, gram.times(u), strict=True)]
        turns = [turn(cosine) * share for cosine, share in zip(cosines, shares, strict=True)]
        back = inner(turns, cosines)
        step = [t * unit - back * x for t, unit, x in zip(turns, units, u, strict=True)]
        size = gram.length(step)
        going = where(going, where(size >= tol, 1, 0), 0)  # in this order nothing more is evaluated once it is 0
        ahead, aside = cos(size), where(size > 0, sin(size) / where(size > 0, size, 1), 0)
        u = [where(going, ahead * x + aside * s, x) for x, s in zip(u, step, strict=True)]
    mean = left_to_right(lengths) / len(models)
    return total([mean * x for x in u], models) + 0  # of zeros +0


def turn(cosine: Any) -> Any:
    """θ/sin θ of an angle by its cosine; 0 of what lies opposite, and so leads nowhere."""
    theta = acos(cosine)
    turned = sin(theta)
    return where(turned > 1e-7, theta / where(turned > 1e-7, turned, 1), cosine > 0)


@method(
    "geometric-median", inputs="A B …", eps=Param(1e-6, "distances are at least this", "(0, inf)"),
    maxiter=Whole(100, "largest number of steps", "[1, 100]"),
    ftol=Param(1e-20, "stop when the sum of distances falls by less than this share", "[0, inf)"),
)  # fmt: skip
def geometric_median(*models: Any, eps: float, maxiter: float, ftol: float) -> Any:
    """The tensor with the smallest sum of distances to the models, by Weiszfeld's steps from their mean.

    ``geometric_median`` of sd-mecha; the steps are taken in float64, where sd-mecha's float32 stops 1e-4 away.
    """
    return total(median_shares(models, eps, int(maxiter), ftol), models)


def median_shares(models: Any, eps: float, most: int, ftol: float) -> list[Any]:
    """The weights of the models in their geometric median."""
    gram = products([model - models[0] for model in models])
    count = len(models)
    x: list[Any] = [1 / count] * count
    reached, found = distances(gram, x)
    going: Any = 1
    for _ in range(most):
        weights = [1 / maximum(distance, eps) for distance in found]
        whole = left_to_right(weights)
        moved = [weight / whole for weight in weights]
        after, there = distances(gram, moved)
        x = [where(going, new, old) for new, old in zip(moved, x, strict=True)]
        found = [where(going, new, old) for new, old in zip(there, found, strict=True)]
        going = where(going, where(abs(reached - after) > ftol * reached, 1, 0), 0)
        reached = where(going, after, reached)
    return x


def distances(gram: Gram | Combinations, x: list[Any]) -> tuple[Any, list[Any]]:
    """The sum of the distances of the tensors from the combination x, and each."""
    found = gram.distances(x)
    return left_to_right(found), found
