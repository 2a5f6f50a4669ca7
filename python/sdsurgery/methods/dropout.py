"""Drop and rescale: of what each model learned beyond a base a random part is kept. A is the base.

The random numbers are keyed by the seed, the tensor's name, the element and the model (docs/numerics.md): no tool's
stream is reproduced. Each method is a mask for each model and a function of models and masks.
"""

from __future__ import annotations

from typing import Any

from ..functions import bernoulli, flag, lerp, maximum, multiply_add, normal, pow, sum, where
from .registry import Flag, Param, PerInput, Whole, method
from .sparse import LAM, WEIGHTS, differences, elected, weighted
from .sums import FUSED, left_to_right

SEED = Whole(0, "seed of the random numbers", "[0, inf)")
DROP = Param(0.9, "share of each difference that is dropped", "[0, 1]", also="probability")


def masks(models: Any, keep: Any, seed: Any) -> list[Any]:
    """1 with probability ``keep`` (one for all, or one each) for each element of each model but the first, else 0."""
    count = len(models) - 1
    shares = keep if isinstance(keep, tuple) else (keep,) * count
    return [
        bernoulli(model, share, seed, draw) for draw, (model, share) in enumerate(zip(models[1:], shares, strict=True))
    ]


def kept(models: Any, drawn: Any) -> list[Any]:
    """The differences where the masks are 1, else 0."""
    return [delta * mask for delta, mask in zip(differences(models), drawn, strict=True)]


@method("dare", inputs="A B …", base="A", p=DROP, lam=LAM, weights=WEIGHTS,
        rescale=Flag(True, "divide what is kept by 1 − p"), seed=SEED)  # fmt: skip
def dare(*models: Any, p: float, lam: float, weights: Any, rescale: bool, seed: Any) -> Any:
    """A + λ·Σ wᵢ·mᵢ·Δᵢ/(1 − p): each element of each Δᵢ is dropped with probability p; A for p = 1.

    DARE, arXiv 2311.03099; p is the share that is dropped, as in the paper, ComfyUI-ModelUtils and ComfyUI-DareMerge.
    Mixers of Stable Diffusion models often leave out the division (``rescale=False``).
    """
    return dare_of(models, masks(models, 1 - p, seed), p, lam, weights=weights, rescale=rescale)


def dare_of(models: Any, drawn: Any, p: float, lam: float, *, weights: Any, rescale: bool) -> Any:
    parts = kept(models, drawn)
    if rescale:
        left = where(1 - p, 1 - p, 1)
        parts = [part / left for part in parts]
    return models[0] + lam * left_to_right(weighted(parts, weights))


@method("dare.no-rescale", inputs="A B …", base="A", p=DROP, lam=LAM, weights=WEIGHTS, seed=SEED)
def dare_without_rescale(*models: Any, p: float, lam: float, weights: Any, seed: Any) -> Any:
    """A + λ·Σ wᵢ·mᵢ·Δᵢ: as dare, without the division by 1 − p.

    ComfyUI-DareMerge by default.
    """
    return dare_of(models, masks(models, 1 - p, seed), p, lam, weights=weights, rescale=False)


@method("dare.density", inputs="A B", base="A", density=Param(0.5, "share of the difference that is kept", "(0, 1]"),
        alpha=Param(1.0, "how much is added"), seed=SEED, fused=FUSED)  # fmt: skip
def dare_by_density(*models: Any, density: float, alpha: float, seed: Any, fused: bool) -> Any:
    """A + α/density·m·(B − A): each element of B − A is kept with probability density; B for density 1.

    "DARE" of sd-webui-model-mixer.
    """
    return density_of(models, masks(models, density, seed), density, alpha, fused)


def density_of(models: Any, drawn: Any, density: float, alpha: float, fused: bool = False) -> Any:
    a, b = models
    return b if density >= 1 else where(drawn[0], lerp(a, b, alpha / density, fused), a)


@method("dare.half", inputs="A B", base="A", alpha=Param(1.0, "how much is added, ½ for B itself where it is kept"),
        seed=SEED, fused=FUSED)  # fmt: skip
def dare_half(*models: Any, alpha: float, seed: Any, fused: bool) -> Any:
    """A + α/½·m·(B − A): half of the elements of B − A, doubled.

    "DARE" of Chattiori-Model-Merger until 2024, a lerp at the kept elements.
    """
    return half_of(models, masks(models, 0.5, seed), alpha, fused)


def half_of(models: Any, drawn: Any, alpha: float, fused: bool = False) -> Any:
    a, b = models
    return where(drawn[0], lerp(a, b, alpha / 0.5, fused), a)


@method("dare.wrong-scale", inputs="A B", base="A", p=Param(0.5, "share that is kept", "[0, 1)", also="beta"), lam=LAM,
        seed=SEED, fused=FUSED)  # fmt: skip
def dare_wrong_scale(*models: Any, p: float, lam: float, seed: Any, fused: bool) -> Any:
    """A + λ·m·(B − A)/(1 − p), where p is the share that is kept: right at p = ½ only, tenfold at 0.9.

    safetensors-merge-supermario, untitledmerger, Chattiori-Model-Merger 2025: for recipes that were made with these.
    """
    return wrong_scale_of(models, masks(models, p, seed), p, lam, fused)


def wrong_scale_of(models: Any, drawn: Any, p: float, lam: float, fused: bool = False) -> Any:
    return multiply_add(kept(models, drawn)[0] / (1 - p), lam, models[0], fused)


@method("dare-mean", inputs="A B …", base="A",
        probability=Param(0.9, "share of each difference that is dropped", "[0, 1]", "p"),
        rescale=Param(1.0, "what is kept is divided by (1 − p) to this power"), seed=SEED)  # fmt: skip
def dare_mean(*models: Any, probability: float, rescale: float, seed: Any) -> Any:
    """A + Σ mᵢ·Δᵢ/Σ mᵢ/(1 − p)^rescale: what is kept of several models is averaged.

    ``dropout`` of sd-mecha.
    """
    return dare_mean_of(models, masks(models, 1 - probability, seed), probability, rescale)


def dare_mean_of(models: Any, drawn: Any, probability: float, rescale: float) -> Any:
    many = left_to_right([flag(mask, models[0]) for mask in drawn])
    left = where(1 - probability, 1 - probability, 1)
    return models[0] + left_to_right(kept(models, drawn)) / maximum(many, 1) / pow(left, rescale)


DENSITY = PerInput("share of each difference that is kept", default=0.5, after=1, within="(0, 1]")
RESCALE = Flag(True, "scale what is kept to the sum of magnitudes of the whole difference")


@method("dare-linear.mergekit", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, rescale=RESCALE, lam=LAM,
        seed=SEED)  # fmt: skip
def dare_linear(*models: Any, weights: Any, density: Any, rescale: bool, lam: float, seed: Any) -> Any:
    """A + λ·Σ wᵢ·mᵢ·Δᵢ·Σ|Δᵢ|/Σ|mᵢ·Δᵢ|: each Δᵢ keeps its sum of magnitudes.

    ``dare_linear`` of mergekit.
    """
    return linear_of(models, masks(models, density, seed), weights, rescale, lam)


def linear_of(models: Any, drawn: Any, weights: Any, rescale: bool, lam: float) -> Any:
    return models[0] + lam * left_to_right(weighted(restored(models, drawn, rescale), weights))


@method("dare-ties.mergekit", inputs="A B …", base="A", weights=WEIGHTS, density=DENSITY, rescale=RESCALE, lam=LAM,
        seed=SEED)  # fmt: skip
def dare_ties(*models: Any, weights: Any, density: Any, rescale: bool, lam: float, seed: Any) -> Any:
    """As dare-linear.mergekit, of the parts that have the sign of their sum.

    ``dare_ties`` of mergekit.
    """
    return ties_of(models, masks(models, density, seed), weights, rescale, lam)


def ties_of(models: Any, drawn: Any, weights: Any, rescale: bool, lam: float, *, normalize: bool = False) -> Any:
    return models[0] + lam * elected(weighted(restored(models, drawn, rescale), weights), weights, normalize)


def restored(models: Any, drawn: Any, rescale: bool) -> list[Any]:
    """What the masks keep of the differences, with the sums of magnitudes that these had."""
    parts = kept(models, drawn)
    if not rescale:
        return parts
    found = []
    for part, delta in zip(parts, differences(models), strict=True):
        before, after = sum(abs(delta)), sum(abs(part))
        found.append(part * where(after > 0, before / where(after > 0, after, 1), 1))
    return found


@method("add-noise", inputs="A", alpha=Param(0.01, "deviation of the noise; 0 leaves A unchanged"), seed=SEED)
def add_noise(a: Any, alpha: float, seed: Any) -> Any:
    """A + α·N(0, 1) of each element.

    "plus random" of supermerger, which has no seed and skips keys with ``to_out``, ``proj_out`` or ``norm``.
    """
    return noise_of(a, normal(a, seed), alpha)


def noise_of(a: Any, drawn: Any, alpha: float) -> Any:
    return a + alpha * drawn


@method("comparative-interp", inputs="A B", alpha=Param(0.5, "0: only where both differ least, 1: everywhere B"),
        beta=Param(0.0, "0: B where both are alike, 1: where they differ", "[0, 1]"),
        gamma=Param(1.0, "1: a smooth mix; 0: each element is A's or B's, at random", "[0, 1]"), seed=SEED)  # fmt: skip
def comparative_interp(a: Any, b: Any, *, alpha: float, beta: float, gamma: float, seed: Any) -> Any:
    """(1 − m)·A + m·B, m a mix of k = x^(1/max(α, 0.001) − 1) and a random choice of probability k, by γ.

    x = (max D − D)/max D, or D/max D for β = 1; D = |A − B|. "Comparative interpolation" of untitledmerger and
    ComfyUI-ModelUtils. A where A = B everywhere.
    """
    away = abs(a - b)
    most = maximum(away)
    share = away / where(most > 0, most, 1)
    alike = (most - away) / where(most > 0, most, 1)
    x = alike + beta * (share - alike) if beta != 0 else alike
    k = pow(x, 1 / maximum(alpha, 0.001) - 1)
    mask = k if gamma == 1 else (1 - gamma) * flag(bernoulli(a, k, seed), a) + gamma * k
    return where(most > 0, a * (1 - mask) + b * mask, a)
