"""What an adapter's module makes of a weight, by definition: over NumPy arrays, in an order that every backend follows.

A module changes W, read as ``out × columns`` (a convolution's columns are its input channels and kernel, flattened), to
``W + s·(W₁ − W)``, where s is the strength and W₁ the weight that it was trained to make. All of it is float32 (float64
where the run computes in that); every operation is rounded on its own, nothing is fused. docs/numerics.md has the
rules: a product of factors is summed over the rank from its first term on, one term after the other; the additive kinds
give ``W + n·Δ`` with ``n = s·alpha/rank`` from float64; norms are the ordered sums of ``reductions.py``.

Formulas: KohakuBlueleaf/LyCORIS 4.1.3 ``lycoris/functional`` (LoHa, LoKr, GLoRA, (IA)³, OFT, BOFT), kohya-ss/sd-scripts
48d368f ``networks/{lora,oft}.py``, peft 0.21 ``tuners/lora/dora.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..operands.low_rank import LowRank, Matrix
from ..plan import Module
from .decoding import Numbers
from .reductions import reduced_rows

Array = Any  # a NumPy array of the run's float type
Factors = Mapping[str, Array]
Delta = Callable[[int, int, Array], Array]
"""(first row, rows, those of W) → the rows of Δ, or of W₁."""

NEAR_ZERO = 2.0**-23  # what peft and LyCORIS add to a norm before they divide by it


def product(left: Array, right: Array) -> Array:
    """``left · right`` of [rows, rank] and [rank, columns]: the terms of every element added in the order of the rank,
    each product and each sum rounded to the arrays' type. This order is a promise: native kernels follow it."""
    total: Array = left[:, :1] * right[:1]
    for k in range(1, left.shape[1]):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total


def computed(made: LowRank, numbers: Numbers) -> Array:
    """All of a computed operand, float32, flat; ``start`` is not left out."""
    left = _values(made.left, numbers)
    if made.kind == "by_row":
        return np.repeat(left.reshape(-1), made.columns)
    if made.kind == "by_column":
        return np.tile(np.repeat(left.reshape(-1), made.columns // made.left.columns), made.rows)
    assert made.right is not None
    right = _values(made.right, numbers)
    return (product(left, right) if made.kind == "product" else np.kron(left, right)).reshape(-1)


def _values(matrix: Matrix, numbers: Numbers) -> Array:
    parts = [numbers(part) for part in matrix.parts]
    if matrix.form == "stored":
        return parts[0].reshape(matrix.rows, matrix.columns)
    if matrix.form == "transposed":
        return parts[0].reshape(matrix.columns, matrix.rows).T
    if matrix.form == "product":
        return product(parts[0].reshape(matrix.rows, -1), parts[1].reshape(-1, matrix.columns))
    height = matrix.rows if matrix.form == "with_kernel" else matrix.rank
    right = with_kernel(parts[-2].reshape(height, matrix.inner, -1), parts[-1].reshape(matrix.inner, -1))
    return right if matrix.form == "with_kernel" else product(parts[0].reshape(matrix.rank, -1).T, right)


class Effect:
    """What one module does to rows of a weight. ``step``: a call needs a multiple of so many rows, from a multiple of
    them on; the whole weight where it is as large as that."""

    def __init__(self, module: Module, factors: Factors, real: type[np.floating[Any]]) -> None:
        self.module, self.real = module, real
        self.shape = module.seen
        kind = _KINDS[module.kind]
        self._make = kind.prepare(factors, self.shape, module)
        self._scale = factors.get("dora_in"), factors.get("dora_out")
        whole = module.transposed or kind.whole or self._scale[0] is not None
        self.step = module.shape[0] if whole else kind.step(factors)
        self._additive = kind.additive

    def __call__(self, weight: Array, first: int) -> Array:
        """The rows [rows, columns] of ``weight`` from row ``first`` on, changed."""
        module = self.module
        if module.transposed:
            return self._changed(np.ascontiguousarray(weight.T), 0).T
        if module.channels:
            taps = prod(module.shape[2:])
            changed = weight.copy()
            changed[:, : module.channels * taps] = self._changed(weight[:, : module.channels * taps], first)
            return changed
        return self._changed(weight, first)

    def _changed(self, weight: Array, first: int) -> Array:
        module, real = self.module, self.real
        made = self._make(first, len(weight), weight)
        if module.kind == "set":
            return np.broadcast_to(made, weight.shape)
        decomposed = any(scale is not None for scale in self._scale)
        if self._additive and not decomposed:
            return weight + real(module.strength * module.scale) * made
        if self._additive:
            made = weight + real(module.scale) * made
        if decomposed:
            made = self._renormed(made, first)
        return weight + real(module.strength) * (made - weight)

    def _renormed(self, weight: Array, first: int) -> Array:
        """Rows or columns of the trained length (DoRA)."""
        per_column, per_row = self._scale
        if per_row is not None:
            wide = weight.astype(np.float64)
            lengths = np.sqrt(reduced_rows("dot", wide, wide))
            ratio = per_row.reshape(-1)[first : first + len(weight)] / (lengths + NEAR_ZERO).astype(self.real)
            return weight * ratio[:, None]
        assert per_column is not None
        inputs = self.shape[1]
        each = weight.reshape(len(weight), inputs, -1)
        wide = np.moveaxis(each, 1, 0).reshape(inputs, -1).astype(np.float64)
        lengths = np.sqrt(reduced_rows("dot", wide, wide))
        ratio = per_column.reshape(-1) / (lengths + NEAR_ZERO).astype(self.real)
        return (each * ratio[:, None]).reshape(weight.shape)


class _Kind(NamedTuple):
    """``prepare(factors, shape, module)`` computes what does not depend on the rows and gives the rest as a function.
    ``additive``: it makes Δ, not W₁. ``whole``: the weight can't be taken row by row."""

    prepare: Callable[[Factors, tuple[int, ...], Module], Delta]
    additive: bool = True
    whole: bool = False
    step: Callable[[Factors], int] = lambda factors: 1


def _matrix(factor: Array) -> Array:
    return factor.reshape(len(factor), -1)


def with_kernel(core: Array, right: Array) -> Array:
    """The right factor [rank, in·kh·kw] of a Tucker form: ``Σⱼ core[i, j, y, x] · right[j, q]``."""
    rank, inner = core.shape[:2]
    taps = core.reshape(rank, inner, -1)
    left = np.moveaxis(taps, 1, 2).reshape(-1, inner)  # [(i, tap), j]
    made = product(left, _matrix(right)).reshape(rank, taps.shape[2], -1)
    return np.moveaxis(made, 1, 2).reshape(rank, -1)


def _lora(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    up, down = _matrix(factors["up"]), _matrix(factors["down"])
    if "mid" in factors:
        down = with_kernel(factors["mid"], down)
    rest = factors["bias"].reshape(shape[0], -1) if "bias" in factors else None
    if "bias_indices" in factors:
        rest = np.zeros((shape[0], prod(shape[1:])), up.dtype)
        places = factors["bias_indices"].astype(np.int64).reshape(2, -1)
        np.add.at(rest, (places[0], places[1]), factors["bias_values"].reshape(-1))

    def rows(first: int, count: int, weight: Array) -> Array:
        made = product(up[first : first + count], down)
        return made if rest is None else made + rest[first : first + count]

    return rows


def _loha(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    pairs = []
    for number in (1, 2):
        left, right = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        if f"hada_t{number}" in factors:
            left, right = left.T, with_kernel(factors[f"hada_t{number}"], right)
        pairs.append((left, right))
    (a1, b1), (a2, b2) = pairs
    return lambda first, count, weight: product(a1[first : first + count], b1) * product(a2[first : first + count], b2)


def _kronecker_factor(factors: Factors, name: str) -> Array:
    if name in factors:
        return _matrix(factors[name])
    left, right = factors[f"{name}_a"], factors[f"{name}_b"]
    core = factors.get(name.replace("w2", "t2")) if name.endswith("w2") else None
    return product(left, _matrix(right)) if core is None else product(left.T, with_kernel(core, right))


def _lokr(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    outer, inner = _kronecker_factor(factors, "lokr_w1"), _kronecker_factor(factors, "lokr_w2")

    def rows(first: int, count: int, weight: Array) -> Array:
        at, within = np.divmod(np.arange(first, first + count), len(inner))
        return (outer[at][:, :, None] * inner[within][:, None, :]).reshape(count, -1)

    return rows


def _glora(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    a1, a2, b1, b2 = (_matrix(factors[name]) for name in ("a1", "a2", "b1", "b2"))
    if "bm" in factors:
        b2 = with_kernel(factors["bm"], b2)
    inputs = shape[1]

    def rows(first: int, count: int, weight: Array) -> Array:
        taps = np.moveaxis(weight.reshape(count, inputs, -1), 1, 2)  # [row, tap, input]
        turned = product(product(taps.reshape(-1, inputs), a1), a2).reshape(taps.shape)
        return np.moveaxis(turned, 2, 1).reshape(count, -1) + product(b1[first : first + count], b2)

    return rows


def _full(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    diff = factors["diff"].reshape(shape[0], -1)
    return lambda first, count, weight: diff[first : first + count]


def _ia3(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    vector = factors["weight"].reshape(-1)
    if module.on_input:
        each = np.repeat(vector, prod(shape[2:]))
        return lambda first, count, weight: weight * each
    return lambda first, count, weight: weight * vector[first : first + count, None]


def rotations(blocks: np.ndarray, limit: float) -> np.ndarray:
    """R = (I + Q)(I − Q)⁻¹ with Q = B − Bᵀ of float64 blocks [..., b, b]. A ``limit`` above 0 bounds the norm of all
    of Q together (OFT's constraint)."""
    skew = blocks - np.swapaxes(blocks, -1, -2)
    if limit > 0:
        norm = float(np.sqrt(np.sum(skew * skew))) + 1e-8
        skew = skew * (min(norm, limit) / norm)
    eye = np.eye(blocks.shape[-1])
    # X (I − Q) = I + Q, solved from the left for Xᵀ
    return np.swapaxes(np.linalg.solve(np.swapaxes(eye - skew, -1, -2), np.swapaxes(eye + skew, -1, -2)), -1, -2)


def _rotated(rotation: Array, weight: Array) -> Array:
    """Blocks of rows, each turned: ``Σⱼ rotation[n, i, j] · weight[n, j, :]``, added in the order of j."""
    total: Array = rotation[:, :, :1] * weight[:, :1]
    for j in range(1, rotation.shape[2]):
        total = total + rotation[:, :, j : j + 1] * weight[:, j : j + 1]
    return total


def _rescaled(factors: Factors, first: int, made: Array) -> Array:
    if "rescale" not in factors:
        return made
    return made * factors["rescale"].reshape(-1)[first : first + len(made), None]


def _oft(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    if "oft_diag" in factors:
        turn = factors["oft_diag"]
    else:
        turn = rotations(factors["oft_blocks"].astype(np.float64), module.constraint * shape[0])
        turn = turn.astype(factors["oft_blocks"].dtype)
    turn, size = np.swapaxes(turn, -1, -2), turn.shape[-1]

    def rows(first: int, count: int, weight: Array) -> Array:
        blocks = weight.reshape(count // size, size, -1)
        made = _rotated(turn[first // size : (first + count) // size], blocks)
        return _rescaled(factors, first, made.reshape(count, -1))

    return rows


def _boft(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    blocks = factors["oft_blocks"]
    turns = rotations(blocks.astype(np.float64), module.constraint * shape[0]).astype(blocks.dtype)
    size = blocks.shape[-1]

    def rows(first: int, count: int, weight: Array) -> Array:
        made = weight
        for level, turn in enumerate(turns):
            half = 2**level * size // 2
            mixed = np.swapaxes(made.reshape(-1, 2, half, weight.shape[1]), 1, 2).reshape(-1, size, weight.shape[1])
            turned = _rotated(turn, mixed).reshape(-1, half, 2, weight.shape[1])
            made = np.swapaxes(turned, 1, 2).reshape(weight.shape)
        return _rescaled(factors, first, made)

    return rows


def _set(factors: Factors, shape: tuple[int, ...], module: Module) -> Delta:
    given = factors["set_weight"].reshape(shape[0], -1)
    return lambda first, count, weight: given[first : first + count]


def _block_size(factors: Factors) -> int:
    return int(next(factors[name] for name in ("oft_diag", "oft_blocks") if name in factors).shape[-1])


_KINDS = {
    "lora": _Kind(_lora),
    "loha": _Kind(_loha),
    "lokr": _Kind(_lokr),
    "glora": _Kind(_glora),
    "full": _Kind(_full),
    "ia3": _Kind(_ia3),
    "oft": _Kind(_oft, additive=False, step=_block_size),
    "boft": _Kind(_boft, additive=False, whole=True),
    "set": _Kind(_set, additive=False),
}
