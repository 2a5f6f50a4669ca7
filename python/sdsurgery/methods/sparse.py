"""Sparse task vectors: of what each model learned beyond a base only the largest differences count, or those that the
models agree on. A is the base."""

from __future__ import annotations

import math
from typing import Any

from ..functions import (
    count,
    exp,
    flag,
    floor,
    kth_largest,
    largest,
    log,
    maximum,
    mean_of_products,
    minimum,
    multiply_add,
    quantile,
    sign,
    size,
    sum,
    where,
)
from .averages import consecutive
from .iterated import median_shares
from .registry import Flag, Param, PerInput, method
from .sums import FUSED, left_to_right, total, unchanged

WEIGHTS = PerInput("weight of each model but A", default=1.0, after=1)
DENSITY = PerInput("share of each difference that is kept", default=1.0, after=1, within="(0, 1]")
LAM = Param(1.0, "how much of the result is added (λ)", also="lambda alpha")


def differences(models: Any) -> list[Any]:
    base = models[0]
    return [model - base for model in models[1:]]


def weighted(deltas: Any, weights: Any) -> list[Any]:
    return [weight * delta for weight, delta in zip(weights, deltas, strict=True)]


def elected(parts: Any, weights: Any, normalize: bool) -> Any:
    """Σ of the parts that have the sign of their sum, over Σ of the weights of those. A NaN is carried."""
    positive = left_to_right(parts) >= 0
    agree = [flag(where(positive, part > 0, part < 0), part) for part in parts]
    total = left_to_right([same * part for same, part in zip(agree, parts, strict=True)])
    if not normalize:
        return total
    divisor = left_to_right(weighted(agree, weights))
    return total / where(abs(divisor) < 1e-8, 1, divisor)


@method("ties", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, lam=LAM,
        normalize=Flag(True, "divide by the weights of what was kept"))  # fmt: skip
def ties(*models: Any, weights: Any, density: Any, lam: float, normalize: bool) -> Any:
    """A + λ·Σxᵢ/Σwᵢ over the xᵢ = wᵢ·trimmed Δᵢ with the sign of their sum; trimmed to the largest share of each Δᵢ.

    ``ties`` of mergekit 0.1.5 (arXiv 2306.01708). At least one element of each difference is kept; of equal ones the
    first. The sign of a sum of 0 is +.
    """
    deltas = differences(models)
    kept = [
        largest(abs(delta), maximum(floor(share * size(delta)), 1)) * delta
        for delta, share in zip(deltas, density, strict=True)
    ]
    return models[0] + lam * elected(weighted(kept, weights), weights, normalize)


K = Param(1.0, "share of each difference that is kept", "[0, 1]", also="density beta")
ADDED = Param(1.0, "how much of the result is added")


def above_threshold(delta: Any, k: float) -> Any:
    """The difference where its magnitude is at least the max(⌊(1 − k)·n⌋, 1)-th smallest, else 0."""
    n = size(delta)
    least = kth_largest(abs(delta), n - maximum(floor((1 - k) * n), 1) + 1)
    return where(abs(delta) >= least, delta, 0)


def agreeing(parts: Any, votes: Any) -> tuple[list[Any], Any]:
    """The parts whose sign is that of the sum of the votes, else 0, and how many each element has of them."""
    wanted = sign(left_to_right(votes))
    agree = [(sign(part) == wanted) * (part != 0) for part in parts]
    many = left_to_right([flag(same, parts[0]) for same in agree])
    return [where(same, part, 0) for same, part in zip(agree, parts, strict=True)], many


def mean_of_agreeing(models: Any, k: float, alpha: float, *, by_sum: bool, fused: bool) -> Any:
    kept = [above_threshold(delta, k) for delta in differences(models)]
    return multiply_add(agreeing_mean(kept, by_sum), alpha, models[0], fused)


def agreeing_mean(kept: Any, by_sum: bool) -> Any:
    parts, many = agreeing(kept, votes(kept, by_sum))
    return left_to_right(parts) / maximum(many, 1)


def votes(kept: Any, by_sum: bool) -> Any:
    return kept if by_sum else [sign(part) for part in kept]


@method("ties.count", inputs="A B …", base="A", k=K, alpha=ADDED, fused=FUSED)
def ties_by_count(*models: Any, k: float, alpha: float, fused: bool) -> Any:
    """A + α·mean of the trimmed Δᵢ that have the sign of most of them; A where as many are positive as negative.

    ``ties_sum`` of sd-mecha with its defaults, ``ties_add_difference`` of meh. All equal magnitudes are kept.
    """
    return mean_of_agreeing(models, k, alpha, by_sum=False, fused=fused)


@method("ties.sum", inputs="A B …", base="A", k=K, alpha=ADDED, fused=FUSED)
def ties_by_sum(*models: Any, k: float, alpha: float, fused: bool) -> Any:
    """A + α·mean of the trimmed Δᵢ that have the sign of their sum; A where that is 0.

    ``ties_sum`` of sd-mecha with ``vote_sgn``. All equal magnitudes are kept.
    """
    return mean_of_agreeing(models, k, alpha, by_sum=True, fused=fused)


@method("ties.extended", inputs="A B …", base="A",
        k=Param(0.2, "share of each difference that is kept", "[0, 1]", also="density"),
        vote_sgn=Flag(False, "elect signs by the sum of the differences, not by their number"),
        apply_stock=Flag(False, "no: the mean times model stock's t; yes: the plain mean"),
        apply_median=Flag(False, "the geometric median instead of the mean"),
        alpha=ADDED, cos_eps=Param(1e-6, "norms are at least this", "[0, inf)"), fused=FUSED)  # fmt: skip
def ties_extended(
    *models: Any, k: float, vote_sgn: bool, apply_stock: bool, apply_median: bool, alpha: float, cos_eps: float,
    fused: bool,
) -> Any:  # fmt: skip
    """As ties.count or ties.sum, times the t of model-stock.consecutive; or the geometric median of what agrees.

    ``ties_sum_extended`` of sd-mecha, whose ``apply_stock`` turns model stock off. Where t is not finite it is A.
    """
    kept = [above_threshold(delta, k) for delta in differences(models)]
    parts, many = agreeing(kept, votes(kept, vote_sgn))
    if apply_median:
        found = total(median_shares(parts, 1e-6, 100, 1e-20), parts)
    else:
        found = left_to_right(parts)
        found = (found if apply_stock or len(parts) < 2 else found * consecutive(parts, cos_eps)) / maximum(many, 1)
    return multiply_add(where(abs(found) < math.inf, found, 0), alpha, models[0], fused)


GAMMA = Param(0.01, "share of the largest that is left out", "[0, 1]")


def crumbs(delta: Any, density: float, gamma: float) -> Any:
    """⌊density·n⌋ elements below the ⌊γ·n⌋ largest magnitudes, the others times 0."""
    n = size(delta)
    kept = floor(density * n)
    left_out = minimum(floor(gamma * n), n - kept)
    outer, inner = (flag(largest(abs(delta), many), delta) for many in (left_out, left_out + kept))
    return (inner - outer) * delta


@method("breadcrumbs", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, gamma=GAMMA, lam=LAM)
def breadcrumbs(*models: Any, weights: Any, density: Any, gamma: float, lam: float) -> Any:
    """A + λ·Σ wᵢ·Δᵢ, of each Δᵢ only a share below its largest magnitudes.

    ``breadcrumbs`` of mergekit 0.1.5 (arXiv 2312.06795).
    """
    kept = [crumbs(delta, share, gamma) for delta, share in zip(differences(models), density, strict=True)]
    return models[0] + lam * left_to_right(weighted(kept, weights))


@method("breadcrumbs.mask", inputs="A", density=Param(1.0, "share that is kept", "(0, 1]"), gamma=GAMMA)
def breadcrumbs_mask(a: Any, density: float, gamma: float) -> Any:
    """A where its magnitude is in a share below the largest ones, else 0.

    ``magnitude_outliers`` of mergekit 0.1.5, of a difference.
    """
    return crumbs(a, density, gamma)


@method("breadcrumbs.empty", inputs="A", density=Param(1.0, "share that is kept", "(0, 1]"), gamma=GAMMA)
def breadcrumbs_empty(a: Any, density: float, gamma: float) -> Any:
    """As breadcrumbs.mask, but 0 where ⌊γ·n⌋ is 0, unless everything is kept.

    ``magnitude_outliers`` of mergekit up to 0.1.4: small tensors lost their difference. For recipes made with it.
    """
    if density == 1:
        return unchanged(a)
    n = size(a)
    left_out = minimum(floor(gamma * n), n - floor(density * n))
    return where(left_out > 0, crumbs(a, density, gamma), a * 0)


@method("breadcrumbs-ties", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, gamma=GAMMA, lam=LAM)
def breadcrumbs_ties(*models: Any, weights: Any, density: Any, gamma: float, lam: float) -> Any:
    """A + λ·Σxᵢ over the xᵢ = wᵢ·Δᵢ that have the sign of their sum, of each Δᵢ a share below its largest magnitudes.

    ``breadcrumbs_ties`` of mergekit 0.1.5.
    """
    kept = [crumbs(delta, share, gamma) for delta, share in zip(differences(models), density, strict=True)]
    return models[0] + lam * elected(weighted(kept, weights), weights, False)


@method("sparse-top-k", inputs="A B", base="A", alpha=Param(0.5, "how much of the difference is added"),
        beta=Param(0.2, "share of the difference that is kept", "[0, 1]"))  # fmt: skip
def sparse_top_k(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """A + α·D where |D| is at least the ⌊β·n⌋-th largest, else A; D = B − A.

    "SPRSE" of Chattiori-Model-Merger; all equal magnitudes are kept, and A for ⌊β·n⌋ = 0.
    """
    away = b - a
    many = floor(beta * size(a))
    return a + alpha * where((abs(away) >= kth_largest(abs(away), many)) * (many > 0), away, 0)


@method(
    "sce",
    inputs="A B …",
    base="A",
    select_topk=Param(1.0, "share of the elements that vary most between models", "[0, 1]"),
)
def sce(*models: Any, select_topk: float) -> Any:
    """A + Σwᵢ·Δᵢ/Σwᵢ over the Δᵢ with the sign of their sum, wᵢ = mean(Δᵢ²)/Σ; only of the elements that vary most.

    ``sce`` of mergekit (arXiv 2408.07990): ⌊count·share⌋ of those with a variance across the models, all for 1.
    """
    deltas = differences(models)
    average = left_to_right(deltas) / len(deltas)
    spread = left_to_right([(delta - average) * (delta - average) for delta in deltas]) / len(deltas)
    parts = deltas
    if select_topk < 1:
        chosen = largest(spread, floor(count(spread != 0) * select_topk))
        parts = [where(chosen, delta, 0) for delta in deltas]
    positive = left_to_right(parts) >= 0
    squares = [mean_of_products(part) for part in parts]
    whole = left_to_right(squares)
    shares = [where(whole < 1e-6, 1 / len(parts), square / where(whole < 1e-6, 1, whole)) for square in squares]
    agree = [where(positive, part > 0, part < 0) for part in parts]
    total = left_to_right([where(same, each, 0) for same, each in zip(agree, weighted(parts, shares), strict=True)])
    weights = left_to_right(weighted([flag(same, parts[0]) for same in agree], shares))
    return models[0] + total / maximum(weights, 1e-6)


@method("ram-plus", inputs="A B …", base="A", epsilon=Param(1e-5, "a smaller difference does not count", "[0, inf)"),
        r=Param(0.1, "how much more counts what only one model learned"),
        alpha=Param(0.2, "the largest ratio of shared to own elements that counts", "[0, inf)"))  # fmt: skip
def ram_plus(base: Any, *models: Any, epsilon: float, r: float, alpha: float) -> Any:
    """As ram; what only model i learned times 1 + r·clip(sharedᵢ/max(uniqueᵢ, ε), 0, α), by the counts of elements.

    ``ramplus_tl`` of mergekit (arXiv 2601.13572).
    """
    deltas = [model - base for model in models]
    ones = [flag(abs(delta) > epsilon, delta) for delta in deltas]
    many = left_to_right(ones)
    parts = []
    for one, delta in zip(ones, deltas, strict=True):
        own, shared = count(one * (many == 1)), count(one * (many > 1))
        raised = where(own > 0, 1 + r * minimum(maximum(shared / maximum(own, epsilon), 0), alpha), 1)
        parts.append(where(many == 1, one * delta * raised, one * delta / maximum(many, 1)))
    return base + left_to_right(parts)


@method("arcee-fusion", inputs="A B", base="A")
def arcee_fusion(a: Any, b: Any) -> Any:
    """B where |B − A|·KL(softmax B‖softmax A) of its row is at least q₂ + 1.5·(q₃ − q₁) of all, else A.

    ``arcee_fusion`` of mergekit; rows lie along the last axis, q are the exact quartiles (mergekit samples larger
    tensors without a seed).
    """
    new, old = softmax(b) + 1e-8, softmax(a) + 1e-8
    importance = abs(b - a) * sum(new * log(new / old), -1)
    q1, q2, q3 = (quantile(importance, q) for q in (0.25, 0.5, 0.75))
    return a + flag(importance >= q2 + 1.5 * (q3 - q1), a) * (b - a)


def softmax(x: Any) -> Any:
    """Along the last axis."""
    powers = exp(x - maximum(x, axis=-1))
    return powers / sum(powers, -1)
