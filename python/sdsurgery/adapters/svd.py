"""Low-rank factors of a matrix, and the rank that is enough of it.

Singular vectors have no sign of their own; here the largest entry of every left one is positive. NumPy's LAPACK does
the work, or torch on a GPU, so the last bits differ between machines; the products agree to some 1e-6.

Singular values are found as eigenvalues of the Gram matrix of the smaller side, in float64: those below 1e-8 of the
largest are rounding errors, less than the float32 elements of the matrix can tell. For a small rank that Gram matrix
is taken in a subspace that holds the largest of them. Source of the subspace, a block Krylov space: Musco, Musco,
"Randomized block Krylov methods for stronger and faster approximate singular value decomposition" (2015), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError

Array = Any

_OVERSAMPLED = 8  # columns of a block beyond the rank
_BLOCKS = 8
"""Of the Krylov space. So many come within 1e-4 of the best error even where all singular values are alike, as those of
noise are; power iterations take three times as many."""


DEVICE = "cuda"
"""That of torch on which layers are factorised, where a GPU is asked for."""


def unavailable() -> str | None:
    """Why torch cannot compute on ``DEVICE``; None where it can."""
    try:
        import torch

        torch.zeros(1, device=DEVICE)
    except ImportError:
        return "torch is not installed"
    except (RuntimeError, AssertionError) as error:
        return f"this torch cannot use one ({str(error).splitlines()[0]})"
    return None


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
            raise UsageError("energy= must be above 0 and at most 1, sigma_ratio= below 1", code="bad_value")
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


def factored(matrix: Array, rank: Rank, *, sampled: bool | None = None, device: str = "") -> Factors | None:
    """The best factors of that rank; None of a matrix of zeros. ``sampled``: in a random subspace, which is several
    times faster; None: where the rank is fixed and the subspace at most half of the matrix. ``device``: that of torch
    which does the work, where it isn't NumPy's."""
    on = _On(device)
    matrix = on.placed(np.asarray(matrix))
    is_wide = matrix.shape[0] <= matrix.shape[1]
    flat = matrix if is_wide else matrix.T
    total = float(on.linalg.norm(matrix))
    if total == 0:
        return None
    if sampled is None:
        sampled = rank.is_fixed and 2 * _BLOCKS * (rank.most + _OVERSAMPLED) <= flat.shape[0]
    basis = _krylov(flat, rank.most, on) if sampled else None
    part = flat if basis is None else basis.T @ flat
    values, vectors = on.linalg.eigh(part @ part.T)
    sigma = np.sqrt(np.maximum(on.fetched(values)[::-1], 0))
    count = rank.of(sigma)
    sigma, vectors = sigma[:count], on.of.flip(vectors, (1,))[:, :count]
    lengths = np.where(sigma > sigma[0] * 1e-8, sigma, np.inf)  # below, a direction of rounding errors
    left, right = on.fetched(vectors if basis is None else basis @ vectors), on.fetched(vectors.T @ part)
    right = right / lengths[:, None]
    u, vt = _signed(left, right) if is_wide else _signed(right.T, left.T)
    return Factors(u * sigma, vt, float(np.linalg.norm(sigma)) / total)


def of_product(up: Array, down: Array, rank: Rank) -> Factors | None:
    """The same of ``up · down`` of small rank, without their product: both factors' QR, and the SVD of the small
    matrix between them."""
    left, upper = np.linalg.qr(np.asarray(up, np.float64))
    right, lower = np.linalg.qr(np.asarray(down, np.float64).T)
    found = factored(upper @ lower.T, rank, sampled=False)
    return None if found is None else Factors(*_signed(left @ found.up, found.down @ right.T), found.kept)


class _On:
    """Who computes: ``of`` is NumPy, or torch on a device. The functions used here have the same names in both."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.of: Any = np
        if device:
            import torch

            self.of = torch
        self.linalg = self.of.linalg

    def placed(self, array: Array) -> Array:
        """A NumPy array there, in float64."""
        if not self.device:
            return np.asarray(array, np.float64)
        return self.of.from_numpy(np.ascontiguousarray(array)).to(self.device).to(self.of.float64)

    def fetched(self, array: Array) -> Array:
        return array.cpu().numpy() if self.device else array


def _krylov(flat: Array, rank: int, on: _On) -> Array:
    """An orthonormal basis of random vectors and of what repeated products with the Gram matrix make of them."""
    rows, columns = flat.shape
    random = np.random.Generator(np.random.Philox(key=rows * 2**32 + columns))
    block = on.placed(random.standard_normal((rows, min(rank + _OVERSAMPLED, rows))))
    blocks = []
    for _ in range(_BLOCKS):
        block = on.linalg.qr(flat @ (flat.T @ block))[0]
        blocks.append(block)
    return on.linalg.qr(on.of.hstack(blocks))[0]


def _signed(left: Array, right: Array) -> tuple[Array, Array]:
    """Every pair of vectors with the sign that makes the largest entry of the left one positive; of several equal
    ones, the first."""
    places = np.argmax(np.abs(left), axis=0)
    signs = np.where(left[places, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return left * signs, right * signs[:, None]


def clamped(matrix: Array, factors: Factors, quantile: float) -> Factors:
    """kohya's clamp: both factors limited to ± the quantile of all their values together. It only adds error: ``kept``
    then is what one of the same error without a clamp would keep."""
    values = np.concatenate([factors.up.reshape(-1), factors.down.reshape(-1)])
    limit = float(np.quantile(values, quantile))
    up, down = np.clip(factors.up, -limit, limit), np.clip(factors.down, -limit, limit)
    off = float(np.linalg.norm(matrix - up @ down) / np.linalg.norm(matrix))
    return Factors(up, down, max(0.0, 1 - off * off) ** 0.5)
