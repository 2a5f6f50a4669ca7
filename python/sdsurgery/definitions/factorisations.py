"""Factorisations of whole NumPy arrays, seen as matrices, in float64: rotations of one matrix towards another, and what
is left of a matrix by few of its singular values."""

from __future__ import annotations

import math

import numpy as np

from .fused import lerp
from .memory import needs

NULL = 1e-10  # singular values below this share of the largest are no directions
STIEFEL_STEPS, STIEFEL_NEAR = 100, 1e-8  # of the logarithm between two bases: sd-mecha's defaults


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor to be rotated: its output channels, or a convolution's kernels."""
    kernels = len(shape) == 4 and shape[2:] != (1, 1)
    rows = shape[0] * shape[1] if kernels else shape[0]
    return rows, math.prod(shape) // max(rows, 1)


def _rotation(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return 16 * math.prod(shape)
    rows, columns = _matrix(shape)
    return (40 if rows >= columns else 88) * math.prod(shape) + 160 * min(rows, columns) ** 2


def _decomposition(shape: tuple[int, ...]) -> int:
    return 40 * math.prod(shape) + 32 * min(shape[0], math.prod(shape[1:])) ** 2 if len(shape) > 1 else 0


@needs(_rotation)
def rotate(a: np.ndarray, b: np.ndarray, *numbers: float) -> np.ndarray:
    """A turned towards B by Q^alignment, Q the orthogonal matrix with the smallest ‖A·Q − B‖ (Schönemann, "A
    generalized solution of the orthogonal Procrustes problem", 1966). Rows are output channels, or a convolution's
    kernels. ``numbers``: the alignment, the weight of B, the share of the mean that is left out, 1 for a fused lerp."""
    alignment, alpha, centralization, fused = numbers
    if alignment == alpha == 0:
        return a
    if alignment == alpha == 1:
        return b
    with np.errstate(over="ignore", invalid="ignore"):
        alike = np.allclose(a.astype(np.float16), b.astype(np.float16))
    if a.ndim < 2 or alike or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return lerp(a, b, alpha, bool(fused))
    x, y = (each.astype(np.float64).reshape(_matrix(a.shape)) for each in (a, b))
    mean_x, mean_y = x.mean(0) * centralization, y.mean(0) * centralization
    x, y = x - mean_x, y - mean_y
    turn = _Turn(x, y, whole=alignment == round(alignment))
    if alpha != 0:
        x = x + alpha * (turn(y, -1) - x)
    found: np.ndarray = turn(x, alignment) + (mean_x + alignment * (mean_y - mean_x))
    return found.reshape(a.shape)


class _Turn:
    """The rotation from the rows of x to those of y. Of fewer rows than columns it acts on the span of the rows: it
    takes the orthonormal basis ``u`` to ``v`` and leaves what is perpendicular alone. Directions without a length, of
    which centred rows have one, are left out: nothing determines where they go."""

    def __init__(self, x: np.ndarray, y: np.ndarray, *, whole: bool) -> None:
        self.low = x.shape[0] < x.shape[1]
        if self.low:
            basis, factor = np.linalg.qr(y.T)
            u, sizes, vt = np.linalg.svd(x.T @ factor.T, full_matrices=False)
            kept = int((sizes > NULL * sizes.max(initial=0)).sum())
            self.u, self.v = u[:, :kept], (basis @ vt.T)[:, :kept]
            return
        u, _, vt = np.linalg.svd(x.T @ y)
        if not whole and np.linalg.slogdet(u @ vt)[0] < 0:
            u[:, -1] *= -1  # a reflection has no fractional power
        self.q: np.ndarray = u @ vt

    def __call__(self, rows: np.ndarray, power: float) -> np.ndarray:
        if power == 0:
            return rows
        if not self.low:
            return rows @ orthogonal_power(self.q, power)
        if power == 1:
            before, after = self.v, self.u
        elif power == -1:
            before, after = self.u, self.v
        else:
            away = stiefel_log(self.v, self.u)
            after = stiefel_exp(self.v, away * ((power + 1) / 2))
            before = stiefel_exp(self.v, away * ((1 - power) / 2))
        return rows - (rows @ before) @ before.T + (rows @ after) @ before.T


def orthogonal_power(q: np.ndarray, power: float) -> np.ndarray:
    """An orthogonal matrix to a power, whole or not."""
    if power == round(power):
        return np.linalg.matrix_power(q.T if power < 0 else q, abs(round(power)))
    angles, vectors = _angles(q)
    return ((vectors * np.exp(1j * power * angles)) @ vectors.conj().T).real


def _angles(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The angles of a rotation's eigenvalues, and orthonormal eigenvectors. The symmetric and the skew part of a normal
    matrix have the same eigenvectors, so one Hermitian matrix of both gives them."""
    both = (0.6 * (q + q.T) - 0.8j * (q - q.T)) / 2
    vectors = np.linalg.eigh(both)[1]
    return np.angle(np.einsum("ij,ij->j", vectors.conj(), q @ vectors)), vectors


def _log(q: np.ndarray) -> np.ndarray:
    angles, vectors = _angles(q)
    return ((vectors * (1j * angles)) @ vectors.conj().T).real


def _exp(skew: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(-1j * skew)
    return ((vectors * np.exp(1j * values)) @ vectors.conj().T).real


def _positive_qr(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, r = np.linalg.qr(x)
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q * signs, r * signs[:, None]


def stiefel_exp(u: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The orthonormal basis that a tangent leads to from u (Edelman, Arias, Smith, "The geometry of algorithms with
    orthogonality constraints", 1998)."""
    count = u.shape[1]
    k = min(u.shape[0] - count, count)
    a = u.T @ delta
    q, r = _positive_qr(delta - u @ a)
    q, r = q[:, :k], r[:k]
    turned = _exp(np.block([[a, -r.T], [r, np.zeros((k, k))]]))
    return u @ turned[:count, :count] + q @ turned[count:, :count]


def stiefel_log(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The tangent that leads from one orthonormal basis to another (Zimmermann, Hüper, "Computing the Riemannian
    logarithm on the Stiefel manifold", 2022)."""
    count = start.shape[1]
    k = min(start.shape[0] - count, count)
    m = start.T @ end
    q, n = _positive_qr(end - start @ m)
    q, n = q[:, :k], n[:k]
    tall = np.concatenate([m, n])
    v = np.concatenate([tall, np.linalg.qr(np.eye(count + k)[:, count:] - tall @ tall[count:].T)[0]], axis=1)
    r, sizes, rt = np.linalg.svd(v[count:, count:])
    q = q @ r
    v[count:, :count] = r.T @ n
    v[:count, count:] = v[:count, count:] @ rt.T
    v[count:, count:] = np.diag(sizes)
    if np.linalg.slogdet(v)[0] < 0:
        v[:, -1] *= -1
    log = _log(v)
    for _ in range(STIEFEL_STEPS):
        c, b = log[count:, count:], log[count:, :count]
        if np.linalg.norm(c) <= STIEFEL_NEAR:
            break
        values, vectors = np.linalg.eigh(b @ b.T / 12 - 0.5 * np.eye(k))
        g = vectors @ ((vectors.T @ c @ vectors) / (values[:, None] + values)) @ vectors.T
        v[:, count:] = v[:, count:] @ _exp((g - g.T) / 2)
        log = _log(v)
    found: np.ndarray = start @ log[:count, :count] + q @ log[count:, :count]
    return found


@needs(_decomposition)
def truncate_rank(x: np.ndarray, rank: float) -> np.ndarray:
    """The nearest matrix of a lower rank (Eckart, Young, 1936); rows are output channels."""
    if x.ndim < 2 or not x.size:
        return x
    rows = x.astype(np.float64).reshape(x.shape[0], -1)
    full = min(rows.shape)
    most = min(int(rank), full)
    if most == full or not np.isfinite(rows).all():
        return x
    u, sizes, vt = np.linalg.svd(rows, full_matrices=False)
    return ((u[:, :most] * sizes[:most]) @ vt[:most]).reshape(x.shape)


@needs(_decomposition)
def truncate_kronecker(x: np.ndarray, ratio: float) -> np.ndarray:
    """The nearest Kronecker product of two arrays (Van Loan, Pitsianis, "Approximation with Kronecker products", 1993),
    the first of the size that ``kronecker_shape`` gives."""
    if x.ndim < 2 or not x.size or not np.isfinite(x).all():
        return x
    rows, columns = kronecker_shape(x.shape, ratio)
    shape = (rows, x.shape[0] // rows, columns, x.shape[1] // columns * math.prod(x.shape[2:]))
    apart = x.astype(np.float64).reshape(shape).transpose(0, 2, 1, 3)
    u, sizes, vt = np.linalg.svd(apart.reshape(rows * columns, -1), full_matrices=False)
    near = np.outer(u[:, 0] * sizes[0], vt[0]).reshape(apart.shape)
    return near.transpose(0, 2, 1, 3).reshape(x.shape)


def kronecker_shape(shape: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """The first factor's axes: divisors of the array's, whose product's logarithm lies nearest to a share of its range;
    of several the squarest."""
    divisors = [[d for d in range(1, n + 1) if n % d == 0] for n in shape[:2]]
    half = 0.5 * math.log(math.prod(shape))
    sizes = {(m, n): math.log(m * n) - half for m in divisors[0] for n in divisors[1]}
    wanted = (2.0 * ratio - 1.0) * max(abs(min(sizes.values())), abs(max(sizes.values())))

    def away(pair: tuple[int, int]) -> tuple[float, float]:
        m, n = pair
        return abs(sizes[pair] - wanted), abs(math.log(m * m / shape[0])) + abs(math.log(n * n / shape[1]))

    return min(sizes, key=away)
