"""Every golden value of the reference, through the kinds and their formulas."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_golden as golden
import numpy as np
import pytest
from sdsurgery.adapters import keys, kinds
from sdsurgery.definitions.effects import changed
from sdsurgery.operands.modules import Module

Effect = Callable[[np.ndarray], np.ndarray]


def effects(
    parts: dict[str, tuple[str, np.ndarray]], shape: tuple[int, ...], strength: float, peft: dict[str, Any]
) -> tuple[Effect | None, np.ndarray | None]:
    """What a module does to a weight of that shape, and what it adds to the bias."""
    values = {}
    for suffix, (_, value) in parts.items():
        key = keys.split(f"module.{suffix}")
        assert key is not None
        values[key.part] = value
    shapes = {part: value.shape for part, value in values.items()}
    kind = kinds.kind_of("module", shapes)
    alpha = values.get("alpha", peft.get("lora_alpha"))
    alpha = (
        None if alpha is None else float(np.asarray(alpha, np.float64).reshape(()) if np.ndim(alpha) == 0 else alpha[0])
    )
    scale = 1.0
    effect = None
    if kind is not None:
        channels = 4 if shape[1:2] == (9,) else 0
        fit = kinds.fitted(kind, "module", shapes, (shape[0], 4, *shape[2:]) if channels else shape)
        if alpha is not None and fit.rank is not None:
            scale = alpha / (fit.rank**0.5 if peft.get("use_rslora") == "True" else fit.rank)
        module = Module(
            fit.kind, shape, strength, tuple((name, at, size) for at, (name, _, size) in enumerate(fit.factors)), scale,
            constraint=alpha or 0.0, channels=channels, on_input=bool(values.get("on_input", 0)),
        )  # fmt: skip
        factors = {name: values[part].astype(np.float32).reshape(size) for name, part, size in fit.factors}
        effect = functools.partial(changed, module, factors)
    bias = next((values[part] for part in kinds.OF_BIAS if part in values), None)
    if bias is not None:
        bias = np.float32(strength * (scale if "up_bias" in values else 1)) * bias.astype(np.float32)
    return effect, bias


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float64)
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def test_every_canonical_value_within_its_tolerance(adapters: Path) -> None:
    count = 0
    for case in golden.cases(adapters / "golden"):
        shape = case.weight.shape
        weight = case.weight.astype(np.float32).reshape(shape[0], -1)
        bias = None if case.bias is None else case.bias.astype(np.float32)
        for strength, parts in case.adapters:
            effect, added = effects(parts, shape, strength, case.peft)
            if effect is not None:
                weight = effect(weight)
            bias = bias if added is None or bias is None else bias + added
        close(stored(weight.reshape(shape), case.dtype), case.expected, case.tolerance, case.name)
        if case.expected_bias is not None:
            assert bias is not None
            close(stored(bias, case.dtype), case.expected_bias, case.tolerance, case.name)
        count += 1
    assert count >= 150


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), name


def test_thirds_of_a_fused_projection(adapters: Path) -> None:
    held = golden.tensors(adapters / "golden" / "qkv.safetensors")
    fused = held["qkv/W"][1]
    for name, parts, thirds in (("", ("dora_scale",), "qkv"), (".dora", (), "qkv"), (".v_only", ("dora_scale",), "v")):
        found = fused.copy()
        for at, third in enumerate("qkv"):
            prefix = f"qkv/in.{third}_proj/"
            given = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
            effect, _ = effects({key: value for key, value in given.items() if key not in parts}, (12, 12), 0.6, {})
            if third in thirds and effect is not None:
                found[12 * at : 12 * at + 12] = effect(fused[12 * at : 12 * at + 12])
        close(found.astype(np.float64), held[f"qkv/s=0.6/canonical64{name}"][1], 3e-6, name)
        if thirds == "v":
            assert np.array_equal(found[:24], fused[:24])


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_a_product_is_summed_over_the_rank_in_its_order(rank: int) -> None:
    from sdsurgery.definitions.products import product

    random = np.random.default_rng(rank)
    up, down = random.normal(size=(3, rank)).astype("f4"), random.normal(size=(rank, 5)).astype("f4")
    found = product(up, down)
    for i in range(3):
        for j in range(5):
            total = np.float32(up[i, 0] * down[0, j])
            for k in range(1, rank):
                total = np.float32(total + np.float32(up[i, k] * down[k, j]))
            assert found[i, j] == total
