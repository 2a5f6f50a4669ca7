"""Text encoders in files of their own, in transformers' and open_clip's names, under any prefix.

Recognised by their final norm's width or their first layer, and only where the whole file lies under one prefix: a
model that also has a network or a VAE is another family. Sources: transformers ``models/clip`` and ``models/t5``,
open_clip ``transformer.py``; ComfyUI ``comfy/sd.py`` (``detect_te_model``).
"""

from __future__ import annotations

from functools import partial

from ...structure import flat
from .. import names
from ..base import Layout, register
from ..detect import Match, Probe

_KINDS = {"text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder", "other"}
_BESIDE = ("logit_scale", "text_projection", "text_projection.weight", "text_model.", "visual.")


def _alone(probe: Probe, tail: str) -> Match | None:
    """A tensor that ends with ``tail``, if all others stand under the same prefix or beside it."""
    if probe.unet_prefix is not None:
        return None
    for prefix in probe.prefixes(tail):
        above = prefix.removesuffix("text_model.").removesuffix("encoder.")
        inside = all(key.startswith((above, *_BESIDE)) for key in probe.tensors)
        if inside and {names.component(key) for key in probe.tensors} <= _KINDS:
            return Match(prefix + tail, probe.shape(prefix + tail) or ())
    return None


def _clip(width: int, layout: Layout, probe: Probe) -> Match | None:
    match = _alone(probe, "text_model.final_layer_norm.weight")
    if match is None and probe.prefixes("embeddings.token_embedding.weight"):  # transformers 5.6 and later
        match = _alone(probe, "final_layer_norm.weight")
    return match if match and match.shape == (width,) else None


def _openclip(width: int, layout: Layout, probe: Probe) -> Match | None:
    match = _alone(probe, "ln_final.weight")
    return match if match and match.shape == (width,) else None


def _t5(unlike: bool, layout: Layout, probe: Probe) -> Match | None:
    """T5; UMT5 has a table of relative positions in every layer."""
    match = _alone(probe, "block.0.layer.0.SelfAttention.k.weight")
    other = probe.prefixes("block.1.layer.0.SelfAttention.relative_attention_bias.weight")
    return match if bool(other) == unlike else None


def _language(layout: Layout, probe: Probe) -> Match | None:
    return _alone(probe, "layers.0.self_attn.q_proj.weight") if probe.prefixes("embed_tokens.weight") else None


def _vision(layout: Layout, probe: Probe) -> Match | None:
    return probe.find("vision_model.encoder.layers.0.self_attn.q_proj.weight")


for _width, _name, _title, _place in (
    (768, "l", "CLIP-L", "text_encoder"),
    (1024, "h", "OpenCLIP-H", "text_encoder"),
    (1280, "g", "OpenCLIP-bigG", "text_encoder_2"),
):
    _kind = f"text encoder {_title}"
    register(
        Layout(
            f"clip-{_name}",
            _kind,
            sniff=partial(_clip, _width),
            alone=_place,
            embedder_0=_place,
            arranged=flat,
            openclip=_name != "l",
        )
    )
    _kind += " in open_clip's names"
    register(Layout(f"openclip-{_name}", _kind, sniff=partial(_openclip, _width), alone=_place, embedder_0=_place))
register(Layout("umt5", "text encoder UMT5", sniff=partial(_t5, True), alone="text_encoder"))
register(Layout("t5", "text encoder T5", sniff=partial(_t5, False), alone="text_encoder_3"))
register(Layout("language-model", "language model (text encoder)", sniff=_language, alone="text_encoder"))
register(Layout("clip-vision", "image encoder CLIP", sniff=_vision, alone="image_encoder"))
