"""--fix-clip and --fix-names: what every verb that writes a checkpoint repairs on request, and what inspect says."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from cli_support import Raw, done, f32, floats, read_raw, refused, sds, transposed, write_raw
from sdsurgery.testing import write_checkpoint

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
IDS = CLIP + "text_model.embeddings.position_ids"
RIGHT: Raw = ("I64", [1, 77], struct.pack("<77q", *range(77)))
WRONG: Raw = ("F16", [1, 77], struct.pack("<77e", *range(76), 75.5))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``new`` and ``other`` are sd1 with EMA as it should be, ``bad`` is ``new`` with wrong position_ids."""
    folder = tmp_path_factory.mktemp("repairs")
    for seed, name in enumerate(("new", "other")):
        write_checkpoint(folder / f"{name}.safetensors", "sd1", size="tiny", seed=seed, ema=True)
    write_raw(folder / "bad.safetensors", {**read_raw(folder / "new.safetensors")[0], IDS: WRONG})
    return folder


# ---- --fix-clip

VERBS: dict[str, tuple[str, ...]] = {
    "merge": ("merge", "{bad}", "{other}", "--method", "weighted-sum"),
    "cast": ("cast", "{bad}", "--dtype", "bf16"),
    "ema": ("ema", "{bad}"),
    "to-ema": ("ema", "{plain}", "--to-ema"),
    "prune": ("prune", "{bad}", "--preset", "inference"),
    "extract": ("extract", "{bad}", "--component", "text_encoder"),
    "replace": ("replace", "{bad}", "--component", "vae", "--with", "{other}"),
    "replaced": ("replace", "{other}", "--component", "text_encoder", "--with", "{bad}"),
    "convert": ("convert", "{bad}"),
    "fix-clip": ("fix-clip", "{bad}"),
}


def words(verb: str, folder: Path, tmp_path: Path) -> list[str]:
    plain = tmp_path / "plain.safetensors"
    if "{plain}" in VERBS[verb]:
        sdsurgery.prune(folder / "bad.safetensors", preset="no-ema", out=plain, sync=False)
    paths = {name: folder / f"{name}.safetensors" for name in ("bad", "other")} | {"plain": plain}
    return [word.format(**paths) for word in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
def test_every_writing_verb_fixes_position_ids_on_request(verb: str, models: Path, tmp_path: Path) -> None:
    command = [*words(verb, models, tmp_path), "--no-sync"]
    left, fixed = tmp_path / "left.safetensors", tmp_path / "fixed.safetensors"
    done(sds(*command, "-o", left))
    report = done(sds(*command, "--fix-clip", "-o", fixed, "--json")).json()
    before, after = read_raw(left)[0], read_raw(fixed)[0]
    assert after == {**before, IDS: RIGHT}
    if verb != "fix-clip":
        assert before[IDS] == WRONG, "only when asked"
        assert any("75.5 at 76" in note for note in report["notes"])
    assert json.loads(read_raw(fixed)[1]["sd_merge_recipe"])["fix_clip"] is True


def test_missing_ids_are_added_also_without_a_prefix(models: Path, tmp_path: Path) -> None:
    tensors = {name: raw for name, raw in read_raw(models / "new.safetensors")[0].items() if name != IDS}
    path = write_raw(tmp_path / "in.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    sdsurgery.extract(path, "text_encoder", strip_prefix=True, out=out, fix_clip=True)
    assert read_raw(out)[0][IDS.removeprefix(CLIP)] == RIGHT


def test_a_separate_text_encoder_is_repaired_where_its_names_identify_it(models: Path, tmp_path: Path) -> None:
    encoder, out = tmp_path / "encoder.safetensors", tmp_path / "out.safetensors"
    sdsurgery.extract(models / "bad.safetensors", "text_encoder", out=encoder)
    assert sdsurgery.inspect(encoder).family == "clip-l"
    sdsurgery.fix_clip(encoder, out=out)
    assert read_raw(out)[0] == {**read_raw(encoder)[0], IDS: RIGHT}


def test_no_verb_averages_position_ids(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    sdsurgery.merge("weighted-sum", [models / "bad.safetensors", models / "other.safetensors"], alpha=0.5, out=out)
    assert read_raw(out)[0][IDS] == WRONG
    sdsurgery.cast(models / "bad.safetensors", dtype="fp32", out=out, overwrite=True)
    assert read_raw(out)[0][IDS] == WRONG


# ---- --fix-names


def nai(tensors: dict[str, Raw]) -> dict[str, Raw]:
    return {name.replace(CLIP + "text_model.", CLIP): raw for name, raw in tensors.items()}


def old_vae(tensors: dict[str, Raw], query: str = "query key value proj_attn") -> dict[str, Raw]:
    """The VAE's attention in old names, its weights as matrices."""
    new = dict(zip(["q", "k", "v", "proj_out"], query.split(), strict=True))
    found: dict[str, Raw] = {}
    for name, (dtype, shape, data) in tensors.items():
        head, middle, rest = name.partition(".mid.attn_1.")
        module, _, leaf = rest.rpartition(".")
        if middle and module in new:
            found[f"{head}{middle}{new[module]}.{leaf}"] = (dtype, list(shape)[:2], data)
        else:
            found[name] = (dtype, shape, data)
    return found


def nested(tensors: dict[str, Raw], wrapper: str) -> dict[str, Raw]:
    return {wrapper + name: raw for name, raw in tensors.items()}


OLD = {
    "without text_model": nai,
    "old VAE attention": old_vae,
    "diffusers' VAE attention": lambda tensors: old_vae(tensors, "to_q to_k to_v to_out.0"),
    "state_dict.": lambda tensors: nested(tensors, "state_dict."),
    "state_dict. twice": lambda tensors: nested(tensors, "state_dict.state_dict."),
    "model.": lambda tensors: nested(tensors, "model."),
    "module.": lambda tensors: nested(tensors, "module."),
    "all at once": lambda tensors: nested(nai(old_vae(tensors)), "state_dict."),
}


VERB_AND_KIND = [
    (verb, "all at once") for verb in ("merge", "ema", "prune", "extract", "replace", "convert", "fix-clip")
]


@pytest.mark.parametrize(("verb", "kind"), [*VERB_AND_KIND, *(("cast", kind) for kind in OLD)])
def test_every_writing_verb_repairs_names_on_request(verb: str, kind: str, models: Path, tmp_path: Path) -> None:
    new, other = models / "new.safetensors", models / "other.safetensors"
    old = write_raw(tmp_path / "old.safetensors", OLD[kind](read_raw(new)[0]), {"note": "kept"})
    want, got = tmp_path / "want.safetensors", tmp_path / "got.safetensors"
    for path, out, more in ((new, want, {}), (old, got, {"fix_names": True})):
        settings: dict[str, Any] = {"out": out, "sync": False, **more}
        if verb == "merge":
            sdsurgery.merge("weighted-sum", [path, other], alpha=0.25, use_ema="A", **settings)
        elif verb == "extract":
            sdsurgery.extract(path, "vae", **settings)
        elif verb == "replace":
            sdsurgery.replace(other, {"vae": path, "text_encoder": path}, **settings)
        else:
            getattr(sdsurgery, verb.replace("-", "_"))(path, **settings)
    assert read_raw(got)[0] == read_raw(want)[0]


def test_a_merge_pairs_an_old_b_with_a_new_a_and_says_what_it_did(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "new.safetensors", tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    write_raw(b, nai(read_raw(models / "other.safetensors")[0]))
    merge = ("merge", a, b, "--method", "weighted-sum", "--no-sync", "--json", "-o", out)
    assert any("197 tensors found under other names" in note for note in done(sds(*merge)).json()["notes"])
    report = done(sds(*merge, "--fix-names", "--force")).json()
    assert report["missing"] == {}
    assert any("197 names repaired" in note for note in report["notes"])
    assert report["recipe"]["fix_names"] is True
    name = CLIP + "text_model.final_layer_norm.bias"
    left, right = (floats(read_raw(path)[0][name]) for path in (a, models / "other.safetensors"))
    want = [struct.unpack("<e", struct.pack("<e", (x + y) / 2))[0] for x, y in zip(left, right, strict=True)]
    assert floats(read_raw(out)[0][name]) == want


def test_inspect_says_that_names_are_old(models: Path, tmp_path: Path) -> None:
    assert not [note for note in sdsurgery.inspect(models / "new.safetensors").notes if "name" in note]
    path = write_raw(tmp_path / "old.safetensors", nested(nai(read_raw(models / "new.safetensors")[0]), "state_dict."))
    found = sdsurgery.inspect(path)
    assert any("fix_names=True" in note and "old or foreign name" in note for note in found.notes)
    assert (found.family, found.ema) == ("sd1", "full")


def test_old_names_stay_unless_asked(models: Path, tmp_path: Path) -> None:
    tensors = nai(read_raw(models / "new.safetensors")[0])
    path, out = write_raw(tmp_path / "old.safetensors", tensors), tmp_path / "o.safetensors"
    sdsurgery.cast(path, out=out)
    assert read_raw(out)[0] == tensors


def test_two_names_of_one_tensor_with_the_same_values_become_one(models: Path, tmp_path: Path) -> None:
    """What inspect advises works: also for a text projection under both names, the second transposed."""
    projection = "conditioner.embedders.1.model.text_projection"
    for family, name in (("new", CLIP + "text_model.final_layer_norm.bias"), ("xl", projection)):
        if family == "xl":
            write_checkpoint(tmp_path / "xl.safetensors", "sdxl-base", size="tiny")
        tensors = read_raw((models if family == "new" else tmp_path) / f"{family}.safetensors")[0]
        dtype, shape, data = tensors[name]
        second = name.replace("text_model.", "")
        if family == "xl":
            rows = np.frombuffer(data, "<f2").reshape(shape)
            second, data = name + ".weight", rows.T.tobytes()
        path = write_raw(tmp_path / "both.safetensors", {**tensors, second: (dtype, shape, data)})
        assert any("fix_names=True" in note and second in note for note in sdsurgery.inspect(path).notes)
        done(sds("cast", path, "--fix-names", "-o", tmp_path / f"{family}-out.safetensors"))
        assert read_raw(tmp_path / f"{family}-out.safetensors")[0] == tensors


def test_biases_of_three_dimensions_get_the_family_s_shape_and_merge_without_it(models: Path, tmp_path: Path) -> None:
    tensors = read_raw(models / "new.safetensors")[0]
    biases = [name for name in tensors if ".mid.attn_1." in name and name.endswith(".bias") and ".norm." not in name]
    assert len(biases) == 8
    bent = {name: (raw[0], [*raw[1], 1, 1] if name in biases else raw[1], raw[2]) for name, raw in tensors.items()}
    path, out = write_raw(tmp_path / "bent.safetensors", bent), tmp_path / "out.safetensors"
    assert any("shapes" in note and "8 in all" in note for note in sdsurgery.inspect(path).notes)
    done(sds("cast", path, "--fix-names", "-o", out))
    assert read_raw(out)[0] == tensors
    done(sds("merge", "--method", "weighted-sum", models / "new.safetensors", path, "-o", out, "--force"))


def test_two_names_of_one_tensor_are_refused(models: Path, tmp_path: Path) -> None:
    tensors = read_raw(models / "new.safetensors")[0]
    name = CLIP + "text_model.final_layer_norm.bias"
    other = (tensors[name][0], tensors[name][1], bytes(len(tensors[name][2])))
    path = write_raw(tmp_path / "both.safetensors", {**tensors, name.replace("text_model.", ""): other})
    refused(sds("cast", path, "--fix-names", "-o", tmp_path / "o.safetensors"), 3, "two names of one tensor", name)
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("dtype", ["keep", "fp32"])
def test_a_transposed_projection_gets_its_name_and_its_rows(dtype: str, tmp_path: Path) -> None:
    path, out, want = tmp_path / "xl.safetensors", tmp_path / "o.safetensors", tmp_path / "want.safetensors"
    write_checkpoint(path, "sdxl-base", size="tiny")
    sdsurgery.cast(path, dtype=dtype, out=want)
    tensors = read_raw(path)[0]
    place = "conditioner.embedders.1.model.text_projection"
    tensors[place + ".weight"] = transposed(tensors.pop(place))
    write_raw(path, tensors)
    report = sdsurgery.cast(path, fix_names=True, dtype=dtype, out=out)
    assert read_raw(out)[0] == read_raw(want)[0]
    assert any("transposed" in note for note in report.notes)
    tensors[place + ".weight"] = ("F16", [4], bytes(8))
    write_raw(path, tensors)
    refused(sds("cast", path, "--fix-names", "--force", "-o", out), 3, place + ".weight", "matrix")


def test_files_of_unknown_families_lose_only_their_wrappers(tmp_path: Path) -> None:
    one: Raw = ("F32", [1], f32(1))
    path = write_raw(tmp_path / "in.safetensors", {"state_dict.w": one, "lora_unet_x.alpha": one})
    sdsurgery.cast(path, fix_names=True, out=tmp_path / "o.safetensors")
    assert set(read_raw(tmp_path / "o.safetensors")[0]) == {"w", "lora_unet_x.alpha"}
