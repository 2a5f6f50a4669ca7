"""What bake, extract-lora and merge-lora write gives in diffusers and peft what base and adapters give there.

The families are sd1 and sdxl-base at reduced width. Everything is float32; the outputs of the U-Net and of the text
encoders agree to 1e-4 of their largest value: the readers add the adapter's product to each layer's output, in another
order than we add it to the weight.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from adapter_tools import Arrays, lora, written
from reduced_models import BIG, CLIP, REDUCED, TIMES, configuration, pipeline, reduced_families
from sdsurgery.adapters import names, writing
from sdsurgery.layouts.lora_names import targets
from sdsurgery.testing import write_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported: nothing here is to be fetched
NEEDED = ("diffusers", "transformers", "accelerate", "peft", "torch", "safetensors")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (pip install {' '.join(LACKING)})"),
]
FAMILIES = list(REDUCED)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    with reduced_families():
        yield request.param


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    write_checkpoint(path, family, dtype="fp32")
    return path


def adapter(path: Path, family: str, *, dialect: str = "kohya", seed: int = 0, every: int = 1) -> Path:
    """A LoRA of the attention layers and the text encoders: each one, or each so-many-th."""
    layout, parts = REDUCED[family], dict[str, Any]()
    places = {(place.component, f"{place.path}.weight"): place for place in names.places(layout)}
    chosen = [target for target in targets(layout) if target.scope in ("attn", "te")]
    for number, target in enumerate(chosen[::every]):
        place = places[target.row.component, target.row.key]  # type: ignore[index]
        name = writing.module_name(layout, place, dialect)
        made: Arrays = lora(name, target.shape, seed=1000 * seed + number, alpha=2.0, size=0.2, dtype=np.float32)
        if dialect == "diffusers":
            made = {
                f"{name}.lora_A.weight": made[f"{name}.lora_down.weight"],
                f"{name}.lora_B.weight": made[f"{name}.lora_up.weight"],
            }
        parts |= made
    return written(path, parts)


def outputs(pipe: Any, family: str) -> list[Any]:
    """Of the U-Net and of every text encoder, for fixed inputs."""
    import torch

    random = torch.Generator().manual_seed(0)
    wide = CLIP + BIG if family == "sdxl-base" else CLIP
    sample = torch.randn(1, 4, 8, 8, generator=random)
    text = torch.randn(1, 77, wide, generator=random)
    more: dict[str, Any] = {}
    if family == "sdxl-base":
        pooled = torch.randn(1, BIG, generator=random)
        assert TIMES == 6 * 256
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(1, 6)}}
    tokens = torch.arange(77)[None]
    with torch.no_grad():
        found = [pipe.unet(sample, 10, encoder_hidden_states=text, **more).sample]
        for name in ("text_encoder", "text_encoder_2"):
            if pipe.components.get(name) is not None:
                found.append(pipe.components[name](tokens)[0])
    return found


def alike(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())


def unlike(found: list[Any], other: list[Any]) -> None:
    """The adapter matters: what is compared is no coincidence."""
    for one, two in zip(found, other, strict=True):
        assert float((one - two).abs().max()) > 1e-2 * float(two.abs().max())


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_a_baked_model_is_base_and_adapter(base: Path, family: str, dialect: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "config", family)
    file = adapter(tmp_path / "a.safetensors", family, dialect=dialect)
    sdsurgery.bake(base, {file: 0.7}, out=tmp_path / "baked.safetensors")
    pipe = pipeline(base, config, family)
    plain = outputs(pipe, family)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="a")
    pipe.set_adapters(["a"], [0.7])
    expected = outputs(pipe, family)
    alike(outputs(pipeline(tmp_path / "baked.safetensors", config, family), family), expected)
    unlike(expected, plain)


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_an_extracted_adapter_gives_the_tuned_model(base: Path, family: str, dialect: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "config", family)
    tuned = tmp_path / "tuned.safetensors"
    sdsurgery.bake(base, [adapter(tmp_path / "a.safetensors", family)], out=tuned)
    file = tmp_path / "extracted.safetensors"
    sdsurgery.extract_lora(tuned, base, rank=4, dtype="fp32", names=dialect, out=file)
    pipe = pipeline(base, config, family)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    alike(outputs(pipe, family), outputs(pipeline(tuned, config, family), family))


@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_a_merged_adapter_is_both(base: Path, family: str, dialect: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "config", family)
    files = [adapter(tmp_path / f"{name}.safetensors", family, seed=seed, every=seed + 1)
             for seed, name in enumerate("ab")]  # fmt: skip
    merged = tmp_path / "merged.safetensors"
    sdsurgery.merge_lora(dict(zip(files, (0.6, -0.4), strict=True)), names=dialect, out=merged)
    both = pipeline(base, config, family)
    for name, file in zip("ab", files, strict=True):
        both.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    both.set_adapters(["a", "b"], [0.6, -0.4])
    one = pipeline(base, config, family)
    one.load_lora_weights(str(merged.parent), weight_name=merged.name)
    # The text encoders of a pipeline that has loaded two adapters differ from themselves with either (diffusers 0.42
    # with transformers 5.23), so those are compared with the baked model's.
    sdsurgery.bake(base, dict(zip(files, (0.6, -0.4), strict=True)), out=tmp_path / "baked.safetensors")
    baked = outputs(pipeline(tmp_path / "baked.safetensors", config, family), family)
    alike(outputs(both, family)[:1], baked[:1])
    alike(outputs(one, family), baked)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {}])
def test_a_folder_of_peft(base: Path, family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    config = configuration(tmp_path / "config", family)
    pipe = pipeline(base, config, family)
    wanted = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "conv1", "proj_in"], **settings)
    torch.manual_seed(0)
    model = get_peft_model(pipe.unet, wanted)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
        elif "lora_magnitude" in name:
            value.data *= 1.1
    model.save_pretrained(tmp_path / "adapter")
    sdsurgery.bake(base, [tmp_path / "adapter"], out=tmp_path / "baked.safetensors")
    pipe.unet = model.eval()
    alike(outputs(pipeline(tmp_path / "baked.safetensors", config, family), family), outputs(pipe, family))
