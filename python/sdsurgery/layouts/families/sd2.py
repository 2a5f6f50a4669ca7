"""Stable Diffusion 2.x: base and 768-v (one layout), inpainting, depth, x4 upscaler, unCLIP.

Source: Stability-AI/stablediffusion cf1d67a ``configs/stable-diffusion/*.yaml``. Only the penultimate output of the
text encoder is used, so its last layer, ``text_projection`` and ``logit_scale`` may be missing from a good file. The
4-channel unCLIP U-Net is SD 2's plus ``label_emb``, and people do give it what a fine-tune learned; so it is a variant.
"""

from __future__ import annotations

from .. import parts
from ..base import EPSILON, V_PREDICTION, Adapters, Diffusers, Encoder, Layout, Part, PredictionSign, Release, register
from ..unet import RECOGNISED, UNet

_UNET = UNet(channels=320, context=1024, depths=(1, 1, 1, 0))
_UPSCALER = UNet(
    channels=256,
    context=1024,
    depths=(0, 1, 1, 1),
    multipliers=(1, 2, 2, 4),
    in_channels=7,
    classes=1000,
    cross_only=(True, True, True, False),
)
_TEXT = parts.openclip("text_encoder", "cond_stage_model.", width=1024, layers=24)
_PLACES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")  # the second in sgm's SD-Turbo
_OPTIONAL = tuple(
    place + name for place in _PLACES for name in ("text_projection", "logit_scale", "transformer.resblocks.23.")
)
_V2 = "stable-diffusion-v2-"
_OPENCLIP_H = Encoder("cond_stage_model.model.ln_final.weight", 1024, "OpenCLIP-H")
_ENCODERS = (
    _OPENCLIP_H,
    Encoder("conditioner.embedders.0.model.ln_final.weight", 1024, "OpenCLIP-H", spelling="sgm names"),
)
_RELEASES = (
    Release(_V2, "512x512"),
    Release(_V2 + "768", "768x768"),
    Release(_V2 + "768-v", "768x768", prediction=V_PREDICTION),
    Release(_V2 + "unclip", "768x768"),
)
_RECOGNISED = (
    *RECOGNISED,
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
    # AUTOMATIC1111/stable-diffusion-webui modules/sd_models_config.py: depth, unCLIP
    "depth_model.model.pretrained.act_postprocess3.0.project.0.bias",
    "embedder.model.ln_final.weight",
)
_OTHER_PLACES = ((_PLACES[1], _PLACES[0]),)
_ADAPTERS = Adapters("sd2", 1024, {"text_encoder": "lora_te_"}, versions=("sd_v2", "sd_v2_v"))
# ComfyUI distinguishes the base and the 768-v model by this spread (comfy/supported_models.py, SD20.model_type).
_SIGN = PredictionSign("output_blocks.11.1.transformer_blocks.0.norm1.bias", spread=0.09)


def _layout(
    name: str, title: str, architecture: str | None, unet: UNet, *, extra: tuple[Part, ...] = (), levels: int = 4,
    task: str = "",
) -> Layout:  # fmt: skip
    modules = (parts.schedule(), parts.unet(unet), parts.autoencoder(levels=levels), _TEXT, *extra)
    own = name in ("sd2", "sd2-x4-upscaler")
    return register(
        Layout(
            name,
            title,
            architecture,
            modules,
            unet,
            variant_of=None if own else "sd2",
            optional_prefixes=_OPTIONAL,
            encoders=_ENCODERS if unet is not _UPSCALER else (_OPENCLIP_H,),
            # "parameterization" of the published configurations
            prediction=V_PREDICTION if name in ("sd2-x4-upscaler", "sd2-unclip-h") else EPSILON,
            prediction_sign=_SIGN if name == "sd2" else None,
            releases=_RELEASES,
            task=task,
            recognised=_RECOGNISED,
            other_places=_OTHER_PLACES,
            diffusers=Diffusers(class_label=unet is not _UPSCALER, position_ids=True, whole=name != "sd2-unclip-h"),
            adapters=_ADAPTERS if unet is not _UPSCALER else None,
        )
    )


UPSCALER = _layout(
    "sd2-x4-upscaler",
    "Stable Diffusion 2 x4 upscaler",
    None,
    _UPSCALER,
    extra=(parts.schedule("low_scale_model.", count=8),),
    levels=3,
)
UNCLIP_H = _layout(
    "sd2-unclip-h",
    "Stable Diffusion 2.1 unCLIP (ViT-H)",
    _V2 + "unclip-h",
    _UNET._replace(label=2048),
    extra=(parts.openclip_image("embedder."), parts.schedule("noise_augmentor.", count=8)),
)
UNCLIP_L = register(  # recognised only: the names of its OpenAI image encoder are not known here
    Layout(
        "sd2-unclip-l",
        "Stable Diffusion 2.1 unCLIP (ViT-L)",
        _V2 + "unclip-l",
        network=_UNET._replace(label=1536),
        variant_of="sd2",
        optional_prefixes=_OPTIONAL,
        encoders=_ENCODERS,
        prediction=EPSILON,
        releases=_RELEASES,
        recognised=_RECOGNISED,
        other_places=_OTHER_PLACES,
    )
)
SD2 = _layout("sd2", "Stable Diffusion 2.x", _V2 + "512", _UNET)
INPAINTING = _layout(
    "sd2-inpainting", "Stable Diffusion 2 inpainting", _V2 + "inpainting", _UNET._replace(in_channels=9),
    task="inpainting",
)  # fmt: skip
DEPTH = _layout(
    "sd2-depth",
    "Stable Diffusion 2 depth",
    _V2 + "depth",
    _UNET._replace(in_channels=5),
    extra=(parts.midas("depth_model."),),
)
