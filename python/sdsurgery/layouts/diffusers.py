"""The same families in diffusers' names: a mapping by rule from the original names, and layouts made from it.

Sources: ``loaders/single_file_utils.py`` and ``scripts/convert_diffusers_to_original_*.py`` of huggingface/diffusers
58eb52c, ``models/dpt/convert_dpt_hybrid_to_pytorch.py`` of transformers 4.30.2. A diffusers checkpoint is a folder with
one file per component, so (component, key) is unique, but the key isn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

from ..structure import flat
from . import names
from .base import REGISTRY, Diffusers, Layout, LayoutTensor, Part, register
from .detect import Match, Probe
from .shapes import Row, Shape

_FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "depth": "depth_estimator",
}
"""Component to subfolder, in the order of the reference tables."""


_CROSS_ATTENTION = "attentions.0.transformer_blocks.0.attn2.to_k.weight"
_EVIDENCE = {
    "unet": (
        "conv_in.weight",
        f"down_blocks.0.{_CROSS_ATTENTION}",
        f"down_blocks.1.{_CROSS_ATTENTION}",
        "add_embedding.linear_1.weight",
        "class_embedding.weight",
    ),
    "vae": ("decoder.conv_in.weight",),
    "text_encoder": ("text_model.final_layer_norm.weight",),
    "text_encoder_2": ("text_model.final_layer_norm.weight",),
    "depth_estimator": (),
}
"""Per folder, the names of the tensors whose shapes show what the module is."""


class MapRow(NamedTuple):
    """One original tensor and its counterpart.

    ``component`` and ``key`` are None for ``drop``. ``transform`` is ``none``, ``squeeze_conv1x1`` ([o,i,1,1] to
    [o,i]), ``split_qkv:0``, ``:1``, ``:2`` (a third of the rows), ``transpose`` or ``drop``.
    """

    ldm_key: str
    component: str | None
    key: str | None
    transform: str


@cache
def mapping(layout: Layout) -> tuple[MapRow, ...]:
    """Every tensor of ``layout`` (original names) with its diffusers counterparts, in module order of the original.

    Raises ValueError when the layout's tensors are not known. unCLIP's image encoder and normaliser have no mapping.
    """
    return tuple(row for tensor in layout.tensors() for row in _map(layout, tensor))


def renames(layout: Layout, component: str) -> dict[str, str]:
    """Diffusers key to original key of one component, wherever no values have to be rearranged."""
    kept = ("none", "squeeze_conv1x1")
    rows = (row for row in mapping(layout) if row.component == component and row.transform in kept)
    return {row.key: row.ldm_key for row in rows if row.key}


def _map(layout: Layout, tensor: LayoutTensor) -> Iterator[MapRow]:
    from .diffusers_names import depth_key, openclip_keys, unet_key, vae_key

    key = tensor.key
    if tensor.component == "unet":
        yield MapRow(key, "unet", unet_key(key[len(names.UNET) :], class_label=_form(layout).class_label), "none")
    elif tensor.component == "vae":
        renamed, attention = vae_key(key.removeprefix(names.VAE), levels=_levels(layout))
        yield MapRow(key, "vae", renamed, "squeeze_conv1x1" if attention and key.endswith(".weight") else "none")
    elif tensor.component == "depth":
        for name, transform in depth_key(key.removeprefix("depth_model.model.")):
            yield MapRow(key, "depth_estimator" if name else None, name, transform)
    elif ".transformer.text_model." in key:
        yield MapRow(key, tensor.component, key.partition(".transformer.")[2], "none")
    elif tensor.component in ("text_encoder", "text_encoder_2"):
        penultimate = tensor.component == "text_encoder"  # SD 2 stops one layer early, SDXL projects
        for name, transform in openclip_keys(key.partition(".model.")[2], penultimate):
            yield MapRow(key, tensor.component if name else None, name, transform)
    else:
        yield MapRow(key, None, None, "drop")


def _form(layout: Layout) -> Diffusers:
    return layout.diffusers or Diffusers()


@cache
def _levels(layout: Layout) -> int:
    stem = "encoder.down."
    keys = (tensor.key.removeprefix(names.VAE) for tensor in layout.tensors())
    return 1 + max(int(key[len(stem)]) for key in keys if key.startswith(stem))


def _component_rows(layout: Layout, component: str) -> Iterator[Row]:
    from .clip import POSITION_IDS, TOKENS
    from .diffusers_names import module_order

    shapes = {tensor.key: tensor.shape for tensor in layout.tensors()}
    rows: list[Row] = []
    for row in mapping(layout):
        if row.component == component and row.key:
            rows.append((row.key, transformed(shapes[row.ldm_key], row.transform)))
    rows = [row for row in rows if row[0] != POSITION_IDS]
    if component == "text_encoder" and _form(layout).position_ids:
        rows.append((POSITION_IDS, (1, TOKENS)))
    return iter(sorted(rows, key=lambda row: module_order(component, row[0])))


def transformed(shape: Shape, transform: str) -> Shape:
    """Shape of an original tensor after ``transform``."""
    if transform == "squeeze_conv1x1":
        return shape[:2]
    if transform.startswith("split_qkv"):
        return (shape[0] // 3, *shape[1:])
    return tuple(reversed(shape)) if transform == "transpose" else shape


def _sniff_unet(source: Layout, layout: Layout, probe: Probe) -> Match | None:
    """A U-Net whose identifying tensors, under their diffusers names, have the shapes of ``source``."""
    if "conv_in.weight" not in probe.tensors or source.network is None:
        return None
    from .diffusers_names import unet_key

    found = None
    for key, shape in source.network.discriminators().items():
        renamed = unet_key(key, class_label=_form(source).class_label)
        if probe.shape(renamed) != shape:
            return None
        found = found or Match(renamed, shape)
    return found


def _sniff_vae(source: Layout, layout: Layout, probe: Probe) -> Match | None:
    """A 4-channel decoder in diffusers names; a fourth stage makes it f8."""
    anchor = "decoder.conv_in.weight"
    if probe.shape(anchor) != (512, 4, 3, 3) or probe.shape("decoder.mid_block.resnets.0.norm1.weight") is None:
        return None
    fourth = [f"{half}_blocks.3.resnets.0.norm1.weight" for half in ("encoder.down", "decoder.up")]
    deep = next((key for key in fourth if probe.shape(key)), None)
    if (deep is not None) != (_levels(source) == 4):
        return None
    key = deep or anchor
    return Match(key, probe.shape(key) or ())


def _layout(source: Layout, sniff: Callable[[Layout, Probe], Match | None]) -> Layout:
    found = {_FOLDERS[part.component] for part in source.parts if part.component in _FOLDERS}
    folders = [folder for folder in _FOLDERS.values() if folder in found]
    return register(
        Layout(
            f"{source.name}-diffusers",
            f"{source.title} in diffusers names",
            source.architecture,
            tuple(Part(folder, "", partial(_component_rows, source, folder), _EVIDENCE[folder]) for folder in folders),
            source.network,
            variant_of=source.variant_of and f"{source.variant_of}-diffusers",
            vae_block=source.vae_block,
            sniff=sniff,
            prediction=source.prediction,
            implementation="diffusers",
            original=source,
            arranged=flat,
            task=source.task,
        )
    )


def register_all() -> None:
    """Add the form in diffusers' names of every family that has one."""
    for source in tuple(REGISTRY):
        if source.diffusers is not None and source.diffusers.whole:
            _layout(source, partial(_sniff_unet if source.network else _sniff_vae, source))
