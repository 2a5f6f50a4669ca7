"""Families at reduced width, and their configurations, as diffusers loads them: true names and layers, 32 channels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdsurgery.layouts import base, names, parts
from sdsurgery.layouts.autoencoder import Autoencoder
from sdsurgery.layouts.base import Adapters, Layout, Part
from sdsurgery.layouts.clip import ClipText, OpenClipText
from sdsurgery.layouts.unet import UNet

CHANNELS, CLIP, BIG = 32, 64, 128  # of the U-Net and the VAE; widths of the text encoders
HEADS = 4
TIMES = 6 * 256  # what SDXL adds to the pooled text: sizes and crops

SD1_UNET = UNet(channels=CHANNELS, context=CLIP, depths=(1, 1, 1, 0), linear_projection=False)
XL_UNET = UNet(
    channels=CHANNELS, context=CLIP + BIG, depths=(0, 2, 3), middle_depth=3, multipliers=(1, 2, 4), label=BIG + TIMES
)  # fmt: skip


def vae_part() -> Part:
    return Part("vae", names.VAE, Autoencoder(channels=CHANNELS).rows)


def clip_part(prefix: str) -> Part:
    return Part("text_encoder", prefix, ClipText(CLIP, layers=2).rows)


REDUCED = {
    "sd1": Layout(
        "sd1",
        "reduced Stable Diffusion 1",
        "stable-diffusion-v1",
        (parts.schedule(), parts.unet(SD1_UNET), vae_part(), clip_part("cond_stage_model.transformer.")),
        SD1_UNET,
        adapters=Adapters("sd1", CLIP, {"text_encoder": "lora_te_"}, versions=("sd_v1",)),
    ),
    "sdxl-base": Layout(
        "sdxl-base",
        "reduced Stable Diffusion XL",
        "stable-diffusion-xl-v1-base",
        (
            parts.unet(XL_UNET),
            parts.sigmas(),
            clip_part("conditioner.embedders.0.transformer."),
            Part("text_encoder_2", "conditioner.embedders.1.", OpenClipText(BIG, layers=2).rows),
            vae_part(),
        ),
        XL_UNET,
        vae_block="VAE",
        ema_last=True,
        adapters=Adapters(
            "sdxl",
            CLIP + BIG,
            {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
            original_paths=True,
            versions=("sdxl_base_v1-0",),
        ),
    ),
}
FAMILIES = list(REDUCED)


@contextmanager
def reduced_families() -> Iterator[None]:
    """The reduced families are recognised, under the names of the true ones."""
    base.REGISTRY[:0] = REDUCED.values()
    yield
    del base.REGISTRY[: len(REDUCED)]


# ---- a local configuration, as the folder of a published model has it


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def configuration(folder: Path, family: str) -> Path:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig

    xl = family == "sdxl-base"
    width = [CHANNELS * each for each in ((1, 2, 4) if xl else (1, 2, 4, 4))]
    plain, cross = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    options: dict[str, Any] = {
        "down_block_types": (plain[0], plain[1], plain[1]) if xl else (plain[1], plain[1], plain[1], plain[0]),
        "up_block_types": (cross[1], cross[1], cross[0]) if xl else (cross[0], cross[1], cross[1], cross[1]),
        "block_out_channels": width,
        "cross_attention_dim": CLIP + BIG if xl else CLIP,
        "attention_head_dim": [HEADS] * 3 if xl else HEADS,
        "sample_size": 8,
    }
    if xl:
        options |= {
            "transformer_layers_per_block": [1, 2, 3], "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": BIG + TIMES,
        }  # fmt: skip
    import torch

    with torch.device("meta"):
        UNet2DConditionModel(**options).save_config(folder / "unet")
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[CHANNELS * each for each in (1, 2, 4, 4)], layers_per_block=2, sample_size=64,
        ).save_config(folder / "vae")  # fmt: skip
    EulerDiscreteScheduler(steps_offset=1).save_config(folder / "scheduler")
    encoders = {"text_encoder": ("CLIPTextModel", CLIP)}
    if xl:
        encoders["text_encoder_2"] = ("CLIPTextModelWithProjection", BIG)
    for name, (class_name, wide) in encoders.items():
        CLIPTextConfig(
            hidden_size=wide, intermediate_size=4 * wide, projection_dim=wide, num_hidden_layers=2,
            num_attention_heads=HEADS, vocab_size=49408, architectures=[class_name],
        ).save_pretrained(folder / name)  # fmt: skip
        tokens = {"<|startoftext|>": 49406, "<|endoftext|>": 49407, "a</w>": 320, "a": 64}
        tokenizer = folder / name.replace("text_encoder", "tokenizer")
        write_json(tokenizer / "vocab.json", tokens)
        (tokenizer / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        special |= {"pad_token": "<|endoftext|>"}
        write_json(
            tokenizer / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
        )
    modules: dict[str, Any] = {name: ["transformers", kind] for name, (kind, _) in encoders.items()}
    modules |= {name.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"] for name in encoders}
    modules |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    modules |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    for absent in ("safety_checker", "feature_extractor", "image_encoder"):
        modules[absent] = [None, None]
    kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    write_json(folder / "model_index.json", {"_class_name": kind, "_diffusers_version": "0.30.0", **modules})
    return folder


def pipeline(path: Path, config: Path, family: str) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if family == "sdxl-base" else StableDiffusionPipeline
    more: dict[str, Any] = {} if family == "sdxl-base" else {"requires_safety_checker": False}
    return kind.from_single_file(
        str(path), config=str(config), torch_dtype=torch.float32, local_files_only=True, **more
    )


def weights(pipe: Any) -> dict[str, Any]:
    modules = {name: pipe.components[name] for name in ("unet", "vae", "text_encoder", "text_encoder_2")
               if pipe.components.get(name) is not None}  # fmt: skip
    return {f"{module}.{name}": value for module, part in modules.items() for name, value in part.state_dict().items()}
