"""Least squares on weights: which mix of candidates C₁ … Cₙ with ratios that sum to one is nearest to a tensor M.

With d = C − M the mix misses M by Σ rᵢ·dᵢ, so all that is needed are the products G = ⟨dᵢ, dⱼ⟩: minimise rᵀGr under
Σr = 1. One candidate is taken as the origin, and the normal equations of the others' differences from it are solved in
float64: their condition is that of the candidates, however well the mix fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..dtypes import F32, DType

Array = Any

_CUT = 1e-11
"""Eigenvalues of the scaled normal equations below this share of the largest count as 0 (float64 gives 1e-16·n)."""
SIGNIFICANT = 6.0
"""A candidate is kept when its ratio is so many standard errors from 0 …"""
LEAST = 2e-3
"""… and at least so large; a smaller share of a candidate changes nothing that could be told from rounding twice."""
MISSING = 4.0
"""The residual's energy beside that of rounding, above which something is missing from the mix: twice the size."""
BEYOND = MISSING**0.5
"""The same of sizes."""
SHARE = 0.01
"""Then a candidate must also lower the residual's energy by this share …"""
SHARE_OF_CASTS = 0.05
"""… and by this where candidates are casts of the parents."""
WORSE = 1.5
"""As many times the residual's energy as an answer without a mix of the others may have."""

# An element x = m·2^e is off by a uniform error of ±ulp/2, ulp = 2^(e−p): ulp²/12 on average. With log m uniform on
# 1 ≤ m < 2 the mean of 1/m² is 3/(8·ln 2), so that is x²·4^−p·0.0451.
_SHARE = 3 / (8 * float(np.log(2.0))) / 12


def noise(square: float, elements: int, dtypes: Any) -> float:
    """The expected Σ(error²) of rounding a tensor with ``square`` = Σx² to the coarsest of the dtypes."""
    relative, absolute = _rounding(tuple(dtypes))
    return float(square * relative + elements * absolute)


@lru_cache(maxsize=256)
def _rounding(dtypes: tuple[DType | None, ...]) -> tuple[float, float]:
    """The expected error² of an element by its square, and beside that."""
    computed = (dtype for dtype in dtypes if dtype is not None and dtype.computable)
    coarsest = min(computed, key=lambda dtype: dtype.format.mantissa_bits, default=F32).format
    smallest = 2.0 ** (coarsest.least_exponent - coarsest.mantissa_bits)
    return 4.0**-coarsest.mantissa_bits * _SHARE, smallest**2 / 12


def coarser(dtype: DType | None, other: DType | None) -> bool:
    """Whether one dtype rounds more than the other."""
    if dtype is None or other is None or not (dtype.computable and other.computable):
        return False
    return dtype.format.mantissa_bits < other.format.mantissa_bits


@dataclass(frozen=True)
class Fit:
    """``ratios`` and their standard ``errors`` [n], 0 for candidates that were not asked for; ``own`` [n] the energy of
    what of each candidate no mix of the others makes, infinite for a single one; ``residual`` rᵀGr;
    ``condition`` of the scaled normal equations; ``unique``: whether only one mix is nearest."""

    ratios: Array
    errors: Array
    own: Array
    residual: float
    condition: float
    unique: bool


def fit(products: Array, elements: int, keep: list[int], floor: float = 0.0) -> Fit:
    """The nearest mix of the candidates ``keep``. Its errors follow from the residual, or from ``floor`` (the residual
    of rounding alone) where that is larger."""
    count = len(products)
    ratios, errors = np.zeros(count), np.zeros(count)
    origin = min(keep, key=lambda i: products[i, i])
    rest = [i for i in keep if i != origin]
    condition, unique = 1.0, True
    if rest:
        g = products
        e = g[np.ix_(rest, rest)] - g[rest, origin][:, None] - g[origin, rest][None, :] + g[origin, origin]
        b = g[origin, origin] - g[rest, origin]
        scale = np.sqrt(np.maximum(np.diag(e), 0))
        usable = scale > 0
        unique = bool(usable.all())
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=usable)
        values, vectors = np.linalg.eigh(e * inverse[:, None] * inverse[None, :])
        large = values > _CUT * max(values.max(), 0.0)
        if usable.sum() > large.sum():
            unique = False
        condition = float(values.max() / max(values.min(), 1e-300)) if unique else float("inf")
        pseudo = (vectors[:, large] / values[large]) @ vectors[:, large].T * inverse[:, None] * inverse[None, :]
        ratios[rest] = pseudo @ b
        ratios[origin] = 1 - ratios[rest].sum()
        spread = pseudo
        errors[rest] = np.maximum(np.diag(spread), 0)
        errors[origin] = max(float(spread.sum()), 0.0)
    else:
        ratios[origin] = 1.0
    residual = max(float(ratios @ products @ ratios), 0.0)
    variance = max(residual, floor) / max(1, elements - len(keep) + 1)
    own = np.divide(1.0, errors, out=np.full(count, np.inf), where=errors > 0)
    return Fit(ratios, np.sqrt(errors * variance), own, residual, condition, unique)


def eliminated(
    products: Array, elements: int, keep: list[int], floor: float = 0.0, *, biased: bool = False
) -> tuple[list[int], Fit]:
    """Backward elimination, with ``products`` in units of rounding, as ``unmix`` weighs them.

    While some candidate's ratio is within ``SIGNIFICANT`` standard errors of 0, or below ``LEAST``, or lowers a large
    residual by less than ``SHARE``, or while the answer isn't unique, the one without which the residual grows least is
    left out; of equal ones that without which the ratios are smallest in sum. So is a candidate that the others make to
    within rounding, unless the residual grows by more than ``WORSE``: roundings of the same sums resemble each other.
    Gives who is left, and the fit. ``biased``: the candidates were rounded after the merge, which pulls at all ratios;
    each must lower any residual by ``SHARE_OF_CASTS``.
    """
    keep = list(keep)
    while len(keep) > 1:
        now = fit(products, elements, keep, floor)
        least = SIGNIFICANT
        if now.residual > MISSING * elements:  # what is missing points somewhere: errors are not only chance
            least = max(least, (SHARE * elements) ** 0.5)
        if biased:
            least = max(least, (SHARE_OF_CASTS * elements) ** 0.5)
        scale = 1e-9 * float(np.abs(np.diag(products)[keep]).max()) + 1e-300
        without = []
        for i in keep:
            weak = not now.unique or abs(now.ratios[i]) < max(least * now.errors[i], LEAST)
            if not weak and now.own[i] > MISSING * elements:
                continue
            other = fit(products, elements, [j for j in keep if j != i], floor)
            if weak or other.residual <= WORSE * now.residual:
                without.append((round(other.residual / scale), float(np.abs(other.ratios).sum()), i))
        if not without:
            return keep, now
        keep.remove(min(without)[2])
    return keep, fit(products, elements, keep, floor)
