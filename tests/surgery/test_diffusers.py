"""What merge, ema, prune and replace write loads in diffusers: ``from_single_file`` with a local configuration.

The families are sd1 and sdxl-base at reduced width: the true names and layers, 32 instead of 320 channels. Each output
must load like a file that torch and safetensors made in the straightforward way, and the pipeline must run.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from sdsurgery.layouts import base, names, parts
from sdsurgery.layouts.autoencoder import Autoencoder
from sdsurgery.layouts.base import Layout, Part
from sdsurgery.layouts.clip import ClipText, OpenClipText
from sdsurgery.layouts.unet import UNet
from sdsurgery.testing import write_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported: nothing here is to be fetched
NEEDED = ("diffusers", "transformers", "accelerate", "torch", "safetensors")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (pip install {' '.join(LACKING)})"),
]

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
    ),
}
FAMILIES = list(REDUCED)


@pytest.fixture
def reduced() -> Iterator[None]:
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


# ---- the straightforward way, and ours

State = dict[str, Any]


def load(path: Path) -> State:
    from safetensors.torch import load_file

    return dict(load_file(path))


def merged(a: State, b: State) -> State:
    import torch

    found = {}
    for name, value in a.items():
        same = not value.is_floating_point() or value.dtype == torch.float32  # position_ids; the noise schedules
        mixed = (1 - 0.3) * value.float() + 0.3 * b[name].float()
        found[name] = value if same else mixed.to(value.dtype)
    return found


def averaged(a: State, b: State) -> State:
    twin = "model_ema.{}".format
    kept = {name: value for name, value in a.items() if not name.startswith("model_ema.")}
    return {
        name: a[twin(name[6:].replace(".", ""))] if name.startswith("model.diffusion_model.") else value
        for name, value in kept.items()
    }


def without_ema(a: State, b: State) -> State:
    return {name: value for name, value in a.items() if not name.startswith("model_ema.")}


def with_other_vae(a: State, b: State) -> State:
    return {name: b[name] if name.startswith("first_stage_model.") else value for name, value in a.items()}


Verb = Callable[[Path, Path, Path], Any]
CASES: dict[str, tuple[Verb, Callable[[State, State], State], bool]] = {
    # name: our verb, the straightforward way, whether A has an EMA twin
    "merge": (lambda a, b, o: sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, out=o, sync=False), merged, False),
    "ema": (lambda a, b, o: sdsurgery.ema(a, out=o, sync=False), averaged, True),
    "prune": (lambda a, b, o: sdsurgery.prune(a, preset="inference", out=o, sync=False), without_ema, True),
    "replace": (lambda a, b, o: sdsurgery.replace(a, {"vae": b}, out=o, sync=False), with_other_vae, False),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_load_and_run_in_diffusers(case: str, family: str, tmp_path: Path, reduced: None) -> None:
    import torch
    from safetensors.torch import save_file

    verb, straightforward, ema = CASES[case]
    a, b, out, plain = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out", "plain"))
    write_checkpoint(a, family, ema=ema)
    write_checkpoint(b, family, seed=1)
    report = verb(a, b, out)
    assert report.family == family
    save_file(straightforward(load(a), load(b)), plain, metadata={"format": "pt"})

    config = configuration(tmp_path / "config", family)
    ours, theirs = (pipeline(path, config, family) for path in (out, plain))
    left, right = weights(ours), weights(theirs)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.device.type == "cpu", f"{name} was not in the file"
        assert torch.equal(value, right[name]), name

    stored = load(out)
    unused = ("logit_scale", "position_ids", "denoiser.sigmas")
    model = [value for name, value in stored.items() if "." in name and not name.endswith(unused)]
    loaded = [value for name, value in left.items() if not name.endswith("position_ids")]
    assert sum(value.numel() for value in loaded) == sum(value.numel() for value in model), "every weight was taken"

    ours.set_progress_bar_config(disable=True)
    image = ours("a", num_inference_steps=1, height=64, width=64, output_type="latent", guidance_scale=1.0).images
    assert image.shape == (1, 4, 8, 8)
    assert torch.isfinite(image).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_saves_can_be_put_into_a_checkpoint(family: str, tmp_path: Path, reduced: None) -> None:
    """A pipeline's folders are donors: q, k and v are joined, the projection is transposed, nothing else differs."""
    import torch

    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    write_checkpoint(a, family)
    write_checkpoint(b, family, seed=1)
    pipeline(b, configuration(tmp_path / "config", family), family).save_pretrained(tmp_path / "saved")
    components = {part.component for part in REDUCED[family].parts} - {"buffers"}
    donors = {name: next((tmp_path / "saved" / name).glob("*.safetensors")) for name in sorted(components)}
    report = sdsurgery.replace(a, donors, out=out, allow_missing=True, dtype="fp16", sync=False)
    found, old, new = load(out), load(a), load(b)
    assert found.keys() == old.keys()
    lacking = {name for names in report.missing.values() for name in names}
    assert all(name.endswith("logit_scale") for name in lacking)  # the only tensor that diffusers doesn't load
    for name, value in found.items():
        kept = name in lacking or REDUCED[family].component(name) == "buffers"
        assert torch.equal(value, (old if kept else new)[name]), name
