"""Models for unmix: a base, and fine-tunes of it that differ from it by a share of its norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sdsurgery as sds
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


QUICK: dict[str, Any] = {"overwrite": True, "sync": False, "hash": False}
SHARES = {"a": 0.05, "b": 0.1, "c": 0.03, "d": 0.15, "e": 0.01, "f": 0.07, "g": 0.12}
"""By how much each fine-tune differs from the base."""


def a_family(folder: Path, without: Sequence[str] = ()) -> dict[str, Path]:
    """A base and its fine-tunes, by their letters."""
    base = base_of(folder, without=without)
    made = {name: tuned(base, name, share, seed) for seed, (name, share) in enumerate(SHARES.items())}
    return {"base": base, **made}


def mixed(models: dict[str, Path], names: str, method: str, **parameters: Any) -> Path:
    """A merge of models by their letters; ``name`` is that of the file."""
    out = models["base"].with_name(f"{parameters.pop('name', 'mix')}.safetensors")
    sds.merge(method, [models[name] for name in names.split()], out=out, **QUICK, **parameters)
    return out


def ratios(found: sds.Unmixing) -> dict[str, float]:
    return {Path(path).stem: ratio for path, ratio in found.ratios.items()}


def pick(models: dict[str, Path], names: str) -> list[Path]:
    return [models[name] for name in names.split()]
