"""What kohya's LoRA module names stand for: each with the checkpoint tensor that its delta is added to.

Source: kohya-ss/sd-scripts 48d368f ``networks/lora.py``, ``library/sdxl_model_util.py``. A name is a prefix and a
module path with its dots turned into underscores, which can't be undone by parsing, only by lookup. The paths are those
of diffusers or the original ones (:class:`Adapters`; then with the diffusers form in use too, as an alias).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from . import names
from .base import Layout
from .diffusers import MapRow, mapping, transformed
from .shapes import Shape


class LoraTarget(NamedTuple):
    """``scope`` is ``attn`` (the default), ``conv`` (added by LoCon), ``te`` or ``extra`` (LyCORIS "full").

    ``shape`` is that of the target weight in diffusers form; with a ``split_qkv`` transform the delta belongs to that
    third of the original tensor's rows.
    """

    name: str
    alias: str | None
    scope: str
    row: MapRow
    shape: Shape
    block: str | None


@cache
def targets(layout: Layout) -> tuple[LoraTarget, ...]:
    """Every module that a LoRA for ``layout`` can attach to. ValueError when its tensors or its names are not known."""
    return tuple(_targets(layout))


def _targets(layout: Layout) -> Iterator[LoraTarget]:
    made = layout.adapters
    if made is None:
        raise ValueError(f"the names of adapters for the family '{layout.name}' are not known")
    tensors = {tensor.key: tensor for tensor in layout.tensors()}
    for row in mapping(layout):
        tensor = tensors[row.ldm_key]
        scope = _scope(tensor.component, row)
        if scope is None or row.key is None:
            continue
        path = row.key.removesuffix(".weight")
        alias = None
        if scope != "te":
            original = row.ldm_key[len(names.UNET) : -len(".weight")]
            alias = _name("lora_unet_", path) if made.original_paths else None
            name = _name("lora_unet_", original if made.original_paths else path)
        else:
            name = _name(made.text_encoders[tensor.component], path)
        shape = transformed(tensor.shape, row.transform)
        yield LoraTarget(name, alias, scope, row, shape, tensor.block)


def _name(prefix: str, path: str) -> str:
    return prefix + path.replace(".", "_")


def _scope(component: str, row: MapRow) -> str | None:
    """None for anything but a linear or convolution weight of the U-Net or a text encoder's layers."""
    if row.key is None or not row.key.endswith(".weight"):
        return None
    module = row.key.removesuffix(".weight").rpartition(".")[2]
    if component in ("text_encoder", "text_encoder_2"):
        return "te" if module.endswith("_proj") or module in ("fc1", "fc2") else None
    if component != "unet" or "norm" in module or row.ldm_key.endswith("label_emb.weight"):
        return None
    if ".attentions." in row.key:
        return "attn"
    return "conv" if "_block" in row.key else "extra"
