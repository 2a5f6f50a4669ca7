"""Diffusion transformers, for images and videos: recognised by a tensor or two, and named.

Their tensors pair by name; their merge blocks and full lists are not known here. The telling names are those of
ComfyUI's ``comfy/model_detection.py`` for the original forms, and of the models in diffusers for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..base import Layout, register
from ..detect import Match, Probe
from ..shapes import Shape


class Transformer(NamedTuple):
    """A network of which only the beginnings of names are known."""

    anchor: str
    heads: tuple[str, ...]
    component: str = "transformer"
    title: str = "transformer"
    blocks: tuple[str, ...] = ()
    lists: tuple[tuple[str, ...], ...] = ()

    def owns(self, key: str) -> bool:
        return key.startswith(self.heads)

    def block(self, key: str) -> str | None:
        return None

    def discriminators(self) -> dict[str, Shape]:
        return {}

    def presets(self) -> dict[str, tuple[float, ...]]:
        return {}


def _layout(name: str, title: str, forms: Sequence[tuple[str, ...]], heads: str) -> Layout:
    """A family that a file belongs to when it has all tensors of one of the ``forms``; the first of them is shown.

    A form's name that ends with a dot stands for any tensor below it.
    """

    def sniff(layout: Layout, probe: Probe) -> Match | None:
        return next((match for form in forms if (match := _form(probe, form))), None)

    network = Transformer(forms[0][0], tuple(f"{head}." for head in heads.split()))
    return register(Layout(name, title, network=network, sniff=sniff))


def _form(probe: Probe, form: tuple[str, ...]) -> Match | None:
    found = [_tensor(probe, probe.unet_prefix or "", key) for key in form]
    if any(key is None for key in found):
        return None
    key = found[0] or ""
    return Match(key, probe.shape(key) or ())


def _tensor(probe: Probe, prefix: str, key: str) -> str | None:
    if not key.endswith("."):
        return prefix + key if prefix + key in probe.tensors else None
    return next(probe.search(f"\n{prefix}{key}"), None)


_DOUBLE = "double_blocks.0.img_attn.norm.key_norm.scale"
_FLUX_HEADS = "img_in txt_in time_in vector_in guidance_in double_blocks single_blocks final_layer"
_JOINT = "joint_blocks.0.x_block.attn."
_SD3_HEADS = "joint_blocks context_embedder x_embedder y_embedder t_embedder pos_embed final_layer"

SD35_MEDIUM = _layout(
    "sd3.5-medium", "Stable Diffusion 3.5 medium",
    [("joint_blocks.0.x_block.attn2.qkv.weight",), ("transformer_blocks.0.attn2.norm_k.weight", "pos_embed.proj.")],
    _SD3_HEADS,
)  # fmt: skip
SD35_LARGE = _layout(
    "sd3.5-large", "Stable Diffusion 3.5 large",
    [(_JOINT + "ln_q.weight",), ("transformer_blocks.0.attn.norm_added_k.weight", "pos_embed.proj.weight")],
    _SD3_HEADS,
)  # fmt: skip
SD3 = _layout(
    "sd3", "Stable Diffusion 3",
    [(_JOINT + "qkv.weight",), ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight", "norm_out.")],
    _SD3_HEADS,
)  # fmt: skip
CHROMA = _layout(
    "chroma", "Chroma (from FLUX, with distilled guidance)",
    [("distilled_guidance_layer.", _DOUBLE), ("distilled_guidance_layer.", "single_transformer_blocks.")],
    _FLUX_HEADS + " distilled_guidance_layer",
)  # fmt: skip
HUNYUAN_VIDEO = _layout(
    "hunyuan-video", "Hunyuan Video",
    [("txt_in.individual_token_refiner.blocks.0.norm1.weight",), ("context_embedder.token_refiner.", "x_embedder.")],
    _FLUX_HEADS,
)  # fmt: skip
FLUX = _layout("flux", "FLUX", [(_DOUBLE,), ("single_transformer_blocks.0.attn.norm_k.weight",)], _FLUX_HEADS)
AURAFLOW = _layout(
    "auraflow", "AuraFlow", [("double_layers.0.attn.w1q.weight",), ("joint_transformer_blocks.", "register_tokens")],
    "cond_seq_linear init_x_linear t_embedder double_layers single_layers modF final_linear",
)  # fmt: skip
LUMINA2 = _layout(
    "lumina2", "Lumina Image 2", [("noise_refiner.0.attention.k_norm.weight",), ("time_caption_embed.",)],
    "noise_refiner context_refiner cap_embedder x_embedder t_embedder layers final_layer",
)  # fmt: skip
LUMINA = _layout(
    "lumina", "Lumina-Next", [("layers.0.attention.wq.weight", "cap_embedder.0.weight")],
    "cap_embedder x_embedder t_embedder layers final_layer",
)  # fmt: skip
HUNYUAN_DIT = _layout(
    "hunyuan-dit", "Hunyuan-DiT", [("mlp_t5.0.weight",)],
    "mlp_t5 pooler blocks x_embedder t_embedder extra_embedder final_layer",
)  # fmt: skip
PIXART = _layout(
    "pixart", "PixArt",
    [("t_block.1.weight",), ("adaln_single.linear.weight", "caption_projection.", "pos_embed.proj.")],
    "t_block y_embedder x_embedder t_embedder ar_embedder csize_embedder blocks final_layer pos_embed",
)  # fmt: skip
WAN = _layout(
    "wan", "Wan video", [("head.modulation",), ("condition_embedder.text_embedder.",)],
    "patch_embedding text_embedding time_embedding time_projection img_emb blocks head",
)  # fmt: skip
QWEN_IMAGE = _layout(
    "qwen-image", "Qwen-Image", [("transformer_blocks.0.img_mod.1.weight",)],
    "transformer_blocks txt_norm txt_in img_in time_text_embed norm_out proj_out",
)  # fmt: skip
LTX = _layout(
    "ltx-video", "LTX video",
    [("patchify_proj.weight",), ("adaln_single.emb.timestep_embedder.linear_1.bias", "proj_in.")],
    "patchify_proj adaln_single caption_projection transformer_blocks proj_out",
)  # fmt: skip
MOCHI = _layout("mochi", "Mochi video", [("t5_yproj.weight",)], "t5_yproj t5_y_embedder x_embedder blocks final_layer")
HIDREAM = _layout(
    "hidream", "HiDream", [("caption_projection.0.linear.weight",)],
    "caption_projection double_stream_blocks single_stream_blocks x_embedder t_embedder p_embedder final_layer",
)  # fmt: skip
COSMOS = _layout(
    "cosmos", "Cosmos",
    [("blocks.block0.blocks.0.block.attn.to_q.0.weight",), ("x_embedder.proj.1.weight", "blocks.0.mlp.")],
    "blocks x_embedder t_embedder final_layer",
)  # fmt: skip
