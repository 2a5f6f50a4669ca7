"""Models for unmix: a base, and fine-tunes of it that differ from it by a share of its norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sdsurgery.testing import write_checkpoint

Tensors = dict[str, np.ndarray]


def base_of(folder: Path, family: str = "sd1") -> Path:
    """A tiny model of the family, fp16, without the text encoder's large table of tokens."""
    path = folder / "base.safetensors"
    write_checkpoint(path, family, size="tiny", dtype="fp16", seed=5)
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
