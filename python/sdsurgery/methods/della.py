"""Drop by rank: of what each model learned beyond a base small parts are dropped more often than large ones. A is the
base. The ranks need the whole tensor in memory (docs/methods.md)."""

from __future__ import annotations

from typing import Any

from ..functions import bernoulli, clip, multiply_add, of_numbers, rank, single, size, where
from .dropout import DROP, RESCALE, SEED, linear_of, ties_of
from .registry import Flag, Param, PerInput, method
from .sparse import LAM, WEIGHTS, K, above_threshold, agreeing_mean, differences
from .sums import FUSED, unchanged

DENSITY = PerInput("share of each difference that is kept", default=0.5, after=1, within="(0, 1)")
EPSILON = Param(
    0.15,
    "how much more often the largest are kept, and the smallest less often; density ± epsilon must lie in (0, 1)",
    "[0, 1)",
)
EPS = Param(0.1, "how much more often the largest are kept than the smallest; below 0 less often", also="epsilon")
DIVIDE = Flag(True, "divide what is kept by 1 − p")
SUM = Flag(False, "elect signs by the sum of the differences, not by their number")


@method("della", inputs="A B …", base="A", p=DROP, della_eps=EPS, k=K, vote_sgn=SUM, lam=LAM, rescale=DIVIDE, seed=SEED)
def della(
    *models: Any, p: float, della_eps: float, k: float, vote_sgn: bool, lam: float, rescale: bool, seed: Any
) -> Any:
    """A + λ·TIES(mᵢ·Δᵢ)/(1 − p), mᵢ = 1 with probability clip(1 − p + (r/n − (n + 1)/2n)·ε, 0, 1), r the rank of |Δᵢ|.

    DELLA, arXiv 2406.11617, as ``ties_sum_with_dropout`` of sd-mecha: ranks in the whole tensor, of equal magnitudes
    the first is lower. A for p = 1.
    """
    drawn = whole_masks(models, 1 - p, della_eps, seed)
    return della_of(models, drawn, 1 - p, k, vote_sgn=vote_sgn, rescale=rescale, lam=lam)


@method("della.mecha", inputs="A B …", base="A", p=DROP, della_eps=EPS, k=K, vote_sgn=SUM, lam=LAM, rescale=DIVIDE,
        seed=SEED, fused=FUSED)  # fmt: skip
def della_mecha(
    *models: Any, p: float, della_eps: float, k: float, vote_sgn: bool, lam: float, rescale: bool, seed: Any,
    fused: bool,
) -> Any:  # fmt: skip
    """As della, with 1 − p in float32, as sd-mecha has it."""
    keep = of_numbers(single_share, p)
    drawn = whole_masks(models, keep, della_eps, seed)
    return della_of(models, drawn, keep, k, vote_sgn=vote_sgn, rescale=rescale, lam=lam, fused=fused)


def single_share(p: float) -> float:
    return single(1 - single(p))


def whole_masks(models: Any, keep: Any, epsilon: float, seed: Any) -> list[Any]:
    return [
        bernoulli(model, by_rank(delta, keep, epsilon), seed, draw)
        for draw, (model, delta) in enumerate(zip(models[1:], differences(models), strict=True))
    ]


def by_rank(delta: Any, keep: Any, epsilon: float) -> Any:
    """The probability to keep each element."""
    n = size(delta)
    return clip(keep + (rank(abs(delta)) / n - (n + 1) / (n * 2)) * epsilon, 0, 1)


def della_of(
    models: Any, drawn: Any, keep: Any, k: float, *, vote_sgn: bool, rescale: bool, lam: float, fused: bool = False
) -> Any:
    if keep == 0:
        return unchanged(models[0])
    parts = [above_threshold(delta * mask, k) for delta, mask in zip(differences(models), drawn, strict=True)]
    return multiply_add(agreeing_mean(parts, vote_sgn) / (keep if rescale else 1.0), lam, models[0], fused)


def along_axis(models: Any, density: Any, epsilon: float, seed: Any) -> list[Any]:
    """mergekit's masks: ranks along axis 1, of a tensor with one axis along it."""
    drawn = []
    for draw, (model, delta, share) in enumerate(zip(models[1:], differences(models), density, strict=True)):
        drawn.append(bernoulli(model, share_by_rank(delta, share, epsilon), seed, draw))
    return drawn


def share_by_rank(delta: Any, density: Any, epsilon: Any) -> Any:
    lowest = of_numbers(_inside, density, epsilon)
    several = size(delta, 1) - 1
    place = (rank(abs(delta), 1) - 1) / where(several > 0, several, 1)
    return lowest + place * (2 * epsilon)


def _inside(density: float, epsilon: float) -> float:
    if not 0 < density - epsilon <= density + epsilon < 1:
        raise ValueError("density − epsilon and density + epsilon must lie between 0 and 1")
    return density - epsilon


@method("della.mergekit", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, epsilon=EPSILON, rescale=RESCALE,
        lam=LAM, seed=SEED)  # fmt: skip
def della_mergekit(
    *models: Any, weights: Any, density: Any, epsilon: float, rescale: bool, lam: float, seed: Any
) -> Any:
    """As della-linear.mergekit, of the parts that have the sign of their sum, divided by their weights.

    ``della`` of mergekit.
    """
    return ties_of(models, along_axis(models, density, epsilon, seed), weights, rescale, lam, normalize=True)


@method("della-linear.mergekit", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, epsilon=EPSILON,
        rescale=RESCALE, lam=LAM, seed=SEED)  # fmt: skip
def della_linear(*models: Any, weights: Any, density: Any, epsilon: float, rescale: bool, lam: float, seed: Any) -> Any:
    """A + λ·Σ wᵢ·mᵢ·Δᵢ·Σ|Δᵢ|/Σ|mᵢ·Δᵢ|, mᵢ = 1 with probability density − ε + 2ε·(r − 1)/(N − 1), r of N along axis 1.

    ``della_linear`` of mergekit. Refused unless density ± ε lies between 0 and 1.
    """
    return linear_of(models, along_axis(models, density, epsilon, seed), weights, rescale, lam)
