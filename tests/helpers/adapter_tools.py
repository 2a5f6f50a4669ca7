"""Adapters for tests: files written from NumPy arrays, and what they must do, spelled out in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import sdsurgery
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]

SD1_KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
SD1_KEY_NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
SD1_CONV = "model.diffusion_model.input_blocks.4.0.in_layers.2.weight"
SD1_CONV_NAME = "lora_unet_down_blocks_1_resnets_0_conv1"
SD1_QUERY = "cond_stage_model.transformer.text_model.encoder.layers.3.self_attn.q_proj.weight"
SD1_QUERY_NAME = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
SD1 = {SD1_KEY_NAME: SD1_KEY, SD1_CONV_NAME: SD1_CONV, SD1_QUERY_NAME: SD1_QUERY}
"""Modules in kohya's names, and the tensors that they change."""


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    with sdsurgery.open(path) as checkpoint:
        return {name: info.shape for name, info in checkpoint.tensors.items()}


def lora(
    name: str, shape: tuple[int, ...], *, rank: int = 4, alpha: float | None = 2.0, seed: int = 0, size: float = 0.1,
    dtype: type = np.float16, transposed: bool = False,
) -> Arrays:  # fmt: skip
    """A module for a weight of that shape, in kohya's suffixes."""
    random = np.random.default_rng(seed)
    out, inputs, *kernel = reversed(shape) if transposed else shape
    parts = {
        f"{name}.lora_down.weight": random.normal(size=(rank, inputs, *kernel)) * size,
        f"{name}.lora_up.weight": random.normal(size=(out, rank, *[1] * len(kernel))) * size,
    }
    parts = {key: value.astype(dtype) for key, value in parts.items()}
    return parts if alpha is None else parts | {f"{name}.alpha": np.array(alpha, dtype)}


def delta(parts: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """alpha/rank · up · down of a plain module, in float64."""
    down, up = (parts[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
    alpha = float(parts.get(f"{name}.alpha", np.array(len(down))))  # none: a scale of 1
    made = up.reshape(len(up), -1) @ down.reshape(len(down), -1) * (alpha / len(down))
    return made.reshape(len(up), *down.shape[1:])


def written(path: Path, parts: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.copy(order="C") for name, value in parts.items()}, path, metadata)
    return path


def loaded(path: Path) -> Arrays:
    found: Arrays = load_file(path)
    return found


def rounded_once(found: np.ndarray, exact: np.ndarray) -> None:
    """The values are those of float64 rounded once, but for at most 0.5 % that are one unit in the last place off."""
    expected = exact.astype(found.dtype)
    wrong = found != expected
    assert wrong.mean() <= 0.005
    assert np.all(
        np.abs(found[wrong].astype(np.float64) - expected[wrong]) <= np.abs(np.spacing(expected[wrong])) * 1.01
    )
