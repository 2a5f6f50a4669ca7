"""Old and foreign names for tensors of the known families, and what they are called here.

Only renames: nothing here rearranges values. Sources: ComfyUI ``comfy/utils.py`` and ``diffusers_convert.py``,
sd-mecha's model configurations, huggingface/diffusers ``loaders/single_file_utils.py`` (see docs/layouts.md).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

from ..errors import printable
from . import names

if TYPE_CHECKING:
    from .base import Layout, Part
    from .diffusers import MapRow

_CLIP_PLACES = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
CLIP_HEADS = ("embeddings.", "encoder.", "final_layer_norm.")
_BARE_UNET = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
_BARE_EMA = tuple(stem.rstrip(".") for stem in _BARE_UNET)
_VAE_HEADS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_SIDE_VAE = "vae."
_VAE_PLACES = (*_VAE_HEADS, names.VAE, _SIDE_VAE)
_DIFFUSERS_UNET = (
    "down_blocks.",
    "up_blocks.",
    "mid_block.",
    "time_embedding.",
    "add_embedding.",
    "class_embedding.",
    "conv_",
)

# The attention of the VAE was called so in diffusers before its attention classes were unified.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# And careless converters carry diffusers' names over into the original layout.
_LDM_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_LDM_ATTENTION |= {old: _LDM_ATTENTION[new] for old, new in _OLD_ATTENTION.items()}


def canonical(key: str, layout: Layout) -> str:
    """The name under which ``layout`` lists the tensor that a file calls ``key``; ``key`` itself when it has no other.

    Understood: ``state_dict.``, ``module.`` and ``model.`` wrappers, bare U-Net and VAE names, CLIP-L without
    ``text_model.``, SD 2's encoder in sgm's place, old and diffusers names of the VAE, diffusers names of the U-Net,
    EMA names of a bare U-Net. Shapes may still differ: VAE attention weights are [o,i] or [o,i,1,1].
    """
    key = layout.unwrap(key)
    if layout.original is not None:
        return _attention(key, ".mid_block.attentions.0.", _OLD_ATTENTION)
    if key.startswith(names.UNET):  # most of a checkpoint
        return key
    if key.startswith(_CLIP_PLACES):
        return _clip(key)
    for place, own in layout.other_places:
        if key.startswith(place):
            return own + key[len(place) :]
    if key.startswith(names.EMA):
        bare = key[len(names.EMA) :]
        return f"{names.EMA}diffusion_model{bare}" if bare.startswith(_BARE_EMA) and layout.has_ema else key
    if key.startswith(_VAE_PLACES):
        return _vae(key, layout) if names.component(key) == "vae" else key
    side = _side_by_side(key, layout)
    return _unet(key, layout) if side is None else side


def _side_by_side(key: str, layout: Layout) -> str | None:
    """The family's name of a text encoder's tensor that stands in another place, or in transformers' names where the
    family has OpenCLIP's; None for any other key. Parts of OpenCLIP's attention have no name of their own there."""
    place = _encoder_place(key, layout)
    if place is None:
        return None
    part, inner = place
    if part.position_ids is not None:  # in transformers' names itself
        return part.prefix + (f"text_model.{inner}" if inner.startswith(CLIP_HEADS) else inner)
    if inner.startswith("text_projection"):
        return f"{part.prefix}model.{inner}"
    row = _encoder_rows(layout, part.component).get(inner)
    return row.ldm_key if row is not None and row.transform == "none" else key


def joined(key: str, layout: Layout) -> tuple[str, int] | None:
    """(name, third) of the family's tensor of which a file's ``key`` is a third of the rows: q, k or v of OpenCLIP's
    attention, which transformers keeps apart. None for any other key."""
    place = _encoder_place(layout.unwrap(key), layout)
    row = None if place is None else _encoder_rows(layout, place[0].component).get(place[1])
    if row is None or not row.transform.startswith("split_qkv:"):
        return None
    return row.ldm_key, int(row.transform[-1])


def _encoder_place(key: str, layout: Layout) -> tuple[Part, str] | None:
    """A text encoder of the family, and the name below it, for a key in one of the other places that encoders have."""
    head, _, rest = key.partition(".")
    if head in ("text_encoders", "cond_stage_model"):
        encoder, _, rest = rest.partition(".")
        component = names.SIDE_BY_SIDE.get(encoder)
        if component is not None:
            part = next((part for part in layout.parts if part.component == component), None)
            return None if part is None else (part, rest.removeprefix("transformer."))
    for part in layout.parts:
        if part.component.startswith("text_encoder") and part.prefix and part.position_ids is None:
            for place in (f"{part.prefix}transformer.", f"{part.prefix}model.transformer."):
                if key.startswith((f"{place}text_model.", f"{place}text_projection.")):
                    return part, key[len(place) :]
    return None


@cache
def _encoder_rows(layout: Layout, component: str) -> dict[str, MapRow]:
    """Diffusers key to the row of the map, for one text encoder of the family."""
    from .diffusers import mapping

    return {row.key: row for row in mapping(layout) if row.key and row.component == component}


def _unet(key: str, layout: Layout) -> str:
    if not layout.has_ema:  # no U-Net under the usual prefix
        return key
    if key.startswith("diffusion_model."):
        return "model." + key
    if key.startswith(_BARE_UNET):
        return names.UNET + key
    if layout.network and layout.network.component != "unet":  # no other spelling of it is known
        return names.UNET + key if layout.network.owns(key) else key
    if key.startswith(_DIFFUSERS_UNET) and layout.diffusers is not None and layout.diffusers.whole:
        return _from_diffusers(layout, "unet").get(key, key)
    return key


def _clip(key: str) -> str:
    place = next(place for place in _CLIP_PLACES if key.startswith(place))
    rest = key[len(place) :]
    return f"{place}text_model.{rest}" if rest.startswith(CLIP_HEADS) else key


def _vae(key: str, layout: Layout) -> str:
    """A VAE name in the place that the layout has for it; a layout without a VAE keeps the place it was found in."""
    bare = key.removeprefix(names.VAE).removeprefix(_SIDE_VAE)
    places = {part.prefix for part in layout.parts if part.component == "vae"}
    place = places.pop() if places else key[: len(key) - len(bare)]
    if ".mid_block." in bare or "_blocks." in bare or "conv_norm_out" in bare:
        bare = _attention(bare, ".mid_block.attentions.0.", _OLD_ATTENTION)
        found = _from_diffusers(layout, "vae").get(bare) if layout.parts else None
        return found or key
    return place + _attention(bare, ".mid.attn_1.", _LDM_ATTENTION)


def _attention(key: str, place: str, new_names: dict[str, str]) -> str:
    front, found, rest = key.partition(place)
    module, _, leaf = rest.rpartition(".")
    return f"{front}{place}{new_names[module]}.{leaf}" if found and module in new_names else key


@cache
def _from_diffusers(layout: Layout, component: str) -> dict[str, str]:
    from .diffusers import renames  # only when such names turn up

    return renames(layout, component)


_PROJECTION = ".model.text_projection"


def needs_transpose(key: str) -> bool:
    """Whether ``key`` is a text projection under its diffusers name, which holds the transposed matrix.

    Written by older converters and Playground v2 for ``text_projection``. The matrix is square, so no shape gives it
    away: renaming alone would silently break the text encoder.
    """
    return key.endswith(_PROJECTION + ".weight")


def transposed(key: str) -> str | None:
    """The other name of a text projection, under which the transposed matrix is stored; None for any other key."""
    if key.endswith(_PROJECTION):
        return key + ".weight"
    return key.removesuffix(".weight") if needs_transpose(key) else None


def remarks(keys: Collection[str], layout: Layout) -> tuple[str, ...]:
    """What is unusual about a file's names, one line each with a count and an example; nothing when all is in order."""
    renamed: list[str] = []
    flipped: list[str] = []
    twice: list[str] = []
    apart: list[str] = []
    for key in keys:
        modern = canonical(key, layout)
        if joined(key, layout) is not None:
            apart.append(key)
        elif needs_transpose(modern):
            (twice if transposed(modern) in keys else flipped).append(key)
        elif modern != key:
            (twice if modern in keys else renamed).append(f"{key} for {modern}")
    found = (
        (renamed, "tensors have an old or foreign name (cast(fix_names=True) repairs it)"),
        (flipped, "text projections hold the transposed matrix, as their name says (cast(fix_names=True) repairs "
                  "it)"),
        (apart, "tensors hold q, k and v of OpenCLIP's attention apart (cast(fix_names=True) joins them)"),
        (twice, "tensors appear under two names (cast(fix_names=True) keeps one if both hold the same, else drop "
                "one by prune(drop_keys=…))"),
    )  # fmt: skip
    return tuple(
        f"{len(hits)} {text}: {printable(hits[0])}{', …' if len(hits) > 1 else ''}" for hits, text in found if hits
    )
