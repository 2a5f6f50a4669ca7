"""The words of other programs, and names that are nearly right, are understood or answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, plain, refused, sds, write_raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("words")
    for name, value in (("DreamMix_v8", 1.0), ("anything-V3", 2.0), ("base", 4.0)):
        plain(made / f"{name}.safetensors", value, names=("x", "y"))
    return made


AB = ("DreamMix_v8.safetensors", "anything-V3.safetensors")


@pytest.mark.parametrize("word", ["fp16", "float16", "half", "FP16", "torch.float16", "Half"])
def test_dtypes_in_the_words_of_others(folder: Path, tmp_path: Path, word: str) -> None:
    report = done(sds("cast", AB[0], "--dtype", word, "-o", tmp_path / "o.safetensors", "--json", cwd=folder)).json()
    assert (
        report["recipe"]["dtype"] == sdsurgery.cast(folder / AB[0], dtype=word, dry_run=True).recipe["dtype"] == "fp16"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [("clip", "text_encoder"), ("VAE", "vae"), ("text-encoder", "text_encoder"), ("U-Net", "unet"),
     ("CLIP_G", "text_encoder_2"), ("first_stage_model", "vae")],
)  # fmt: skip
def test_components_in_the_words_of_others(tmp_path: Path, word: str, meant: str) -> None:
    from sdsurgery.testing import write_checkpoint

    write_checkpoint(tmp_path / "a.safetensors", "sdxl-base", size="tiny")
    report = sdsurgery.extract(tmp_path / "a.safetensors", word, dry_run=True)
    assert report.recipe["parameters"]["component"] == meant


@pytest.mark.parametrize("option", ["--alpha", "--ratio", "--multiplier"])
def test_the_ratio_in_the_words_of_others(folder: Path, tmp_path: Path, option: str) -> None:
    merge = ("merge", "--method", "Weighted sum", *AB, option, "0.25", "--output", tmp_path / "o.safetensors", "--json")
    assert done(sds(*merge, cwd=folder)).json()["recipe"]["parameters"]["alpha"] == 0.25
    report = sdsurgery.merge("add_difference", [folder / AB[0]] * 3, multiplier=0.5, dry_run=True)
    assert report.recipe["parameters"]["alpha"] == 0.5


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (("DreamMix.safetensors", AB[1]), 3, "did you mean 'DreamMix_v8.safetensors'?"),
        (("DreamMix_v8", AB[1]), 3, "did you mean 'DreamMix_v8.safetensors'?"),
        (("dreammix_V8.ckpt", AB[1]), 3, "did you mean 'DreamMix_v8.safetensors'?"),
        (("nowhere/a.safetensors", AB[1]), 3, "there is no folder 'nowhere'"),
        ((AB[0], AB[1], "bass.safetensors"), 3, "did you mean 'base.safetensors'?"),
        ((*AB, "--blocks", "0", "0.5", "1"), 2, "0.5,1"),
        ((*AB, "--blocks", "0 0.5 1"), 2, "separate the numbers of a list with commas: 0,0.5,1"),
        ((*AB, "--alpha", "30%"), 2, "did you mean 0.3?"),
        ((*AB, "--alpha", "0,3"), 2, "a decimal is written 0.3"),
        ((*AB, "--half"), 2, "did you mean '--dtype fp16'?"),
        ((*AB, "--save_precision", "fp16"), 2, "did you mean '--dtype'?"),
        ((*AB, "--overwrite"), 2, "did you mean '--force'?"),
    ],
)
def test_what_is_nearly_right_is_answered_with_what_was_meant(
    folder: Path, words: tuple[str, ...], code: int, answer: str
) -> None:
    line = refused(sds("merge", "--method", "weighted-sum", *words, "-o", "o.safetensors", cwd=folder), code)
    assert answer in line


def test_adapters_may_stand_behind_the_checkpoint(tmp_path: Path) -> None:
    from sdsurgery.adapters.lora import parse
    from sdsurgery.testing import write_checkpoint

    for text, strength, te in (("x", 1, None), ("x=0.8", 0.8, None), ("x:0.8", 0.8, None), ("x:-1,te=0.3", -1, 0.3)):
        (found,) = parse(text)
        assert (found.path, found.strength, found.te) == ("x", strength, te)
    for wrong in ("x=", "x=much", "x=0.5,te="):
        with pytest.raises(sdsurgery.UsageError, match="is not a number"):
            parse(wrong)
    a, lora = tmp_path / "a.safetensors", tmp_path / "lora.safetensors"
    write_checkpoint(a, "sd1", size="tiny")
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    up, down = ("F16", [640, 1], bytes(1280)), ("F16", [1, 768], bytes(1536))
    write_raw(lora, {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down})
    for words in ((f"{lora}:0.5",), ("--lora", f"{lora}=0.5")):
        answer = done(sds("bake", a, *words, "--dry-run", "--json")).json()
        assert answer["formula"] == "a + 0.5 × lora"
    assert "--lora FILE" in refused(sds("bake", a, "--dry-run"), 2)
