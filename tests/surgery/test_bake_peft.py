"""bake of adapters in the names and with the settings of peft and diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from adapter_tools import (
    SD1_KEY,
    SD1_KEY_NAME,
    delta,
    loaded,
    lora,
    rounded_once,
    shapes_of,
    written,
)
from sdsurgery.errors import InputRefused
from sdsurgery.testing import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bake") / "base.safetensors"
    write_checkpoint(path, "sd1", size="tiny")
    return path


MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def given(base: Path, prefix: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    plain = lora(SD1_KEY_NAME, shapes_of(base)[SD1_KEY], alpha=None)
    down, up = (plain[f"{SD1_KEY_NAME}.lora_{part}.weight"] for part in ("down", "up"))
    name = f"{prefix}{MODULE}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, delta(plain, SD1_KEY_NAME)


@pytest.mark.parametrize(("rescaled", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_a_folder_with_its_configuration(base: Path, tmp_path: Path, rescaled: bool, scale: float) -> None:
    parts, product = given(base, "base_model.model.")
    written(tmp_path / "adapter_model.safetensors", parts)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": rescaled}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    sdsurgery.bake(base, [tmp_path], out=tmp_path / "out.safetensors")
    exact = loaded(base)[SD1_KEY].astype(np.float64) + scale * product
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_KEY], exact)


def test_lokr_has_another_word_for_alpha_and_the_rank_of_the_settings(base: Path, tmp_path: Path) -> None:
    """Also for whole factors, which LyCORIS scales by 1. The products are those of peft 0.21.2."""
    rows, columns = shapes_of(base)[SD1_KEY]
    random, name = np.random.default_rng(0), f"base_model.model.{MODULE}"
    factors = random.normal(size=(rows // 4, columns // 8)), random.normal(size=(4, 8))
    parts = {f"{name}.lokr_w{at}": value.astype("f4") for at, value in enumerate(factors, 1)}
    written(tmp_path / "adapter_model.safetensors", parts)
    config = {"peft_type": "LOKR", "r": 8, "alpha": 3, "alpha_pattern": {}, "rank_pattern": {"attn2.to_k": 16}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = sdsurgery.bake(base, [tmp_path], out=tmp_path / "out.safetensors")
    assert f"{tmp_path.name}: applied 1 module (unet 1)" in report.notes
    exact = loaded(base)[SD1_KEY].astype(np.float64) + 3 / 16 * np.kron(*parts.values()).astype(np.float64)
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_KEY], exact)


@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": {}}, {"lora_alpha": 10**400}, {"alpha_pattern": [1]}, {"alpha_pattern": {"(": 1}},
     {"alpha_pattern": {"(a+)+": 1}}],
)  # fmt: skip
def test_settings_of_the_wrong_form_are_refused(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    written(tmp_path / "adapter_model.safetensors", given(base, "base_model.model.")[0])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputRefused, match=r"adapter_config.json: .* must be an? "):
        sdsurgery.bake(base, [tmp_path], out=tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("part", "title"),
    [("ia3_l", "peft's (IA)³"), ("oft_R.weight", "peft's OFT"), ("boft_R", "peft's BOFT"), ("vera_lambda_b", "VeRA")],
)
def test_kinds_of_peft_that_are_not_read_are_named(base: Path, tmp_path: Path, part: str, title: str) -> None:
    given = {f"base_model.model.{MODULE}.{part}": np.ones((4, 1), np.float16)}
    written(tmp_path / "adapter_model.safetensors", given)
    (tmp_path / "adapter_config.json").write_text('{"r": 0}')  # as OFT writes it: its own number is the size of blocks
    with pytest.raises(InputRefused, match=re.escape(f"{title} cannot be read")):
        sdsurgery.bake(base, [tmp_path], out=tmp_path / "out.safetensors")


@pytest.mark.parametrize(("extra", "scale"), [({}, 3 / 4), ({"unet.alpha_pattern": {"attn2.to_k": 12}}, 12 / 4)])
def test_alpha_in_the_metadata(base: Path, tmp_path: Path, extra: dict[str, object], scale: float) -> None:
    parts, product = given(base, "unet.")
    stated = {"unet.r": 4, "unet.lora_alpha": 3, **extra}
    file = written(tmp_path / "a.safetensors", parts, {"lora_adapter_metadata": json.dumps(stated)})
    sdsurgery.bake(base, [file], out=tmp_path / "out.safetensors")
    exact = loaded(base)[SD1_KEY].astype(np.float64) + scale * product
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_KEY], exact)


def test_no_alpha_anywhere_is_a_scale_of_one(base: Path, tmp_path: Path) -> None:
    parts, product = given(base, "unet.")
    sdsurgery.bake(base, [written(tmp_path / "a.safetensors", parts)], out=tmp_path / "out.safetensors")
    exact = loaded(base)[SD1_KEY].astype(np.float64) + product
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_KEY], exact)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_whole_biases_and_weights_that_peft_trains_beside_its_factors(
    base: Path, tmp_path: Path, strength: float
) -> None:
    """``bias="all"`` and ``modules_to_save``, under the names that peft 0.21.2 writes; peft scales only its factors."""
    old, random = loaded(base), np.random.default_rng(0)
    block = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0"
    whole = {
        "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.base_layer.bias":
            f"{block}.attn1.to_out.0.bias",
        "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.norm1.bias": f"{block}.norm1.bias",
        "base_model.model.time_embedding.linear_1.bias": "model.diffusion_model.time_embed.0.bias",
        "base_model.model.conv_in.weight": "model.diffusion_model.input_blocks.0.0.weight",
        "base_model.model.conv_norm_out.weight": "model.diffusion_model.out.0.weight",
    }  # fmt: skip
    trained = {name: random.normal(size=old[key].shape).astype("f4") for name, key in whole.items()}
    parts, product = given(base, "base_model.model.")
    written(tmp_path / "adapter_model.safetensors", parts | trained)
    out = tmp_path / "out.safetensors"
    report = sdsurgery.bake(base, [sdsurgery.Lora(tmp_path, strength)], out=out)
    new = loaded(out)
    for name, key in whole.items():
        assert np.array_equal(new[key], trained[name].astype(new[key].dtype)), key
    rounded_once(new[SD1_KEY], old[SD1_KEY].astype(np.float64) + strength * product)
    assert report.adapters[0]["keys"] == {"applied": len(parts) + len(whole), "ignored": 0, "unmatched": 0}
    assert {key for key in new if not np.array_equal(new[key], old[key])} == {*whole.values(), SD1_KEY}
    assert sdsurgery.inspect(tmp_path / "adapter_model.safetensors").adapter is not None
    with pytest.raises(InputRefused, match=r"is a whole (bias|weight), whose effect depends on the weight"):
        sdsurgery.merge_lora([tmp_path], out=tmp_path / "merged.safetensors", rank=4)
