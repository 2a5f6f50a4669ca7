"""Sums: every element of the output is a linear combination of the same elements of the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..functions import flag, is_nan, lerp, multiply_add, of_numbers, single
from .registry import Flag, Param, PerInput, method

FUSED = Flag(False, "multiply and add with one rounding, as torch's CPU kernels do on AVX2 and later")
RATIO = Param(0.5, "weight of B, 0 to 1; beyond it extrapolates")


@method(
    "weighted-sum",
    inputs="A B",
    alpha=Param(0.5, "weight of B; A gets 1 − alpha"),
    weights=PerInput("one weight for each of any number of inputs, instead of alpha", instead_of="alpha", weights=True),
)
def weighted_sum(*models: Any, alpha: float, weights: tuple[float, ...] | None) -> Any:
    """(1 − α)·A + α·B, or w₁·A + w₂·B + w₃·C + …

    The weighted sum of the AUTOMATIC1111 web UI (``modules/extras.py``, "Weighted sum"); with ``weights`` the sum is
    taken from left to right and the weights are used as given, not normalised.
    """
    return total(weights or (1 - alpha, alpha), models)


@method("weighted-sum.lerp", inputs="A B", alpha=RATIO, fused=FUSED)
def weighted_sum_lerp(a: Any, b: Any, alpha: float, fused: bool) -> Any:
    """A + α·(B − A), or B − (1 − α)·(B − A) for |α| ≥ ½; at α = 0 and 1 the tensor itself.

    ``torch.lerp``, which supermerger, sd-mecha and Chattiori-Model-Merger take for the weighted sum.
    """
    return itself_at_the_ends(a, b, alpha, fused)


@method("weighted-sum.smoothstep", inputs="A B", alpha=RATIO)
def weighted_sum_smoothstep(a: Any, b: Any, alpha: float) -> Any:
    """A + t·(B − A) with t = α²·(3 − 2α).

    ``interp="sigmoid"`` of diffusers' checkpoint merger, which InvokeAI's merge script calls.
    """
    return a + smoothstep(alpha) * (b - a)


@method("weighted-sum.inverse-smoothstep", inputs="A B", alpha=Param(0.5, "weight of B", within="[0, 1]"))
def weighted_sum_inverse_smoothstep(a: Any, b: Any, alpha: float) -> Any:
    """A + t·(B − A) with t = ½ − sin(asin(1 − 2α)/3).

    ``interp="inv_sigmoid"`` of diffusers' checkpoint merger, which InvokeAI's merge script calls.
    """
    return a + inverse_smoothstep(alpha) * (b - a)


@method(
    "n-sum",
    inputs="A …",
    weights=PerInput("weight of each input, used as given (default 1/m for each of m)", weights=True),
    fused=FUSED,
)
def n_sum(*models: Any, weights: tuple[float, ...] | None, fused: bool) -> Any:
    """w₁·A + w₂·B + w₃·C + … of any number of models, from left to right.

    ``tools/merge_models.py`` of kohya's sd-scripts; ``linear`` of mergekit without ``normalize``.
    """
    return total(weights or (1 / len(models),) * len(models), models, fused)


@method("n-sum.normalised", inputs="A …", weights=PerInput("weight of each input", default=1.0), fused=FUSED)
def n_sum_normalised(*models: Any, weights: tuple[float, ...], fused: bool) -> Any:
    """(w₁·A + w₂·B + w₃·C + …)/(w₁ + w₂ + w₃ + …); refused where the weights sum to 0.

    ``linear`` of mergekit with ``normalize``, its default; the sum of the weights is one of float32 numbers there.
    """
    whole = of_numbers(single, weights[0])
    for weight in weights[1:]:
        whole = of_numbers(lambda a, b: single(a + single(b)), whole, weight)
    return total(weights, models, fused) / nonzero(whole, "the weights sum to 0", weights)


@method("n-sum.running-mean", inputs="A …", fused=FUSED)
def running_mean(*models: Any, fused: bool) -> Any:
    """r₁ = A, rᵢ = lerp(rᵢ₋₁, Mᵢ, 1/i): the mean, one model after the other.

    ``n_average`` of sd-mecha.
    """
    mean = models[0]
    for number, model in enumerate(models[1:], 2):
        mean = lerp(mean, model, 1 / number, fused)
    return mean


@method("mean", inputs="A …")
def mean_of_models(*models: Any) -> Any:
    """(1/m)·A + (1/m)·B + (1/m)·C + … of m models, from left to right."""
    return total((1 / len(models),) * len(models), models)


@method("sum-twice", inputs="A B C", alpha=RATIO, beta=Param(0.5, "weight of C, 0 to 1"))
def sum_twice(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """(1 − β)·((1 − α)·A + α·B) + β·C.

    ``sum_twice`` of meh; the order of B and C matters.
    """
    return (1 - beta) * ((1 - alpha) * a + alpha * b) + beta * c


@method("sum-twice.lerp", inputs="A B C", alpha=RATIO, beta=Param(0.5, "weight of C, 0 to 1"), fused=FUSED)
def sum_twice_lerp(a: Any, b: Any, c: Any, *, alpha: float, beta: float, fused: bool) -> Any:
    """lerp(lerp(A, B, α), C, β), with torch.lerp; at α, β = 0 and 1 the tensor itself.

    supermerger, Chattiori-Model-Merger.
    """
    return itself_at_the_ends(itself_at_the_ends(a, b, alpha, fused), c, beta, fused)


@method("sum-twice.flat", inputs="A B C", alpha=RATIO, beta=Param(0.5, "weight of C, 0 to 1"))
def sum_twice_flat(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """((1 − α)·(1 − β))·A + (α·(1 − β))·B + β·C.

    ``sum_twice`` of Chattiori-Model-Merger until 2024.
    """
    return (1 - alpha) * (1 - beta) * a + alpha * (1 - beta) * b + beta * c


@method("triple-sum", inputs="A B C", alpha=Param(0.33, "weight of B"), beta=Param(0.33, "weight of C"), fused=FUSED)
def triple_sum(a: Any, b: Any, c: Any, *, alpha: float, beta: float, fused: bool) -> Any:
    """(1 − α − β)·A + α·B + β·C; α + β > 1 extrapolates.

    ``triple_sum`` of meh, "old calc" of supermerger.
    """
    return total((1 - alpha - beta, alpha, beta), (a, b, c), fused)


@method("triple-sum.lerp", inputs="A B C", alpha=Param(0.33, "weight of B"), beta=Param(0.33, "weight of C"),
        fused=FUSED)  # fmt: skip
def triple_sum_lerp(a: Any, b: Any, c: Any, *, alpha: float, beta: float, fused: bool) -> Any:
    """lerp(A, lerp(B, C, β/(α + β)), α + β), with torch.lerp; (1 − α − β)·A + α·B + β·C where α + β = 0.

    "Triple sum" of supermerger.
    """
    if alpha + beta == 0:
        return total((1 - alpha - beta, alpha, beta), (a, b, c))
    return lerp(a, lerp(b, c, beta / (alpha + beta), fused), alpha + beta, fused)


@method("weighted-subtract", inputs="A B", alpha=Param(1.0, "a factor of the ratio α·β", "[0, 1]"),
        beta=Param(0.5, "a factor of the ratio α·β", "[0, 1]"))  # fmt: skip
def weighted_subtract(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """(A − α·β·B)/(1 − α·β): undoes a weighted sum of ratio α·β; refused for α·β = 1.

    ``weighted_subtraction`` of meh, which takes α·β = 1 for almost 1 instead and gives (A − B)·1e10.
    """
    return (a - alpha * beta * b) / nonzero(1 - alpha * beta, "alpha·beta is 1")


@method("ema-chain", inputs="A …", decay=Param(0.9, "what is kept of the average at each step", within="[0, 1)"))
def ema_chain(*models: Any, decay: float) -> Any:
    """E₁ = A, Eᵢ = d·Eᵢ₋₁ + (1 − d)·Mᵢ: the moving average of models in the order of time.

    ``get_ema_avg_fn`` of ``torch.optim.swa_utils``.
    """
    average = models[0]
    for model in models[1:]:
        average = decay * average + (1 - decay) * model
    return average


@method("ema-chain.lerp", inputs="A …", decay=Param(0.9, "what is kept of the average at each step", within="[0, 1)"),
        fused=FUSED)  # fmt: skip
def ema_chain_lerp(*models: Any, decay: float, fused: bool) -> Any:
    """E₁ = A, Eᵢ = lerp(Eᵢ₋₁, Mᵢ, 1 − d), with torch.lerp.

    ``get_ema_multi_avg_fn`` of ``torch.optim.swa_utils``.
    """
    average = models[0]
    for model in models[1:]:
        average = lerp(average, model, 1 - decay, fused)
    return average


@method("self-scale", inputs="A", alpha=Param(1.0, "the factor; 0 leaves A unchanged"))
def self_scale(a: Any, alpha: float) -> Any:
    """α·A; A unchanged for α = 0.

    Calculation mode "self" of supermerger, which skips keys with ``to_out``, ``proj_out`` or ``norm`` besides.
    """
    return unchanged(a) if alpha == 0 else alpha * a


@method("scale", inputs="A", alpha=Param(1.0, "the factor; 0 gives zeros"))
def scale(a: Any, alpha: float) -> Any:
    """α·A; zeros for α = 0.

    ``scale`` of sd-mecha.
    """
    return flag(is_nan(a), a) * 0 if alpha == 0 else alpha * a


# ---- what bodies share


def total(weights: Any, models: Any, fused: bool = False) -> Any:
    """Σ wᵢ·Mᵢ from left to right."""
    found = weights[0] * models[0]
    for weight, model in zip(weights[1:], models[1:], strict=True):
        found = multiply_add(model, weight, found, fused)
    return found


def left_to_right(numbers: Any) -> Any:
    """Σ of numbers from left to right."""
    found = numbers[0]
    for number in numbers[1:]:
        found = found + number
    return found


def itself_at_the_ends(a: Any, b: Any, alpha: float, fused: bool) -> Any:
    """lerp(a, b, α), at α = 0 and 1 a and b themselves, Inf and signed zeros included."""
    return unchanged(a) if alpha == 0 else unchanged(b) if alpha == 1 else lerp(a, b, alpha, fused)


def unchanged(a: Any) -> Any:
    """The tensor itself."""
    return a


def smoothstep(alpha: float) -> Any:
    """α²·(3 − 2α), a curve of a ratio."""
    return alpha * alpha * (3 - (2 * alpha))


def inverse_smoothstep(alpha: float) -> Any:
    """½ − sin(asin(1 − 2α)/3), a curve of a ratio from 0 to 1."""
    return of_numbers(_inverse_smoothstep, alpha)


CURVES: dict[str, Callable[[float], Any]] = {"smoothstep": smoothstep, "inverse-smoothstep": inverse_smoothstep}
"""The curves of ``--curve``."""


def _inverse_smoothstep(ratio: float) -> float:
    if not 0 <= ratio <= 1:
        raise ValueError("the inverse of smoothstep takes a ratio from 0 to 1")
    return 0.5 - math.sin(math.asin(1.0 - 2.0 * ratio) / 3.0)


def nonzero(number: Any, why: str, terms: Any = ()) -> Any:
    """The number; a formula whose parameters make it 0 has no value (ValueError, or UsageError where one is merged). Of
    a sum of ``terms`` what their rounding leaves, 1e-6 of their magnitudes, is 0 too."""

    def checked(value: float, *terms: float) -> float:
        if abs(value) <= 1e-6 * sum(map(abs, terms)):
            raise ValueError(why)
        return value

    return of_numbers(checked, number, *terms)
