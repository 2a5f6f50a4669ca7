"""Stable Diffusion 1.x and its variants with more input channels.

Sources: CompVis/stable-diffusion 21f890f ``v1-inference.yaml``, runwayml/stable-diffusion 08ab4d3
``v1-inpainting-inference.yaml``, timothybrooks/instruct-pix2pix 0dffd1e ``configs/generate.yaml``.
"""

from __future__ import annotations

from .. import parts
from ..base import EPSILON, Adapters, Diffusers, Encoder, Layout, Release, register
from ..unet import RECOGNISED, UNet

_UNET = UNet(channels=320, context=768, depths=(1, 1, 1, 0), linear_projection=False)


_ENCODERS = (
    Encoder("cond_stage_model.transformer.text_model.final_layer_norm.weight", 768, "CLIP-L"),
    Encoder(
        "cond_stage_model.transformer.final_layer_norm.weight", 768, "CLIP-L", spelling="old names (no text_model.)"
    ),
)


def _layout(name: str, title: str, architecture: str, channels: int = 4, task: str = "") -> Layout:
    unet = _UNET._replace(in_channels=channels)
    modules = (
        parts.schedule(),
        parts.unet(unet),
        parts.autoencoder(),
        parts.clip_l("cond_stage_model.transformer."),
    )
    return register(
        Layout(
            name,
            title,
            architecture,
            modules,
            unet,
            variant_of=None if channels == 4 else "sd1",
            encoders=_ENCODERS,
            prediction=EPSILON,
            releases=(Release("stable-diffusion-v1", "512x512"),),
            task=task,
            recognised=RECOGNISED,
            diffusers=Diffusers(position_ids=True),
            adapters=Adapters("sd1", 768, {"text_encoder": "lora_te_"}, versions=("sd_v1",)),
        )
    )


SD1 = _layout("sd1", "Stable Diffusion 1.x", "stable-diffusion-v1")
INPAINTING = _layout(
    "sd1-inpainting", "Stable Diffusion 1.x inpainting", "stable-diffusion-v1-inpainting", 9, "inpainting"
)
PIX2PIX = _layout("sd1-pix2pix", "InstructPix2Pix (Stable Diffusion 1.x)", "stable-diffusion-v1", 8, "edit")
