"""Spectra: which frequencies come from which model. Transforms are NumPy's, in float64: results are the same to about
one rounding on every machine, and not to the bit."""

from __future__ import annotations

from typing import Any

from ..functions import whole
from .registry import Param, method
from .sums import FUSED


@method("crossover", inputs="A B",
        alpha=Param(0.5, "share of the spectrum that is B's, from the highest frequency down", "[0, 1]"),
        tilt=Param(0.0, "0: a cut, 1: the weighted sum, 2: a cut the other way round, 2 to 4 back again"),
        fused=FUSED)  # fmt: skip
def crossover(a: Any, b: Any, alpha: float, tilt: float, fused: bool) -> Any:
    """A + F⁻¹(f·F(B − A)): low frequencies of A, high ones of B; f is 1 where ρ > 1 − α, less steep with a tilt.

    F is the real transform over all axes, ρ the root mean square of the frequencies, each from 0 to 1. ``crossover`` of
    sd-mecha. The weighted sum of a number, and where A and B agree to 1e-5.
    """
    from ..definitions import spectra

    return whole(spectra.crossover, a, b, alpha, tilt, float(fused))


@method("distribution-crossover", inputs="A B C",
        alpha=Param(0.5, "share of A, from the lowest frequency up; 0 gives B", "[0, 1]"),
        beta=Param(0.0, "width of the slope between the two", "[0, 1]"))  # fmt: skip
def distribution_crossover(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """As a sequence in the order of C's values: frequencies below a share α from A, the others from B.

    ``distribution_crossover`` of meh. Between the two lies a slope of width β; of equal values of C the first is first.
    """
    from ..definitions import spectra

    return whole(spectra.distribution_crossover, a, b, c, alpha, beta)


@method("frequency-band", inputs="A B", alpha=Param(0.5, "weight of B", "[0, 1]"),
        beta=Param(0.2, "width of the band that stays A's, as a share of the kernel", "[0, 1]"))  # fmt: skip
def frequency_band(a: Any, b: Any, alpha: float, beta: float) -> Any:
    """Of kernels A + α·F⁻¹(F(B − A) without a band), others (1 − α)·A + α·B; F transforms each kernel.

    "FREQ" of Chattiori-Model-Merger: the band is that around the middle of the spectrum as it is stored, so for 3 × 3
    the row of frequency 1 stays A's, and everything for β ≥ ⅔.
    """
    from ..definitions import spectra

    return whole(spectra.frequency_band, a, b, alpha, beta)


@method("feature-weighted", inputs="A B", alpha=Param(0.5, "how much of the difference is added"))
def feature_weighted(a: Any, b: Any, alpha: float) -> Any:
    """A + α·δ·clip((s_A/s_δ)^γ, ½, 1.5)·clip(√(s_A/s_B), 0.8, 1.1), of deviations s.

    "FWM" of Chattiori-Model-Merger. γ = 1 − (clip(s_B/s_A, ½, 2) − 1)/2; δ = B − A, within kernels the mean of 3 × 3
    of the mean of itself and its own mean of 3 × 3. Mean and deviation of the result move half way towards those of A;
    the weighted sum where a deviation is below 1e-6.
    """
    from ..definitions import spectra

    return whole(spectra.feature_weighted, a, b, alpha)
