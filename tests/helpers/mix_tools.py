"""Models for unmix: a base, and fine-tunes of it that differ from it by a share of its norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sdsurgery.testing import write_checkpoint

Tensors = dict[str, np.ndarray]
SPARED = ["k_proj", "v_proj", "out_proj", "conv2", "to_v", "attn1.to_k", "to_out", "attn2.to_q", ".ff.", "proj_in"]
SPARED += ["emb_layers", "in_layers.2.w", "bias"]
"""In the names of two thirds of a model's tensors, of which every block has others."""


def base_of(folder: Path, family: str = "sd1", without: Sequence[str] = ()) -> Path:
    """A tiny model of the family, fp16, without the tensors that have one of these words in their names."""
    path = folder / "base.safetensors"
    write_checkpoint(
        path, family, size="tiny", dtype="fp16", seed=5, keep=lambda row: not any(word in row.key for word in without)
    )
    return path


def tuned(base: Path, name: str, share: float, seed: int, only: Sequence[str] = ()) -> Path:
    """The base with independent normal changes of ``share`` of each tensor's norm; ``only``: below these prefixes."""
    rng = np.random.default_rng(seed)
    found = load_file(base)
    for key, tensor in found.items():
        if tensor.dtype != np.float16 or (only and not key.startswith(tuple(only))):
            continue
        size = float(np.sqrt(np.mean(tensor.astype(np.float64) ** 2)))
        change = rng.normal(size=tensor.shape).astype(np.float32) * np.float32(share * size)
        found[key] = np.asarray(tensor.astype(np.float32) + change, np.float16)
    path = base.with_name(f"{name}.safetensors")
    save_file(found, path)
    return path
