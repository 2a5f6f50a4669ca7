"""Mixes that look how alike two models are, by cosines of rows or columns."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..functions import (
    axes,
    clip,
    dot,
    is_nan,
    lerp,
    lerp_by,
    maximum,
    mean,
    pow,
    rounded,
    size,
    sqrt,
    sum,
    variance,
    where,
)
from .across import APART, Across
from .differences import similar_parts
from .registry import Param, method
from .sums import FUSED, unchanged


class Products(NamedTuple):
    """⟨a, b⟩, ⟨a, a⟩ and ⟨b, b⟩: of the tensors, or of each of their columns, rows or channels."""

    ab: Any
    aa: Any
    bb: Any

    @property
    def whole(self) -> Products:
        """Those of the tensors."""
        return Products(sum(self.ab), sum(self.aa), sum(self.bb))

    def cosine(self, least: float = 1e-8) -> Any:
        """⟨a, b⟩/(‖a‖·‖b‖), norms at least ``least``."""
        return self.ab / (maximum(sqrt(self.aa), least) * maximum(sqrt(self.bb), least))


def products(a: Any, b: Any, axis: Any) -> Products:
    return Products(dot(a, b, axis), dot(a, a, axis), dot(b, b, axis))


def cosine(a: Any, b: Any, axis: Any) -> Any:
    return products(a, b, axis).cosine()


ALIKE = Param(0.5, "how alike a column must be to stay A's")


@method("add-cosine-a", inputs="A B", alpha=ALIKE, fused=FUSED)
def add_cosine_a(a: Any, b: Any, alpha: float, fused: bool) -> Any:
    """k·B + (1 − k)·A with k = 1 − clip(c − α, 0, 1), c the cosine of a column, along the first axis.

    ``add_cosine_a`` of sd-mecha, after mode A of supermerger.
    """
    return gated(a, b, cosine(a, b, 0) - alpha, fused)


@method("add-cosine-b", inputs="A B", alpha=ALIKE, fused=FUSED)
def add_cosine_b(a: Any, b: Any, alpha: float, fused: bool) -> Any:
    """k·B + (1 − k)·A with k = 1 − clip(c − α, 0, 1), c the mean of the cosine of a column and that of the tensor.

    ``add_cosine_b`` of sd-mecha, after mode B of supermerger. Columns lie along the first axis.
    """
    columns = products(a, b, 0)
    return gated(a, b, (columns.cosine() + columns.whole.cosine()) / 2 - alpha, fused)


def gated(a: Any, b: Any, stays: Any, fused: bool) -> Any:
    """A mix of A and B of which the share ``stays``, clipped to [0, 1], is A's."""
    return mixed_by(a, b, 1 - clip(stays, 0, 1), fused)


def mixed_by(a: Any, b: Any, share: Any, fused: bool) -> Any:
    """(1 − t)·A + t·B of a share t by column or channel; ``fused`` as ``torch.lerp`` computes it on AVX2."""
    return lerp_by(a, b, share, True) if fused else a + share * (b - a)


# ---- with the statistics of the whole model


def apart(name: str, family: str) -> str:
    """The autoencoder is left out."""
    return APART if name.startswith(("first_stage_model.", "vae.")) else ""


def of_columns(a: Any, b: Any) -> Any:
    """The cosine of each column."""
    return cosine(a, b, 0)


def of_columns_and_tensor(a: Any, b: Any) -> Any:
    """The mean of the cosine of each column and that of the tensor; not a number for a tensor of zeros."""
    columns = products(a, b, 0)
    return (columns.cosine() + columns.whole.cosine(0)) / 2


def of_unit_columns(a: Any, b: Any) -> Any:
    """The mean of the cosine of each column and that of the tensors whose columns are divided by their norms."""
    columns = products(a, b, 0)
    x, y = maximum(sqrt(columns.aa), 1e-12), maximum(sqrt(columns.bb), 1e-12)
    units = Products(columns.ab / (x * y), columns.aa / (x * x), columns.bb / (y * y))
    return (columns.cosine() + units.whole.cosine(0)) / 2


def without_ends(found: Any) -> tuple[float, float]:
    """The smallest and the largest number once those below the first and then above the last percentile are gone."""
    import numpy as np

    found = found[~np.isnan(found)]
    if not found.size:
        return 0.0, 0.0
    found = found[found >= np.percentile(found, 1, method="midpoint")]
    found = found[found <= np.percentile(found, 99, method="midpoint")]
    return float(found.min()), float(found.max())


RANGE = ("low", "high")
FAVOUR = Param(0.0, "0 keeps most of A where both are alike, 1 takes B everywhere")


@method(
    "cosine-a", inputs="A B", alpha=FAVOUR, fused=FUSED, roles=apart, across=Across(RANGE, of_columns, without_ends)
)
def cosine_a(a: Any, b: Any, *, alpha: float, fused: bool, low: float, high: float, role: str = "") -> Any:
    """k·A + (1 − k)·B, k = clip((x − lo)/(hi − lo) − |α|, 0, 1), x the mean of a column's cosine and the tensors'.

    "cosineA" of supermerger: columns lie along the first axis and are divided by their norms for the cosine of the
    tensors; lo and hi are the smallest and largest column's cosine of the whole models, without the outer percents. The
    VAE is A's.
    """
    if role == APART:
        return unchanged(a)
    return within(a, b, (of_unit_columns(a, b) - low) / (high - low) - abs(alpha), fused)


@method(
    "cosine-b", inputs="A B", alpha=FAVOUR, fused=FUSED, roles=apart,
    across=Across(RANGE, of_columns_and_tensor, without_ends),
)  # fmt: skip
def cosine_b(a: Any, b: Any, *, alpha: float, fused: bool, low: float, high: float, role: str = "") -> Any:
    """k·A + (1 − k)·B, k = clip((x − lo)/(hi − lo) − α, 0, 1), x the mean of a column's cosine and the tensor's.

    "cosineB" of supermerger: as cosine-a; lo and hi are those of x.
    """
    if role == APART:
        return unchanged(a)
    return within(a, b, (of_columns_and_tensor(a, b) - low) / (high - low) - alpha, fused)


def within(a: Any, b: Any, share: Any, fused: bool) -> Any:
    """lerp(B, A, k) of a share of A clipped to [0, 1]; A where it is not a number."""
    k = rounded(clip(share, 0, 1), a)
    return where(is_nan(k), a, lerp_by(b, a, k, fused))


# ---- by rows


@method(
    "extract", inputs="A B C", base="A",
    alpha=Param(0.5, "0: what B learned, 1: what C learned"),
    beta=Param(0.0, "0: where both learned the same, 1: where they learned different things"),
    gamma=Param(1.0, "how sharp the distinction is", "[0, inf)"), fused=FUSED,
)  # fmt: skip
def extract(a: Any, b: Any, c: Any, *, alpha: float, beta: float, gamma: float, fused: bool) -> Any:
    """A + ((1 − α)·(B − A) + α·(C − A))·((1 − β)·d + β·(1 − d)), d = ((cos + 1)/2)^γ of each row of B − A and C − A.

    "extract" of supermerger (``extract_super``); rows lie along the last axis, and A is the base.
    """
    return a + lerp(b - a, c - a, alpha, fused) * likeness(b - a, c - a, beta, gamma)


@method(
    "extract.no-base", inputs="A B", alpha=Param(0.5, "0: A, 1: B"),
    beta=Param(0.0, "0: where both are alike, 1: where they differ"),
    gamma=Param(1.0, "how sharp the distinction is", "[0, inf)"), fused=FUSED,
)  # fmt: skip
def extract_without_base(a: Any, b: Any, *, alpha: float, beta: float, gamma: float, fused: bool) -> Any:
    """((1 − α)·A + α·B)·((1 − β)·d + β·(1 − d)), d = ((cos + 1)/2)^γ of each row of A and B.

    "extract" of supermerger without a base model.
    """
    return lerp(a, b, alpha, fused) * likeness(a, b, beta, gamma)


def likeness(a: Any, b: Any, beta: float, gamma: float) -> Any:
    """How alike the rows of two tensors are (β = 0), or how different (β = 1)."""
    alike = pow((clip(cosine(a, b, -1), -1, 1) + 1) / 2, gamma)
    return alike + beta * ((1 - alike) - alike)


@method(
    "sum-cutoff", inputs="A B", alpha=Param(0.5, "weight of B in the columns that are mixed"),
    beta=Param(0.9, "columns are mixed below this mean likeness"),
    gamma=Param(0.4, "and above this"),
)  # fmt: skip
def sum_cutoff(a: Any, b: Any, alpha: float, beta: float, gamma: float) -> Any:
    """(1 − t)·A + t·B with t = α in the columns where γ < mean((max D − D)/max D) < β, else 0; D = |A − B|.

    "Weight sum cutoff" of ComfyUI-ModelUtils; columns lie along the first axis. A where A = B.
    """
    away = abs(a - b)
    most = maximum(away)
    alike = mean((most - away) / where(most > 0, most, 1), 0)
    share = rounded(where((alike > gamma) * (alike < beta), alpha, 0), a)
    return (1 - share) * a + share * b


@method("channel-cosine-gate", inputs="A B", alpha=Param(0.5, "weight of B where the channels differ"),
        beta=Param(0.5, "how much a difference counts"))  # fmt: skip
def channel_cosine_gate(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """(1 − g)·A + g·((1 − α)·A + α·B) with g = clip((1 − cos)·β, 0, 1) of each output channel.

    "CHAN" of Chattiori-Model-Merger; of tensors with 2 or 4 axes, others are a weighted sum.
    """
    mixed = (1 - alpha) * a + alpha * b
    gate = clip((1 - cosine(a, b, "channel")) * beta, 0, 1)
    many = axes(a)
    return where((many == 2) + (many == 4), a * (1 - gate) + mixed * gate, mixed)


@method("cosine-channel", inputs="A B", alpha=Param(0.5, "weight of B where the channels are alike"), fused=FUSED)
def cosine_channel(a: Any, b: Any, alpha: float, fused: bool) -> Any:
    """(1 − t)·A + t·B with t = clip(|α|·g, 0, 1), g = clip((cos + 1)/2, 0, 1) of each output channel, matched to A.

    "cosine" of Chattiori-Model-Merger 2026; a tensor of one axis has one cosine. Mean and deviation of the result then
    move half way towards those of A.
    """
    channels = products(a, b, "channel")
    gate = clip((where(axes(a) < 2, channels.whole.cosine(), channels.cosine()) + 1) / 2, 0, 1)
    t = clip(abs(alpha) * gate, 0, 1)
    sum_a, sum_b = sum(a, "channel"), sum(b, "channel")
    mean_a, deviation_a = spread(sum_a, channels.aa, size(a))
    mean_m, deviation_m = spread(
        (1 - t) * sum_a + t * sum_b,
        (1 - t) * (1 - t) * channels.aa + 2 * t * (1 - t) * channels.ab + t * t * channels.bb,
        size(a),
    )
    scale = where(deviation_m > 0, (deviation_a + deviation_m) / 2 / where(deviation_m > 0, deviation_m, 1), 1)
    return mixed_by(a, b, t, fused) * scale + ((mean_a + mean_m) / 2 - scale * mean_m)


def spread(sums: Any, squares: Any, count: Any) -> tuple[Any, Any]:
    """Mean and deviation of a tensor by the sums of its channels and of their squares. A variance below 2^-44 of the
    mean square may be what rounding leaves of equal elements (up to 2^-45.8 was seen), and counts as none."""
    mean, square = sum(sums) / count, sum(squares) / count
    variance = square - mean * mean
    return mean, sqrt(where(variance > 2.0**-44 * square, variance, 0))


def half_way_to(a: Any, mixed: Any) -> Any:
    """The mix, its mean and its deviation (of the population) moved half way towards those of A."""
    mean_a, mean_m = mean(a), mean(mixed)
    deviation_a, deviation_m = sqrt(variance(a)), sqrt(variance(mixed))
    alone = (mixed - mean_m) / where(deviation_m > 0, deviation_m, 1)
    return alone * ((deviation_a + deviation_m) / 2) + (mean_a + mean_m) / 2


@method("similarity-add-diff.matched", inputs="A B C", base="C", alpha=Param(1.0, "how much of B − C is added"),
        beta=Param(0.5, "how much the similarity counts"), fused=FUSED)  # fmt: skip
def similarity_matched(a: Any, b: Any, c: Any, *, alpha: float, beta: float, fused: bool) -> Any:
    """As similarity-add-diff, by a lerp; mean and deviation of the result move half way towards those of A.

    ``similarity_add_difference`` of Chattiori-Model-Merger since 2025.
    """
    share, added, mixed = similar_parts(a, b, c, alpha, beta)
    return half_way_to(a, lerp_by(added, mixed, share, fused))
