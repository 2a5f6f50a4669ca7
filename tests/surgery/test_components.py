"""extract and replace: components out of a checkpoint and into one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import sdsurgery
from cli_support import Raw, done, f32, read_raw, refused, sds, transposed, write_raw
from diffusers_files import as_diffusers
from sdsurgery.testing import write_checkpoint

VAE = "first_stage_model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("components")
    write_checkpoint(folder / "a.safetensors", "sd1", size="tiny", metadata={"note": "kept"})
    write_checkpoint(folder / "b.safetensors", "sd1", size="tiny", seed=1, dtype="fp32")
    write_checkpoint(folder / "xl.safetensors", "sdxl-base", size="tiny")
    write_checkpoint(folder / "xl2.safetensors", "sdxl-base", size="tiny", seed=2)
    return folder


def raw(path: Path) -> dict[str, Raw]:
    return read_raw(path)[0]


def baked(base: dict[str, Raw], donor: dict[str, Raw], prefix: str = VAE) -> dict[str, Raw]:
    return {name: donor[name] if name.startswith(prefix) else value for name, value in base.items()}


@pytest.mark.parametrize(
    ("component", "prefix"),
    [("vae", VAE), ("unet", "model.diffusion_model."), ("text_encoder", "cond_stage_model.transformer.")],
)
def test_extract_takes_one_component(component: str, prefix: str, models: Path, tmp_path: Path) -> None:
    whole = {name: value for name, value in raw(models / "a.safetensors").items() if name.startswith(prefix)}
    said = done(sds("extract", models / "a.safetensors", "--component", component, "-o", tmp_path / "o.safetensors"))
    assert ("need --strip-prefix" in said.err) == (component != "unet"), "programs find a U-Net under both"
    assert read_raw(tmp_path / "o.safetensors")[0] == whole
    assert read_raw(tmp_path / "o.safetensors")[1]["note"] == "kept"
    bare = tmp_path / "bare.safetensors"
    said = done(sds("extract", models / "a.safetensors", "--component", component, "--strip-prefix", "-o", bare))
    assert "need --strip-prefix" not in said.err
    assert raw(bare) == {name.removeprefix(prefix): value for name, value in whole.items()}
    back = tmp_path / "back.safetensors"  # and what was extracted goes in again, with and without its prefix
    done(sds("replace", models / "b.safetensors", "--component", component, "--with", bare, "-o", back))
    assert raw(back) == baked(raw(models / "b.safetensors"), raw(models / "a.safetensors"), prefix)


def test_a_vae_is_baked_from_a_full_checkpoint(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "o.safetensors"
    done(sds("replace", a, "--component", "vae", "--with", b, "-o", out))
    assert raw(out) == baked(raw(a), raw(b))
    assert read_raw(out)[1]["note"] == "kept"


def test_diffusers_and_old_vae_names_are_understood(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    new = as_diffusers(b, "sd1", "vae")
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(new)
    for name in new:
        for fresh, stale in renamed.items():
            if f".attentions.0.{fresh}." in name:
                old[name.replace(fresh, stale)] = old.pop(name)
    assert old.keys() != new.keys()
    for number, tensors in enumerate((new, old)):
        donor = write_raw(tmp_path / f"vae{number}.safetensors", tensors)
        out = tmp_path / f"o{number}.safetensors"
        done(sds("replace", a, "--component", "vae", "--with", donor, "-o", out))
        assert raw(out) == baked(raw(a), raw(b))


def test_a_diffusers_unet_and_two_replacements_in_one_pass(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "o.safetensors"
    unet = write_raw(tmp_path / "unet.safetensors", as_diffusers(b, "sd1", "unet"))
    done(sds("replace", a, "--component", "unet", "--with", unet, "--component", "vae", "--with", b, "-o", out))
    wanted = baked(baked(raw(a), raw(b)), raw(b), "model.diffusion_model.")
    assert raw(out) == wanted


@pytest.mark.parametrize(
    ("family", "place", "absent"),
    [
        ("sd1", "cond_stage_model.", []),
        ("sd2", "cond_stage_model.", ["text_projection", "logit_scale", "transformer.resblocks.23."]),
        ("sdxl-base", "conditioner.embedders.0.", []),
        ("sdxl-base", "conditioner.embedders.1.", ["logit_scale"]),
    ],
)
@pytest.mark.parametrize("bare", [False, True], ids=["with text_model.", "without"])
def test_text_encoders_of_diffusers_are_understood(
    family: str, place: str, absent: list[str], bare: bool, tmp_path: Path
) -> None:
    """OpenCLIP's fused attention is joined, its projection transposed; what diffusers leaves out stays."""
    component = "text_encoder_2" if "embedders.1" in place else "text_encoder"
    a, b, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, family, size="tiny", seed=seed)
    donor = as_diffusers(b, family, component)
    if bare:
        donor = {name.removeprefix("text_model."): value for name, value in donor.items()}
    given = write_raw(tmp_path / "donor.safetensors", donor)
    asked = ("replace", a, "--component", component, "--with", given, "-o", out)
    said = done(sds(*asked)).err
    assert all(name in said for name in absent)
    own = tuple(place + "model." + name for name in absent)
    before = raw(a)
    wanted = baked(before, raw(b), place)
    assert raw(out) == {name: before[name] if own and name.startswith(own) else wanted[name] for name in wanted}


@pytest.mark.parametrize("family", ["sd2", "sdxl-base"])
def test_an_openclip_encoder_goes_out_under_open_clip_s_names_and_in_again(family: str, tmp_path: Path) -> None:
    place, component = {
        "sd2": ("cond_stage_model.", "text_encoder"),
        "sdxl-base": ("conditioner.embedders.1.", "text_encoder_2"),
    }[family]
    a, b, alone, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "alone", "out"))
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, family, size="tiny", seed=seed)
    sdsurgery.extract(b, component, out=alone, strip_prefix=True)
    assert {"positional_embedding", "ln_final.weight", "transformer.resblocks.0.attn.in_proj_weight"} < raw(
        alone
    ).keys()
    assert sdsurgery.inspect(alone).family in ("openclip-h", "openclip-g")
    sdsurgery.replace(a, {component: alone}, out=out)
    assert raw(out) == baked(raw(a), raw(b), place)


def test_a_clip_g_file_of_comfyui_is_a_donor(tmp_path: Path) -> None:
    """transformers' names with ``logit_scale`` beside them, which the family may lack, or without it."""
    a, b, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, "sdxl-base", size="tiny", seed=seed)
    place = "conditioner.embedders.1."
    given = as_diffusers(b, "sdxl-base", "text_encoder_2")
    scale = raw(b)[place + "model.logit_scale"]
    for donor, own in ((given | {"logit_scale": scale}, b), (given, a)):
        path = write_raw(tmp_path / "ClipG.safetensors", donor)
        done(sds("replace", a, "--component", "text_encoder_2", "--with", path, "-o", out, "--force"))
        wanted = baked(raw(a), raw(b), place)
        assert raw(out) == {**wanted, place + "model.logit_scale": raw(own)[place + "model.logit_scale"]}


def test_a_donor_with_the_transposed_projection_of_old_converters(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "xl.safetensors", raw(models / "xl2.safetensors"), tmp_path / "o.safetensors"
    place = "conditioner.embedders.1.model.text_projection"
    donor = {**b, place + ".weight": transposed(b[place])}
    del donor[place]
    given = write_raw(tmp_path / "donor.safetensors", donor)
    done(sds("replace", a, "--component", "text_encoder_2", "--with", given, "-o", out, "--dtype", "fp32"))
    sdsurgery.replace(
        a, {"text_encoder_2": models / "xl2.safetensors"}, out=tmp_path / "want.safetensors", dtype="fp32"
    )
    assert raw(out) == raw(tmp_path / "want.safetensors")


def test_absent_and_extra_keys_are_refused_unless_allowed(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", raw(models / "b.safetensors"), tmp_path / "o.safetensors"
    lacking = VAE + "quant_conv.bias"
    vae = {name: value for name, value in b.items() if name.startswith(VAE) and name != lacking}
    donor = write_raw(tmp_path / "donor.safetensors", {**vae, VAE + "decoder.more": ("F32", [1], f32(1))})
    asked = ("replace", a, "--component", "vae", "--with", donor, "-o", out)
    refused(sds(*asked), 3, lacking, "decoder.more", "--allow-missing")
    assert not out.exists()
    done(sds(*asked, "--allow-missing"))
    assert raw(out) == baked(raw(a), {**b, lacking: raw(a)[lacking]})


def test_the_recipe_names_the_donors_with_their_hashes(models: Path, tmp_path: Path) -> None:
    a, b, c, out = (
        models / "a.safetensors",
        models / "b.safetensors",
        tmp_path / "vae.safetensors",
        tmp_path / "o.safetensors",
    )
    sdsurgery.extract(b, "vae", out=c)
    report = sdsurgery.replace(a, {"text_encoder": b, "vae": c}, out=out)
    recipe = json.loads(read_raw(out)[1]["sd_merge_recipe"])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b, c)]
    assert [model["sha256"] for model in recipe["models"]] == digests == report.sha256
    assert [model["name"] for model in recipe["models"]] == ["a", "b", "vae"]
    assert recipe["parameters"]["components"] == {"text_encoder": "b.safetensors", "vae": "vae.safetensors"}
    assert set(json.loads(read_raw(out)[1]["sd_merge_models"])) >= set(digests)


def test_matrices_and_1x1_convolutions_are_the_same_in_both_directions(models: Path, tmp_path: Path) -> None:
    names = [VAE + f"{half}.mid.attn_1.{leaf}.weight" for half in ("encoder", "decoder") for leaf in ("q", "proj_out")]
    flat = raw(models / "b.safetensors")
    for name in names:
        dtype, shape, data = flat[name]
        assert list(shape)[2:] == [1, 1]
        flat[name] = (dtype, list(shape)[:2], data)
    matrices = write_raw(tmp_path / "flat.safetensors", flat)
    for base, donor in ((models / "a.safetensors", matrices), (matrices, models / "a.safetensors")):
        out = tmp_path / "o.safetensors"
        sdsurgery.replace(base, {"vae": donor}, out=out, overwrite=True)
        found, own, given = raw(out), raw(base), raw(donor)
        for name in names:
            assert found[name] == (given[name][0], list(own[name][1]), given[name][2]), "the checkpoint's shape is kept"


def test_other_refusals(models: Path, tmp_path: Path) -> None:
    a, out = models / "a.safetensors", tmp_path / "o.safetensors"
    odd = write_raw(tmp_path / "odd.safetensors", {"w": ("F32", [1], f32(1))})
    refused(sds("extract", odd, "--component", "vae", "-o", out), 3, "no tensors of component vae")
    refused(sds("extract", a, "--component", "vea", "-o", out), 2, "'vae'")
    refused(sds("replace", a, "--component", "vae", "--with", odd, "-o", out), 3, "none of the", "family unknown")
    xl = models / "xl.safetensors"
    refused(sds("replace", a, "--component", "text_encoder", "--with", xl, "-o", out), 3, "sdxl-base", "OpenCLIP-bigG")
    refused(sds("replace", a, "--component", "vae", "-o", out), 2, "--with")
    bent = raw(models / "b.safetensors")
    dtype, shape, data = bent[VAE + "quant_conv.bias"]
    donor = write_raw(tmp_path / "bent.safetensors", {**bent, VAE + "quant_conv.bias": (dtype, [*shape, 1], data)})
    refused(sds("replace", a, "--component", "vae", "--with", donor, "-o", out), 3, "quant_conv.bias", "shape")
    assert not out.exists()


def test_a_donor_is_cast_when_a_dtype_is_asked_for(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    sdsurgery.replace(models / "a.safetensors", {"vae": models / "b.safetensors"}, out=out, dtype="fp16")
    assert {value[0] for name, value in raw(out).items() if name.startswith(VAE)} == {"F16"}


def test_tensors_are_taken_by_the_beginning_of_their_names_or_by_an_expression(models: Path, tmp_path: Path) -> None:
    """A ControlNet inside a training checkpoint, say."""
    model = raw(models / "a.safetensors")
    net = {f"control_model.zero_convs.{n}.0.bias": ("F32", [1], f32(n)) for n in range(3)}
    path, out = write_raw(tmp_path / "trained.safetensors", {**model, **net}), tmp_path / "o.safetensors"
    bare = {name.removeprefix("control_model."): value for name, value in net.items()}
    for words in (["--prefix", "control_model."], ["--keys", r"^control_model\."], ["--component", "controlnet"]):
        done(sds("extract", path, *words, "-o", out, "--force"))
        assert raw(out) == net
    for words in (["--prefix", "control_model."], ["--component", "controlnet"]):
        done(sds("extract", path, *words, "--strip-prefix", "-o", out, "--force"))
        assert raw(out) == bare
    done(sds("extract", path, "--keys", r"zero_convs\.[01]", "--strip-prefix", "-o", out, "--force"))
    assert set(raw(out)) == {"0.0.bias", "1.0.bias"}
    refused(sds("extract", path, "--prefix", "nothing.", "-o", out, "--force"), 3, "'nothing.'", "control_model.")
    refused(sds("extract", path, "--keys", "(", "-o", out, "--force"), 2, "regular expression")
    refused(sds("extract", path, "--keys", "x", "--prefix", "y", "-o", out, "--force"), 2, "not allowed with")
    refused(sds("extract", path, "-o", out, "--force"), 2, "--component")


def test_components_are_known_by_other_words_and_letters(models: Path, tmp_path: Path) -> None:
    for word, component in (("VAE", "vae"), ("clip", "text_encoder"), ("UNet", "unet")):
        a, b = tmp_path / f"{word}.safetensors", tmp_path / f"{component}-b.safetensors"
        done(sds("extract", models / "a.safetensors", "--component", word, "-o", a))
        done(sds("extract", models / "a.safetensors", "--component", component, "-o", b))
        assert raw(a) == raw(b)


def test_a_wide_donor_makes_an_inpainting_model(models: Path, tmp_path: Path) -> None:
    wide, out = tmp_path / "wide.safetensors", tmp_path / "o.safetensors"
    write_checkpoint(wide, "sd1-inpainting", size="tiny", seed=7)
    report = sdsurgery.replace(models / "a.safetensors", {"unet": wide}, out=out)
    assert raw(out) == baked(raw(models / "a.safetensors"), raw(wide), "model.diffusion_model.")
    assert report.family == sdsurgery.inspect(out).family == "sd1-inpainting"
    assert read_raw(out)[1]["modelspec.architecture"] == "stable-diffusion-v1-inpainting"
    back = tmp_path / "back.safetensors"
    sdsurgery.replace(out, {"unet": models / "a.safetensors"}, out=back)
    assert sdsurgery.inspect(back).family == "sd1"


@pytest.mark.parametrize("word", ["float16", "half", "FP16", "torch.float16"])
def test_dtypes_are_known_by_the_words_of_other_programs(word: str, models: Path, tmp_path: Path) -> None:
    done(sds("cast", models / "a.safetensors", "--dtype", word, "--output", tmp_path / "o.safetensors"))
    assert {value[0] for name, value in raw(tmp_path / "o.safetensors").items() if name.startswith(VAE)} == {"F16"}
