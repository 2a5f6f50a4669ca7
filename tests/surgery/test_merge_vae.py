"""merge --vae: another file's VAE baked in the same pass."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import encoded_files
import numpy as np
import pytest
import sdsurgery
from cli_support import done, read_raw, refused, sds, write_raw
from diffusers_files import as_diffusers
from sdsurgery.layouts import get
from sdsurgery.testing import write_checkpoint

VAE = "first_stage_model."


def is_vae(name: str) -> bool:
    return name.startswith(VAE)


@pytest.fixture(scope="module")
def replaced(models: Path) -> Path:
    """B and C merged, then A's VAE put in: what one pass must give."""
    first, out = models / "first.safetensors", models / "replaced.safetensors"
    sdsurgery.merge("weighted-sum", [models / "b.safetensors", models / "c.safetensors"], alpha=0.3, out=first)
    sdsurgery.replace(first, {"vae": models / "a.safetensors"}, out=out)
    return out


def merged(models: Path, vae: object, out: Path, *more: object) -> Path:
    inputs = (models / "b.safetensors", models / "c.safetensors")
    done(sds("merge", "--method", "weighted-sum", *inputs, "--alpha", "0.3", "--vae", vae, "-o", out, *more))
    return out


@pytest.mark.parametrize("donor", ["a checkpoint", "with its prefix", "bare", "in diffusers names"])
def test_the_same_bytes_as_a_merge_and_a_replacement(donor: str, models: Path, replaced: Path, tmp_path: Path) -> None:
    a, vae = models / "a.safetensors", tmp_path / "kl.safetensors"
    if donor == "in diffusers names":
        write_raw(vae, as_diffusers(a, "sd1", "vae"))
    elif donor == "a checkpoint":
        vae = a
    else:
        sdsurgery.extract(a, "vae", strip_prefix=donor == "bare", out=vae)
    out = merged(models, vae, tmp_path / "out.safetensors")
    assert read_raw(out)[0] == read_raw(replaced)[0]
    recipe = sdsurgery.inspect(out).recipe
    assert (recipe["vae"], recipe["bake_in_vae"]) == (vae.name, vae.name)
    assert [model["name"] for model in recipe["models"]] == ["b", "c", vae.stem]
    assert f"out = 0.7·b + 0.3·c, VAE of {vae.stem}" in done(sds("inspect", out)).out


def test_an_encoded_vae_is_decoded(models: Path, tmp_path: Path) -> None:
    name = f"{VAE}encoder.mid.attn_1.q"
    stored = {key: value for key, value in read_raw(models / "a.safetensors")[0].items() if is_vae(key)}
    rows = stored.pop(f"{name}.weight")[1][0]
    layer, weights = encoded_files.layer("fp8 of one scale", rows, rows)
    vae = encoded_files.write(tmp_path / "vae.safetensors", {**stored, **encoded_files.below(name, layer)})
    out = merged(models, vae, tmp_path / "out.safetensors")
    with sdsurgery.open(out) as found:
        assert np.array_equal(found.numpy(f"{name}.weight").reshape(rows, rows), weights.astype(np.float16))
        assert not [key for key in found if "scale" in key]


def test_trees_sweeps_and_adapters_take_one_too(models: Path, tmp_path: Path) -> None:
    a, b, c = (models / f"{name}.safetensors" for name in "abc")
    expected = {name: value for name, value in read_raw(a)[0].items() if is_vae(name)}
    tree = sdsurgery.add_diff(b, sdsurgery.weighted_sum(b, c, alpha=0.5), c)
    reports = [
        sdsurgery.merge("weighted-sum", [tree, b], out=tmp_path / "tree.safetensors", vae=a),
        *sdsurgery.sweep("weighted-sum", [b, c], parameters={"alpha": [0.1, 0.2]},
                         out=tmp_path / "{alpha}.safetensors", vae=a),
    ]  # fmt: skip
    for report in reports:
        found = read_raw(Path(report.output))[0]
        assert {name: value for name, value in found.items() if is_vae(name)} == expected
        assert "VAE of a" in report.formula


def test_a_model_without_a_vae_gets_one(models: Path, tmp_path: Path) -> None:
    lean = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    for path, name in zip(lean, "bc", strict=True):
        sdsurgery.prune(models / f"{name}.safetensors", drop=["vae"], out=path)
    header, at = {}, 0
    for row in get("sd1").tensors():  # in the family's own shapes, since the checkpoint has none; a file of holes
        if row.component == "vae":
            size = 2 * math.prod(row.shape)
            header[row.key] = {"dtype": "F16", "shape": list(row.shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    with open(tmp_path / "vae.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    report = sdsurgery.merge("weighted-sum", lean, vae=tmp_path / "vae.safetensors", dry_run=True)
    assert report.counts["added"] == len(header)
    assert not [note for note in report.notes if "has no VAE" in note]


def test_what_is_no_vae_of_the_family_is_refused(models: Path, tmp_path: Path) -> None:
    unet, out = tmp_path / "unet.safetensors", tmp_path / "out.safetensors"
    sdsurgery.extract(models / "a.safetensors", "unet", out=unet)
    command = ("merge", "--method", "weighted-sum", models / "b.safetensors", models / "c.safetensors", "-o", out)
    refused(sds(*command, "--vae", unet), 3, "unet.safetensors", "vae", "tensors expected")
    write_checkpoint(tmp_path / "xl.safetensors", "sdxl-base", size="tiny")
    refused(sds(*command, "--vae", tmp_path / "none.safetensors"), 3, "none.safetensors")
    assert not out.exists()


def test_names_are_left_out_where_asked(models: Path, tmp_path: Path) -> None:
    out = merged(models, models / "a.safetensors", tmp_path / "out.safetensors", "--no-names")
    assert json.loads(read_raw(out)[1]["sd_merge_recipe"])["vae"] == "C"
