"""inspect: what an adapter consists of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sdsurgery
from adapter_tools import SD1, SD1_KEY_NAME, SD1_QUERY_NAME, Arrays, delta, loaded, lora, shapes_of, written
from cli_support import sds
from sdsurgery.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def parts(models: Path) -> Arrays:
    shapes, found = shapes_of(models / "b.safetensors"), {}
    for rank, (name, tensor) in enumerate(SD1.items(), 2):
        found |= lora(name, shapes[tensor], seed=rank, rank=rank, alpha=None if name == SD1_QUERY_NAME else 1)
    return found


TEXTS = {
    "ss_output_name": "style",
    "ss_tag_frequency": json.dumps({"10_zx": {"zx style": 20, "1girl": 12}, "5_more": {"1girl": 10}}),
    "ss_base_model_version": "sd_v1",
}


def test_kinds_dialects_ranks_alphas_and_facts_of_training(models: Path, parts: Arrays, tmp_path: Path) -> None:
    more = {"bundle_emb.zx.emb_params": np.zeros((2, 768), "f2"), f"{SD1_KEY_NAME}.dora_scale": np.ones((40, 1), "f2")}
    file = written(tmp_path / "a.safetensors", parts | more, TEXTS)
    found = sdsurgery.inspect(file).adapter
    assert found is not None
    assert found.base == "sd1" and found.kinds == {"LoRA": 3} and found.dialects == {"kohya": 3}
    assert found.components == {"unet": 2, "text_encoder": 1}
    assert found.ranks == {"2": 1, "3": 1, "4": 1} and found.alphas == {"1": 2, "none": 1}
    assert found.decomposed == 1 and found.embeddings == ["zx"]
    assert found.training["trigger_words"] == ["1girl", "zx style"] and found.training["name"] == "style"
    assert sdsurgery.inspect(models / "a.safetensors").adapter is None


def test_strengths_beside_a_base_model(models: Path, parts: Arrays, tmp_path: Path) -> None:
    file, base = written(tmp_path / "a.safetensors", parts), models / "b.safetensors"
    found = sdsurgery.inspect(file, base=base).adapter
    assert found is not None and set(found.strengths) == set(SD1.values())
    for name, tensor in SD1.items():
        weight = loaded(base)[tensor].astype(np.float64)
        exact = np.sqrt((delta(parts, name) ** 2).sum() / (weight**2).sum())
        if name == SD1_QUERY_NAME:  # no alpha: not alpha = rank, as the helper takes it, but a scale of 1
            assert f"{name}.alpha" not in parts
        assert abs(found.strengths[tensor] / exact - 1) < 1e-3


def test_a_folder_of_peft(models: Path, tmp_path: Path) -> None:
    name = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    shapes = {"lora_A": (4, 768), "lora_B": (40, 4)}
    parts = {f"{name}.{part}.weight": np.ones(shape, "f4") for part, shape in shapes.items()}
    written(tmp_path / "adapter_model.safetensors", parts)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "use_rslora": True}))
    found = sdsurgery.inspect(tmp_path).adapter
    assert found is not None and found.dialects == {"peft": 1} and found.alphas == {"16": 1} and found.rescaled == 1
    assert "modules: unet 1" in found.lines() and "alpha: 16, divided by √rank (rs-LoRA 1)" in found.lines()[2]


def test_what_is_refused(models: Path, parts: Arrays, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an adapter"):
        sdsurgery.inspect(models / "a.safetensors", base=models / "b.safetensors")
    with pytest.raises(InputRefused, match="without a weights file"):
        sdsurgery.inspect(tmp_path)


def test_the_command_line(models: Path, parts: Arrays, tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", parts, TEXTS)
    done = sds("inspect", file, "--base", models / "b.safetensors")
    assert done.rc == 0, done.err
    for text in ("adapter: LoRA, names of kohya, for sd1", "rank: 2 1, 3 1, 4 1", "trigger words: 1girl, zx style",
                 "attn2.to_k.weight\nstrength"):  # fmt: skip
        assert text in done.out, done.out
    assert sds("inspect", file, "--json").json()["adapter"]["base"] == "sd1"
