"""Low-rank factors of a matrix, and the rank that is enough of it.

Singular vectors have no sign of their own; here the largest entry of every left one is positive. NumPy's LAPACK does
the work, so the last bits differ between machines; the products agree to some 1e-6.

Source of the randomised form: Halko, Martinsson, Tropp, "Finding structure with randomness" (2011), algorithms 4.4 and
5.1, with power iterations that are orthogonalised in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError

Array = Any

_OVERSAMPLED = 16  # on top of twice the rank
_ITERATIONS = 12  # enough where all singular values are alike, as those of noise are
_WORTH_SQUARING, _WORTH_SAMPLING = 256, 1024  # rows or columns, the fewer of them
"""Below these all of a matrix costs no more than a part: by its SVD, then by the eigenvectors of its Gram matrix."""


class Rank(NamedTuple):
    """How many singular values are kept: at most ``most`` (0: as many as there are), and as few as reach ``energy``
    (the share ‖Δ_r‖/‖Δ‖ in the Frobenius norm), or only those above ``ratio`` times the largest."""

    most: int = 0
    energy: float = 0.0
    ratio: float = 0.0

    def check(self) -> Rank:
        """Itself. UsageError for numbers that it cannot have."""
        if self.most < 0 or (self.most == 0 and not self.energy and not self.ratio):
            raise UsageError("rank= must be at least 1, unless energy= or sigma_ratio= chooses it", code="bad_value")
        if not 0 <= self.energy <= 1 or not 0 <= self.ratio < 1:
            raise UsageError("energy= is a share above 0 and up to 1, sigma_ratio= one below 1", code="bad_value")
        if self.energy and self.ratio:
            raise UsageError("energy= and sigma_ratio= exclude each other", code="conflict")
        return self

    @property
    def is_fixed(self) -> bool:
        return not self.energy and not self.ratio

    def of(self, sigma: Sequence[float] | Array) -> int:
        """The number that is kept of these singular values, in falling order; at least 1."""
        values = np.asarray(sigma, np.float64)
        count = len(values)
        if self.energy:
            squares = np.cumsum(values * values)
            reached = np.sqrt(squares / squares[-1]) >= self.energy * (1 - 1e-12)
            count = int(np.argmax(reached)) + 1 if reached.any() else count
        elif self.ratio:
            count = int((values > self.ratio * values[0]).sum())
        return max(1, min(count, self.most or count, len(values)))


class Factors(NamedTuple):
    """``up · down`` ≈ the matrix: up is U·S, down Vᵀ, both float64. ``kept`` is ‖up·down‖/‖matrix‖."""

    up: Array
    down: Array
    kept: float


def factored(matrix: Array, rank: Rank, *, sampled: bool | None = None) -> Factors | None:
    """The best factors of that rank; None of a matrix of zeros. ``sampled``: by random projections, which find the
    largest of many singular values several times faster; None: where a fixed rank is small enough."""
    matrix = np.asarray(matrix)
    total = float(np.sqrt(np.sum(matrix.astype(np.float64) ** 2)))
    if total == 0:
        return None
    least = min(matrix.shape)
    if sampled is None:
        sampled = rank.is_fixed and least >= _WORTH_SAMPLING and 2 * (2 * rank.most + _OVERSAMPLED) <= least
    u, sigma, vt = _sampled(matrix, rank.most) if sampled else _exact(matrix)
    count = rank.of(sigma)
    u, sigma, vt = _signed(u[:, :count], vt[:count], sigma[:count])
    return Factors(u * sigma, vt, float(np.sqrt(np.sum(sigma * sigma)) / total))


def of_product(up: Array, down: Array, rank: Rank) -> Factors | None:
    """The same of ``up · down`` of small rank, without their product: both factors' QR, and the SVD of the small
    matrix between them."""
    left, upper = np.linalg.qr(np.asarray(up, np.float64))
    right, lower = np.linalg.qr(np.asarray(down, np.float64).T)
    found = factored(upper @ lower.T, rank, sampled=False)
    return None if found is None else Factors(*_resigned(left @ found.up, found.down @ right.T), found.kept)


def _exact(matrix: Array) -> tuple[Array, Array, Array]:
    """All singular values, in float64, by the eigenvectors of the smaller side's Gram matrix: much faster than an SVD
    of an oblong matrix, and as accurate as its float32 elements for all but the smallest values."""
    wide = matrix.astype(np.float64)
    rows, columns = wide.shape
    if min(rows, columns) < _WORTH_SQUARING:
        u, sigma, vt = np.linalg.svd(wide, full_matrices=False)
        return u, sigma, vt
    flat = wide if rows <= columns else wide.T
    values, vectors = np.linalg.eigh(flat @ flat.T)
    sigma, u = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
    lengths = np.where(sigma > sigma[0] * 1e-8, sigma, np.inf)  # below, a direction of rounding errors
    vt = (u.T @ flat) / lengths[:, None]
    return (u, sigma, vt) if rows <= columns else (vt.T, sigma, u.T)


def _sampled(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    rows, columns = matrix.shape
    random = np.random.Generator(np.random.Philox(key=rows * 2**32 + columns))
    width = min(2 * rank + _OVERSAMPLED, rows, columns)
    sketch = matrix @ random.standard_normal((columns, width)).astype(matrix.dtype)
    for _ in range(_ITERATIONS):
        sketch = matrix.T @ np.linalg.qr(sketch)[0]
        sketch = matrix @ np.linalg.qr(sketch)[0]
    basis = np.linalg.qr(sketch)[0].astype(np.float64)
    u, sigma, vt = np.linalg.svd(basis.T @ matrix.astype(np.float64), full_matrices=False)
    return basis @ u, sigma, vt


def _signed(u: Array, vt: Array, sigma: Array) -> tuple[Array, Array, Array]:
    left, right = _resigned(u, vt)
    return left, sigma, right


def _resigned(left: Array, right: Array) -> tuple[Array, Array]:
    """Every pair of vectors with the sign that makes the largest entry of the left one positive; of several equal
    ones, the first."""
    places = np.argmax(np.abs(left), axis=0)
    signs = np.where(left[places, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * signs, right * signs[:, None]


def clamped(factors: Factors, quantile: float) -> Factors:
    """kohya's clamp: both factors limited to ± the quantile of all their values together. It only adds error."""
    values = np.concatenate([factors.up.reshape(-1), factors.down.reshape(-1)])
    limit = float(np.quantile(values, quantile))
    up, down = np.clip(factors.up, -limit, limit), np.clip(factors.down, -limit, limit)
    return factors._replace(up=up, down=down)
