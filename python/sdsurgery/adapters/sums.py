"""What modules of adapters add to a weight, as low-rank factors or whole, and their sum as one module.

Sums are of effects, never of factors: ``up₁ + up₂`` times ``down₁ + down₂`` has cross terms that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..definitions.effects import changed
from ..definitions.products import product, with_kernel
from ..errors import InputRefused, printable
from ..operands.modules import TRAITS
from . import keys
from .apply import as_operand
from .arrays import array, integers
from .kinds import OF_BIAS, Fitted, Kind
from .read import Adapter
from .svd import Factors, Rank, factored, of_product

Array = Any
Shape = tuple[int, ...]

ADDITIVE = frozenset(name for name, traits in TRAITS.items() if traits.difference and not traits.of_weight)
"""Formulas whose effect does not depend on the weight."""


class LowRank(NamedTuple):
    """``factor · up · down``, of [out, rank] and [rank, columns]."""

    factor: float
    up: Array
    down: Array


class Whole(NamedTuple):
    """``factor · values``."""

    factor: float
    values: Array


Term = LowRank | Whole


class Combined(NamedTuple):
    """A module of the output: factors with an alpha, or whole values. ``kept`` is the share of its norm."""

    up: Array | None
    down: Array | None
    alpha: float
    values: Array | None
    kept: float

    @property
    def rank(self) -> int:
        return 0 if self.down is None else len(self.down)


def shape_of(kind: Kind, shapes: dict[str, Shape]) -> Shape:
    """The weight's shape as far as a module's own parts show it (a kernel may lie flat within the inputs)."""
    if kind.formula == "lora" and keys.DOWN in shapes and keys.UP in shapes:
        down, core = shapes[keys.DOWN], shapes.get(keys.MID)
        return (shapes[keys.UP][0], down[1], *(core[2:] if core else down[2:]))
    if kind.formula == "loha":
        core = shapes.get("hada_t1")
        if core and "hada_w1_a" in shapes and "hada_w1_b" in shapes:
            return (shapes["hada_w1_a"][1], shapes["hada_w1_b"][1], *core[2:])
        if "hada_w1_a" in shapes and "hada_w1_b" in shapes:
            return (shapes["hada_w1_a"][0], prod(shapes["hada_w1_b"][1:]))
    if kind.formula == "lokr":
        outer, inner = (_factor_shape(shapes, name) for name in ("lokr_w1", "lokr_w2"))
        if outer and inner:
            return (outer[0] * inner[0], outer[1] * inner[1], *inner[2:])
    if kind.formula == "full":
        return next((shapes[part] for part in ("diff", "w_norm") if part in shapes), ())
    return ()


def _factor_shape(shapes: dict[str, Shape], name: str) -> Shape:
    if name in shapes:
        return shapes[name]
    left, right = shapes.get(f"{name}_a"), shapes.get(f"{name}_b")
    if left is None or right is None:
        return ()
    core = shapes.get("lokr_t2") if name == "lokr_w2" else None
    return (left[0], right[1]) if core is None else (left[1], right[1], *core[2:])


def is_additive(adapter: Adapter, module: str) -> bool:
    """Whether what the module adds to its weight does not depend on the weight."""
    kind = adapter.kind(module)
    decomposed = adapter.modules[module].keys() & {keys.MAGNITUDE, keys.MAGNITUDE_OUT}
    return not decomposed and (kind is None or kind.formula in ADDITIVE)


def term(adapter: Adapter, module: str, shape: Shape, strength: float) -> Term:
    """What the module adds at that strength to a weight of the shape. InputRefused for a kind that isn't additive."""
    kind = adapter.kind(module)
    assert kind is not None
    if kind.formula not in ADDITIVE:
        raise _not_additive(adapter, module, kind.title)
    fit = adapter.fit(kind, module, shape)
    parts = _factors(adapter, module, fit)
    made = _FACTORED.get(fit.kind, _none)(parts, shape)
    if made is not None:
        return LowRank(strength * adapter.scale(module, fit.rank), *made)
    zeros = np.zeros((shape[0], prod(shape[1:])), np.float32)
    return Whole(strength, changed(as_operand(adapter, module, fit, shape, 1.0), parts, zeros))


def _not_additive(adapter: Adapter, module: str, what: str) -> InputRefused:
    return InputRefused(
        f"{printable(adapter.path)}: module '{printable(module)}' is {what}, whose effect depends on the "
        "weight; bake it into the base model and extract an adapter from the result instead",
        code="unusable_tensor",
        tensor=module,
        path=adapter.path,
    )


def effect(adapter: Adapter, module: str, weight: Array) -> Whole:
    """What the module adds at strength 1 to a weight, of any kind; the weight is as the adapter knows it."""
    kind, flat = adapter.kind(module), weight.reshape(len(weight), -1)
    assert kind is not None
    fit = adapter.fit(kind, module, weight.shape)
    made = changed(as_operand(adapter, module, fit, weight.shape, 1.0), _factors(adapter, module, fit), flat)
    return Whole(1.0, made.astype(np.float64) - flat)


def bias_terms(adapter: Adapter, module: str, strength: float) -> list[tuple[str, Whole]]:
    """What the module adds to its bias, each with the part as which it is written."""
    parts, found = adapter.modules[module], []
    for part in (each for each in OF_BIAS if each in parts):
        if part == keys.SET_BIAS:
            raise _not_additive(adapter, module, "a whole bias")
        of_product = part == "up_bias"  # peft scales it as the product; the others are differences as they stand
        rank = adapter.shapes(module)[keys.DOWN][0] if of_product and keys.DOWN in parts else None
        factor = strength * adapter.scale(module, rank) if of_product else strength
        found.append(("diff_b" if of_product else part, Whole(factor, array(adapter.checkpoint, parts[part]))))
    return found


def _factors(adapter: Adapter, module: str, fit: Fitted) -> dict[str, Array]:
    infos = adapter.modules[module]
    found = {}
    for name, part, size in fit.factors:
        read = array if infos[part].dtype.kind == "float" else integers  # the places of sparse residuals
        found[name] = read(adapter.checkpoint, infos[part]).reshape(size)
    return found


def _none(parts: dict[str, Array], shape: Shape) -> tuple[Array, Array] | None:
    return None


def _lora(parts: dict[str, Array], shape: Shape) -> tuple[Array, Array] | None:
    if "bias" in parts or "bias_indices" in parts:
        return None
    down = with_kernel(parts["mid"], parts["down"]) if "mid" in parts else parts["down"]
    return parts["up"], down.reshape(len(down), -1)


def _loha(parts: dict[str, Array], shape: Shape) -> tuple[Array, Array] | None:
    """The Khatri–Rao products of both pairs: rank r², where that is below the layer's own."""
    pairs = []
    for number in (1, 2):
        left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        if f"hada_t{number}" in parts:
            left, right = left.T, with_kernel(parts[f"hada_t{number}"], right)
        pairs.append((left, right))
    (a1, b1), (a2, b2) = pairs
    if a1.shape[1] * a2.shape[1] >= min(shape[0], prod(shape[1:])):
        return None
    up = (a1[:, :, None] * a2[:, None, :]).reshape(len(a1), -1)
    return up, (b1[:, None, :] * b2[None, :, :]).reshape(-1, b1.shape[1])


def _lokr(parts: dict[str, Array], shape: Shape) -> tuple[Array, Array] | None:
    """``kron(w1, w2a) · kron(I, w2b)``: rank m·r, where that is below the layer's own."""
    if "lokr_w2_b" not in parts:
        return None
    outer = parts["lokr_w1"] if "lokr_w1" in parts else product(parts["lokr_w1_a"], parts["lokr_w1_b"])
    left, right = parts["lokr_w2_a"], parts["lokr_w2_b"]
    if "lokr_t2" in parts:
        left, right = left.T, with_kernel(parts["lokr_t2"], right)
    columns = outer.shape[1]
    if columns * len(right) >= min(shape[0], prod(shape[1:])):
        return None
    return np.kron(outer, left), np.kron(np.eye(columns, dtype=right.dtype), right)


_FACTORED = {"lora": _lora, "loha": _loha, "lokr": _lokr}


def combined(terms: Sequence[Term], rank: Rank | None) -> Combined | None:
    """The sum as one module: exact, the ranks adding up, or cut to a ``rank``. None of a sum that is zero.

    Exact: where all factors are equal they go into alpha, and the matrices stay as they are; else into up. One term
    that is cut keeps its factor as alpha/rank; several give alpha = rank.
    """
    low = [each for each in terms if isinstance(each, LowRank)]
    if len(low) < len(terms):
        total = sum(whole(each) for each in terms)
        if rank is None or np.ndim(total) < 2 or min(total.shape) < 2:  # type: ignore[arg-type]
            return Combined(None, None, 0.0, total, 1.0)
        return _cut(factored(total, rank), None)
    if rank is None:
        factors = {each.factor for each in low}
        ups = [each.up if len(factors) == 1 else np.float32(each.factor) * each.up for each in low]
        up, down = np.concatenate(ups, axis=1), np.concatenate([each.down for each in low])
        scale = factors.pop() if len(factors) == 1 else 1.0
        return Combined(up, down, scale * len(down), None, 1.0)
    single = low[0].factor if len(low) == 1 and low[0].factor else None
    ups = [each.up.astype(np.float64) * (1.0 if single else each.factor) for each in low]
    found = of_product(np.concatenate(ups, axis=1), np.concatenate([each.down for each in low]), rank)
    return _cut(found, single)


def whole(term: Term) -> Array:
    """All that the term adds, [rows, columns] or in the shape that it has, float64."""
    if isinstance(term, LowRank):
        return term.factor * (term.up.astype(np.float64) @ term.down.astype(np.float64))
    return term.factor * term.values.astype(np.float64)


def _cut(found: Factors | None, factor: float | None) -> Combined | None:
    if found is None:
        return None
    alpha = len(found.down) * (1.0 if factor is None else factor)
    return Combined(found.up, found.down, alpha, None, found.kept)
