"""Differences: what one model learned beyond another, as a whole or by a mask of each element."""

from __future__ import annotations

from typing import Any

from ..functions import clip, flag, is_nan, maximum, minimum, multiply_add, where
from .registry import Param, PerInput, method
from .sums import FUSED, left_to_right

LEARNED = Param(1.0, "how much of the difference B − C is added to A")


@method(
    "add-diff", inputs="A B C", base="C", differences="B C", alpha=LEARNED, fused=FUSED,
    weights=PerInput("one weight for each input after the first, instead of alpha: A + w₁·(B − A) + w₂·(C − A) + …",
                     instead_of="alpha", after=1),
)  # fmt: skip
def add_difference(*models: Any, alpha: Any, weights: Any = None, fused: bool = False) -> Any:
    """A + α·(B − C): give A what B learned beyond C; with weights A + w₁·(B − A) + w₂·(C − A) + …

    The "Add difference" of the AUTOMATIC1111 web UI (``modules/extras.py``); with ``weights`` the task arithmetic of
    mergekit, in which A is the base of all.
    """
    if weights is None:
        a, b, c = models
        return multiply_add(b - c, alpha, a, fused)
    base = models[0]
    return base + left_to_right([weight * (m - base) for weight, m in zip(weights, models[1:], strict=True)])


@method("add-diff.reversed", inputs="A B C", base="C", differences="B C", alpha=Param(0.0, "1 − the share of B − C"))
def add_difference_reversed(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + (B − C)·(1 − α): the ratio counts the other way round.

    ``interp="add_diff"`` of diffusers' checkpoint merger.
    """
    return a + (b - c) * (1.0 - alpha)


@method("add-diff.clamped", inputs="A B C", base="C", alpha=LEARNED, fused=FUSED)
def add_difference_clamped(a: Any, b: Any, c: Any, alpha: float, fused: bool) -> Any:
    """A + α·(B − C), clamped between the smaller and the larger of A and B.

    "Clipped add difference" of sd-mecha.
    """
    return clip(multiply_add(b - c, alpha, a, fused), minimum(b, a), maximum(b, a))


@method("train-diff", inputs="A B C", base="C", differences="B C", alpha=LEARNED)
def train_difference(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + 1.8·α·(s·(B − C)) with s = |B − A|/(|B − C| + |B − A|), A where B = C: as if A were trained like B from C.

    "trainDifference" of supermerger (1.8 is a literal of the thread that proposed it, #33).
    """
    learned, away = b - c, abs(b - a)
    both = abs(learned) + away
    share = where(both > 0, away / both, 0)
    return where(b == c, a, a + 1.8 * alpha * (share * learned))


@method(
    "similarity-add-diff", inputs="A B C", base="C",
    alpha=Param(1.0, "how much of B − C is added, and twice the share of B"),
    beta=Param(0.5, "how much the similarity counts"),
)  # fmt: skip
def similarity_add_difference(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """(1 − s)·(A + α·(B − C)) + s·((1 − α/2)·A + α/2·B) with s = β·(A·B/max(|A|, |B|)² + 1)/2, β where that is 0/0.

    ``similarity_add_difference`` of meh.
    """
    share, added, mixed = similar_parts(a, b, c, alpha, beta)
    return (1 - share) * added + share * mixed


def similar_parts(a: Any, b: Any, c: Any, alpha: float, beta: float) -> tuple[Any, Any, Any]:
    """The share of the mix, what is added to A, and the mix of A and B."""
    threshold = maximum(abs(a), abs(b))
    similarity = (a * b / (threshold * threshold) + 1) / 2
    share = where(is_nan(similarity), beta, similarity * beta)
    return share, a + alpha * (b - c), (1 - alpha / 2) * a + (alpha / 2) * b


@method("add-opposite", inputs="A B C", base="C", alpha=LEARNED)
def add_opposite(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + m·(B − C) with m = 2·α·|A − B|/(|A − B| + |A + B − 2·C|), 0 where that is 0/0.

    ``add_opposite`` of comfy-mecha.
    """
    apart, together = abs(a - b), abs(a + b - 2 * c)
    share = 2 * apart / (apart + together)
    return a + alpha * where(is_nan(share), 0, share) * (b - c)


@method("add-strict-opposite", inputs="A B C", base="C", alpha=LEARNED)
def add_strict_opposite(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + m·(B − C) with m = 2·α·max(0, (C − A)·(B − C)/max(|A − C|, |B − C|)²), 0 where that is 0/0.

    ``add_strict_opposite`` of comfy-mecha.
    """
    from_a, learned = a - c, b - c
    larger = maximum(abs(from_a), abs(learned))
    share = maximum((c - a) * learned / (larger * larger), 0)
    return a + alpha * (2 * where(is_nan(share), 0, share)) * learned


@method(
    "nearswap", inputs="A B", base="A",
    t=Param(None, "distance from A at which B's share begins to fall below 1", "(0, inf)"),
)  # fmt: skip
def nearswap(a: Any, b: Any, t: float) -> Any:
    """w·B + (1 − w)·A with w = clip(t/max(|A − B|, 1e-6), 0, 1): B where it is near A.

    ``nearswap`` of mergekit; t/x is t·(1/x), as torch computes it. 1e-4 is a usual t.
    """
    share = clip((1 / maximum(abs(a - b), 1e-6)) * t, 0, 1)
    return share * b + (1 - share) * a


@method("ram", inputs="A B …", base="A", epsilon=Param(1e-5, "a smaller difference does not count", "[0, inf)"))
def ram(base: Any, *models: Any, epsilon: float) -> Any:
    """base + Σ zᵢ·Δᵢ/c with zᵢ = |Δᵢ| > ε and c = Σ zᵢ: the mean of the differences that count; A is the base.

    ``ram`` of mergekit (arXiv 2601.13572). 1e-5 is less than one fp16 rounding at 0.02.
    """
    deltas = [model - base for model in models]
    counts = [flag(abs(delta) > epsilon, delta) for delta in deltas]
    many = maximum(left_to_right(counts), 1)
    return base + left_to_right([count * delta / many for count, delta in zip(counts, deltas, strict=True)])
