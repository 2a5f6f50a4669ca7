"""What other programs compute of adapters, in torch, after their descriptions: the rivals of adapters.py.

python bench/adapter_rivals.py kohya|comfyui MODEL ADAPTER OUT
python bench/adapter_rivals.py extract TUNED BASE OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sdsurgery.layouts import get
from sdsurgery.layouts.lora_names import LoraTarget, targets


def _targets(tensors: dict[str, Any]) -> Iterator[LoraTarget]:

    family = "sdxl-base" if any(name.startswith("conditioner.") for name in tensors) else "sd1"
    return (each for each in targets(get(family)) if each.row.ldm_key in tensors)


def baked(model: str, adapter: str, out: str, once: bool) -> None:
    """Every module's product in float32, added to the weight. ``once``: in a float32 copy, rounded at its end
    (ComfyUI); else the whole model is float32 from the start (kohya's --precision float), and cast when saved."""
    tensors, parts = load_file(model), load_file(adapter)
    kinds = {name: value.dtype for name, value in tensors.items()}
    if not once:
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    for target in _targets(tensors):
        down, up = (parts.get(f"{target.name}.lora_{part}.weight") for part in ("down", "up"))
        if down is None or up is None:
            continue
        weight = tensors[target.row.ldm_key]
        scale = 0.8 * float(parts[f"{target.name}.alpha"]) / len(down)
        product = torch.mm(up.flatten(1).float(), down.flatten(1).float()).reshape(weight.shape)
        tensors[target.row.ldm_key] = (weight.float() + scale * product).to(weight.dtype)
    save_file({name: value.to(kinds[name]).contiguous() for name, value in tensors.items()}, out)


def extracted(tuned: str, base: str, out: str, rank: int = 32) -> None:
    """The SVD of every layer's difference with full matrices; both factors clamped at the 0.99 quantile of their
    values."""
    after, before = load_file(tuned), load_file(base)
    parts = {}
    for target in _targets(after):
        if target.scope not in ("attn", "te"):
            continue
        delta = after[target.row.ldm_key].float() - before[target.row.ldm_key].float()
        u, s, vh = torch.linalg.svd(delta.flatten(1))
        u, vh = u[:, :rank] @ torch.diag(s[:rank]), vh[:rank]
        some = torch.cat([u.flatten(), vh.flatten()])
        high = some.kthvalue(int(0.99 * (some.numel() - 1)) + 1).values
        kernel = [1] * (delta.ndim - 2)
        parts[f"{target.name}.lora_up.weight"] = u.clamp(-high, high).reshape(len(u), rank, *kernel).half().contiguous()
        parts[f"{target.name}.lora_down.weight"] = (
            vh.clamp(-high, high).reshape(rank, *delta.shape[1:]).half().contiguous()
        )
        parts[f"{target.name}.alpha"] = torch.tensor(float(rank)).half()
    save_file(parts, out)


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    extracted(*paths) if what == "extract" else baked(*paths, once=what == "comfyui")
