"""What an adapter's module makes of a weight, by definition: NumPy arrays, in the order that every backend follows.

A module changes W, read as ``out × columns`` (a convolution's columns are its input channels and kernel, flattened), to
``W + s·(W₁ − W)``, where s is the strength and W₁ the weight that it was trained to make. All of it is float32; every
operation is rounded on its own, nothing is fused. docs/numerics.md has the rules: the additive kinds give ``W + n·Δ``
with ``n = s·alpha/rank`` from float64; norms are the ordered sums of ``reductions.py``. ``operands/modules.py`` says
the same as formulas of a job.

Formulas: KohakuBlueleaf/LyCORIS 4.1.3 ``lycoris/functional`` (LoHa, LoKr, GLoRA, (IA)³, OFT, BOFT), kohya-ss/sd-scripts
48d368f ``networks/{lora,oft}.py``, peft 0.21 ``tuners/lora/dora.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from ..operands.modules import NEAR_ZERO, TRAITS, Module
from .mixing import through, turned
from .products import product, scattered, with_kernel
from .reductions import reduced_rows

Array = Any  # a NumPy array, float32
Factors = Mapping[str, Array]


def changed(module: Module, factors: Factors, weight: Array) -> Array:
    """The weight [rows, columns] after the module."""
    if module.transposed:
        return _changed(module, factors, np.ascontiguousarray(weight.T)).T
    if module.channels:
        made, columns = weight.copy(), prod(module.seen[1:])
        made[:, :columns] = _changed(module, factors, weight[:, :columns])
        return made
    return _changed(module, factors, weight)


def _changed(module: Module, factors: Factors, weight: Array) -> Array:
    kind = TRAITS[module.kind]
    with np.errstate(all="ignore"):
        made = _MADE[module.kind](factors, weight, module)
        if module.kind == "set":
            return made
        decomposed = factors.keys() & {"dora_in", "dora_out"}
        if kind.difference and not decomposed:
            return weight + np.float32(module.strength * module.scale) * made
        if kind.difference:
            made = weight + np.float32(module.scale) * made
        if decomposed:
            made = _renormed(factors, made, module.seen)
        return weight + np.float32(module.strength) * (made - weight)


def _renormed(factors: Factors, weight: Array, shape: tuple[int, ...]) -> Array:
    """Rows or columns of the trained length (DoRA)."""
    if "dora_out" in factors:
        return weight * (factors["dora_out"].reshape(-1) / _lengths(weight))[:, None]
    inputs = shape[1]
    each = weight.reshape(len(weight), inputs, -1)
    lengths = _lengths(np.moveaxis(each, 1, 0).reshape(inputs, -1))
    return (each * (factors["dora_in"].reshape(-1) / lengths)[:, None]).reshape(weight.shape)


def _lengths(lines: Array) -> Array:
    wide = lines.astype(np.float64)
    return (np.sqrt(reduced_rows("dot", wide, wide)) + NEAR_ZERO).astype(np.float32)


def _matrix(factor: Array) -> Array:
    return factor.reshape(len(factor), -1)


def _lora(factors: Factors, weight: Array, module: Module) -> Array:
    up, down = _matrix(factors["up"]), _matrix(factors["down"])
    if "mid" in factors:
        down = with_kernel(factors["mid"], down)
    made = product(up, down)
    if "bias" in factors:
        made = made + factors["bias"].reshape(weight.shape)
    if "bias_indices" in factors:
        places = factors["bias_indices"].reshape(2, -1)
        made = made + scattered(places, factors["bias_values"], weight.shape)
    return made


def _loha(factors: Factors, weight: Array, module: Module) -> Array:
    pair = []
    for number in (1, 2):
        left, right = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
        core = factors.get(f"hada_t{number}")
        pair.append(product(left, right) if core is None else product(left.T, with_kernel(core, right)))
    return pair[0] * pair[1]


def _lokr(factors: Factors, weight: Array, module: Module) -> Array:
    return np.kron(_kronecker_factor(factors, "lokr_w1"), _kronecker_factor(factors, "lokr_w2"))


def _kronecker_factor(factors: Factors, name: str) -> Array:
    if name in factors:
        return _matrix(factors[name])
    left, right = factors[f"{name}_a"], factors[f"{name}_b"]
    core = factors.get(name.replace("w2", "t2")) if name.endswith("w2") else None
    return product(left, _matrix(right)) if core is None else product(left.T, with_kernel(core, right))


def _glora(factors: Factors, weight: Array, module: Module) -> Array:
    a1, a2, b1, b2 = (_matrix(factors[name]) for name in ("a1", "a2", "b1", "b2"))
    if "bm" in factors:
        b2 = with_kernel(factors["bm"], b2)
    return through(weight, a1, a2, prod(module.seen[2:])) + product(b1, b2)


def _full(factors: Factors, weight: Array, module: Module) -> Array:
    return factors["diff"].reshape(weight.shape)


def _ia3(factors: Factors, weight: Array, module: Module) -> Array:
    vector = factors["weight"].reshape(-1)
    return weight * (np.repeat(vector, prod(module.seen[2:])) if module.on_input else vector[:, None])


def _oft(factors: Factors, weight: Array, module: Module) -> Array:
    kind, part = ("given", "oft_diag") if "oft_diag" in factors else ("rotation", "oft_blocks")
    return _rescaled(factors, turned(kind, factors[part], weight, module.limit))


def _boft(factors: Factors, weight: Array, module: Module) -> Array:
    blocks = factors["oft_blocks"]
    return _rescaled(factors, turned("butterfly", blocks.reshape(-1, *blocks.shape[-2:]), weight, module.limit))


def _rescaled(factors: Factors, made: Array) -> Array:
    return made * factors["rescale"].reshape(-1, 1) if "rescale" in factors else made


def _set(factors: Factors, weight: Array, module: Module) -> Array:
    return factors["set_weight"].reshape(weight.shape)


_MADE: dict[str, Callable[[Factors, Array, Module], Array]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "full": _full,
    "ia3": _ia3,
    "oft": _oft,
    "boft": _boft,
    "set": _set,
}
