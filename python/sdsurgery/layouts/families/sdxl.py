"""Stable Diffusion XL: base, its variants with more input channels, the refiner, and distilled descendants.

Source: Stability-AI/generative-models 0ad7de9 ``configs/inference/sd_xl_{base,refiner}.yaml``. The 9-channel form was
released for diffusers only; here it is what 9-channel merges use, the base with a wider first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .. import parts
from ..base import EPSILON, Adapters, Diffusers, Encoder, Layout, Part, Release, register
from ..detect import Match, Probe
from ..unet import RECOGNISED, AnyUNet, UNet

_BASE = UNet(channels=320, context=2048, depths=(0, 2, 10), middle_depth=10, multipliers=(1, 2, 4), label=2816)
_REFINER = UNet(channels=384, context=1280, depths=(0, 4, 4, 0), middle_depth=4, label=2560)
_DEEPEST = f"middle_block.1.transformer_blocks.{_BASE.middle_depth - 1}.norm1.weight"


_CLIP_L = "conditioner.embedders.0.transformer."
_ENCODERS = (
    Encoder(_CLIP_L + "text_model.final_layer_norm.weight", 768, "CLIP-L"),
    Encoder(_CLIP_L + "final_layer_norm.weight", 768, "CLIP-L", spelling="old names"),
    Encoder("conditioner.embedders.1.model.ln_final.weight", 1280, "OpenCLIP-bigG"),
)
_RELEASES = (Release("stable-diffusion-xl-", "1024x1024"), Release("stable-diffusion-xl-turbo", "512x512"))
_RECOGNISED = (
    *RECOGNISED,
    # diffusers, then AUTOMATIC1111/stable-diffusion-webui modules/sd_models_config.py: base, refiner
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
    "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
    "conditioner.embedders.1.model.ln_final.weight",
    "conditioner.embedders.0.model.ln_final.weight",
)
_ADAPTERS = Adapters(
    "sdxl",
    2048,
    {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    original_paths=True,
    own_names=r"^(lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.)"
    r"|(attentions[._]\d|put_blocks[._]\d[._]1|middle_block[._]1)[._]transformer_blocks[._][1-9]",
    embedding=("clip_l", "clip_g"),
    versions=("sdxl_base_v1-0",),
)
_REFINER_ADAPTERS = Adapters(
    "sdxl-refiner",
    1280,
    {"text_encoder_2": "lora_te2_"},
    original_paths=True,
    own_names=r"(input_blocks[._][45][._]1|down_blocks[._]1[._]attentions[._]\d)[._]transformer_blocks[._][23]"
    r"|(output_blocks[._][678][._]1|up_blocks[._]2[._]attentions[._]\d)[._]transformer_blocks[._][123]",
    versions=("sdxl_refiner_v1-0",),  # sd-scripts has no word for it; A1111 looks for "sdxl_"
)


def _big_g(embedder: int) -> Part:
    return parts.openclip("text_encoder_2", f"conditioner.embedders.{embedder}.", width=1280, layers=32)


def _depth(probe: Probe, block: str) -> int:
    """Number of transformer blocks in one of the U-Net's."""
    return next(n for n in range(99) if probe.unet(f"{block}.1.transformer_blocks.{n}.norm1.weight") is None)


def _is_distilled(depths: Mapping[str, int] | None, layout: Layout, probe: Probe) -> Match | None:
    """SDXL's label width, without the full depth of its middle block; ``depths`` of some blocks tell which one it is.

    Depths: ComfyUI ``comfy/model_detection.py`` (SSD_1B, Segmind_Vega, KOALA_700M, KOALA_1B).
    """
    key = "label_emb.0.0.weight"
    shape = probe.unet(key)
    if shape != (_BASE.embedding, _BASE.label) or probe.unet_block(_DEEPEST):
        return None
    if depths is not None and any(_depth(probe, block) != depth for block, depth in depths.items()):
        return None
    return probe.match(key)


def _base(name: str, title: str, architecture: str, channels: int = 4, task: str = "") -> Layout:
    unet = _BASE._replace(in_channels=channels)
    modules = (
        parts.unet(unet),
        parts.sigmas(),
        parts.clip_l(_CLIP_L),
        _big_g(1),
        parts.autoencoder(),
    )
    return register(
        Layout(
            name,
            title,
            architecture,
            modules,
            unet,
            variant_of=None if channels == 4 else "sdxl-base",
            vae_block="VAE",
            optional_prefixes=("conditioner.embedders.1.model.logit_scale",),
            ema_last=True,
            requires=(_DEEPEST,),
            encoders=_ENCODERS,
            prediction=EPSILON,
            releases=_RELEASES,
            task=task,
            recognised=_RECOGNISED,
            diffusers=Diffusers(),  # its folders were written after transformers gave position_ids up
            adapters=_ADAPTERS,
        )
    )


BASE = _base("sdxl-base", "Stable Diffusion XL", "stable-diffusion-xl-v1-base")
INPAINTING = _base(
    "sdxl-inpainting", "Stable Diffusion XL inpainting", "stable-diffusion-xl-v1-inpainting", 9, "inpainting"
)
EDIT = _base("sdxl-edit", "Stable Diffusion XL edit", "stable-diffusion-xl-v1-edit", 8, "edit")

REFINER = register(
    Layout(
        "sdxl-refiner",
        "Stable Diffusion XL refiner",
        "stable-diffusion-xl-v1-refiner",
        (parts.unet(_REFINER), parts.sigmas(), _big_g(0), parts.autoencoder()),
        _REFINER,
        embedder_0="text_encoder_2",
        vae_block="VAE",
        optional_prefixes=("conditioner.embedders.0.model.logit_scale",),
        ema_last=True,
        encoders=(Encoder("conditioner.embedders.0.model.ln_final.weight", 1280, "OpenCLIP-bigG"),),
        prediction=EPSILON,
        releases=_RELEASES,
        recognised=_RECOGNISED,
        diffusers=Diffusers(),
        adapters=_REFINER_ADAPTERS,
    )
)

_DESCENDANTS: tuple[tuple[str, str, dict[str, int] | None], ...] = (
    ("ssd-1b", "SSD-1B (from Stable Diffusion XL)", {"input_blocks.4": 2, "input_blocks.7": 4}),
    ("vega", "Segmind Vega (from Stable Diffusion XL)", {"input_blocks.4": 1, "input_blocks.7": 2}),
    ("koala-700m", "KOALA 700M (from Stable Diffusion XL)", {"input_blocks.3": 2, "input_blocks.5": 5}),
    ("koala-1b", "KOALA 1B (from Stable Diffusion XL)", {"input_blocks.3": 2, "input_blocks.5": 6}),
    ("sdxl-distilled", "distilled Stable Diffusion XL", None),
)
for _name, _title, _depths in _DESCENDANTS:
    register(Layout(_name, _title, network=AnyUNet(), sniff=partial(_is_distilled, _depths)))
