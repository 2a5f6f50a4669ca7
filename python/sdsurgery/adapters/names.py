"""Which tensors of a checkpoint a module's name stands for, in every dialect of adapters.

A name is a prefix, which says whose module it is, and the module's path: diffusers' or the original one, with dots or
with underscores in their place. Underscores can't be undone by parsing, so names are looked up, in tables that follow
from the family's own (``layouts/diffusers.py``). Sources: kohya-ss/sd-scripts 48d368f ``networks/lora.py``, ComfyUI
a125cd8 ``comfy/lora.py``, diffusers 0.42 ``loaders/lora_conversion_utils.py``, KohakuBlueleaf/LyCORIS f49d30d.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ..layouts import names
from ..layouts.base import Layout
from ..layouts.diffusers import mapping

UNET, FIRST, SECOND = "unet", "text_encoder", "text_encoder_2"
COMPONENTS = (UNET, FIRST, SECOND)


class Slot(NamedTuple):
    """A tensor under its original name, and how the module's own weight lies in it: ``none``, ``split_qkv:0`` (the
    first third of the rows, and so on) or ``transpose``. ``diffusers`` is its name in that component's file there."""

    key: str
    transform: str
    diffusers: str


class Place(NamedTuple):
    """A module of a checkpoint. ``path`` is its name in diffusers, ``original`` the U-Net's original one."""

    component: str
    path: str
    original: str
    block: str | None
    weight: Slot | None = None
    bias: Slot | None = None


class _Prefix(NamedTuple):
    """What a beginning of names says: the dialect, the components that it may be of, and the spelling of the rest."""

    text: str
    dialect: str
    components: tuple[str, ...]
    dotted: bool
    original: bool = False  # whether the U-Net's paths are the original ones only


_PREFIXES = (
    _Prefix("lora_unet_", "kohya", (UNET,), False),  # with paths of either kind
    _Prefix("oft_unet_", "kohya", (UNET,), False),
    _Prefix("lora_te_", "kohya", (FIRST,), False),
    _Prefix("lora_te1_", "kohya", (FIRST,), False),
    _Prefix("lora_te2_", "kohya", (SECOND,), False),
    _Prefix("lycoris_", "LyCORIS", COMPONENTS, False),
    _Prefix("unet.base_model.model.", "peft", (UNET,), True),
    _Prefix("unet.", "diffusers", (UNET,), True),
    _Prefix("text_encoder.base_model.model.", "peft", (FIRST,), True),
    _Prefix("text_encoder.", "diffusers", (FIRST,), True),
    _Prefix("text_encoder_2.base_model.model.", "peft", (SECOND,), True),
    _Prefix("text_encoder_2.", "diffusers", (SECOND,), True),
    _Prefix("base_model.model.", "peft", COMPONENTS, True),
    _Prefix("diffusion_model.", "ComfyUI", (UNET,), True, original=True),
    _Prefix(names.UNET, "ComfyUI", (UNET,), True, original=True),
    _Prefix("text_encoders.clip_l.transformer.", "ComfyUI", (FIRST,), True),
    _Prefix("text_encoders.clip_h.transformer.", "ComfyUI", (FIRST,), True),
    _Prefix("text_encoders.clip_g.transformer.", "ComfyUI", (SECOND,), True),
    _Prefix("", "bare", COMPONENTS, True),  # of diffusers in 2023
)


def dialect_of(module: str) -> str:
    """The dialect of a module's name, by its beginning."""
    return next(prefix.dialect for prefix in _PREFIXES if module.startswith(prefix.text))


def find(layout: Layout, module: str) -> tuple[Place, ...]:
    """The places that a module's name may stand for. Several only where it doesn't say which text encoder it is of
    (raw peft names); none for a name that the family has no module for. ValueError when the family's tensors are not
    known."""
    found = []
    for prefix in _PREFIXES:
        if not module.startswith(prefix.text):
            continue
        for component in prefix.components:
            table = _table(layout, component, prefix.dotted, prefix.original)
            place = table.get(module[len(prefix.text) :])
            if place is not None and place not in found:
                found.append(place)
        if found:
            break
    return tuple(found)


def component_of(module: str) -> str | None:
    """The component that a module's prefix names, None when it leaves that open."""
    for prefix in _PREFIXES:
        if prefix.text and module.startswith(prefix.text):
            return prefix.components[0] if len(prefix.components) == 1 else None
    return None


@cache
def places(layout: Layout) -> tuple[Place, ...]:
    """Every module of the family's U-Net and text encoders that has weights, in module order. ValueError when its
    tensors are not known."""
    layout = layout.original or layout
    blocks = {tensor.key: tensor.block for tensor in layout.tensors()}
    found: dict[tuple[str, str], Place] = {}
    for row in mapping(layout):
        if row.component not in COMPONENTS or not row.key:
            continue
        path, _, kind = row.key.rpartition(".")
        if kind not in ("weight", "bias"):
            continue
        original = row.ldm_key[len(names.UNET) :].rpartition(".")[0] if row.component == UNET else ""
        new = Place(row.component, path, original, blocks[row.ldm_key])
        place, slot = found.get((row.component, path), new), Slot(row.ldm_key, row.transform, row.key)
        found[row.component, path] = place._replace(weight=slot) if kind == "weight" else place._replace(bias=slot)
    return tuple(found.values())


@cache
def _table(layout: Layout, component: str, dotted: bool, original: bool) -> dict[str, Place]:
    table: dict[str, Place] = {}
    for place in places(layout):
        if place.component != component:
            continue
        paths = [place.original] if original else [place.path]
        if not dotted and place.original:
            paths.append(place.original)
        if component != UNET:
            paths.append(place.path.removeprefix("text_model."))  # as transformers names them since 5.6
        for path in paths:
            table.setdefault(path if dotted else path.replace(".", "_"), place)
    return table
