"""map: distances of every pair, what is identical, the tree and clusters, against NumPy in float64."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import plain, refused
from cli_support import sds as command
from mix_tools import base_of, tuned
from safetensors.numpy import load_file, save_file
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.testing import write_checkpoint

SHARES = {"a": 0.05, "b": 0.1, "c": 0.03}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = base_of(tmp_path_factory.mktemp("map"))
    made = {name: tuned(base, name, share, seed) for seed, (name, share) in enumerate(SHARES.items())}
    sds.replace(made["c"], {"vae": made["a"]}, out=base.with_name("d.safetensors"), sync=False)
    return {"base": base, **made, "d": base.with_name("d.safetensors")}


def by_numpy(first: Path, second: Path, origin: Path, prefix: str) -> float:
    x, y, o = (load_file(path) for path in (first, second, origin))
    buffers = ("alphas", "betas", "log_", "sqrt", "posterior", "lvlb", "scale_factor")
    names = [n for n in o if n.startswith(prefix) and o[n].dtype == np.float16 and not n.startswith(buffers)]
    apart = sum(float(np.sum((x[n].astype(np.float64) - y[n].astype(np.float64)) ** 2)) for n in names)
    return float((apart / sum(float(np.sum(o[n].astype(np.float64) ** 2)) for n in names)) ** 0.5)


def test_distances_are_those_of_numpy(models: dict[str, Path]) -> None:
    files = list(models.values())
    found = sds.relations(files)
    assert found.origin == str(files[0]) and found.family == "sd1"
    for i, j in ((0, 1), (1, 2), (2, 4), (3, 3)):
        wanted = by_numpy(files[i], files[j], files[0], "")
        assert found.distances[i][j] == pytest.approx(wanted, rel=1e-6) == found.distances[j][i]
        vae = by_numpy(files[i], files[j], files[0], "first_stage_model.")
        assert found.components["vae"][i][j] == pytest.approx(vae, rel=1e-6)
    first_block = by_numpy(files[1], files[2], files[0], "model.diffusion_model.input_blocks.1.")
    assert found.blocks["IN01"][1][2] == pytest.approx(first_block, rel=1e-6)


def test_identical_components_tree_and_clusters(models: dict[str, Path], tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.safetensors"
    write_checkpoint(stranger, "sd1", size="tiny", seed=99)
    files = [*models.values(), stranger]
    found = sds.relations(files)
    names = {(each["component"], *(Path(path).stem for path in each["files"])) for each in found.identical}
    assert names == {("vae", "a", "d"), ("unet", "c", "d"), ("text_encoder", "c", "d")}
    assert Path(found.root).stem == "base"
    links = {(Path(each["from"]).stem, Path(each["to"]).stem) for each in found.tree}
    assert links == {("base", "c"), ("c", "d"), ("base", "a"), ("base", "b"), ("base", "stranger")}
    assert [[Path(path).stem for path in cluster] for cluster in found.clusters] == [
        ["base", "a", "b", "c", "d"],
        ["stranger"],
    ]


def test_copies_that_are_hardly_apart_leave_a_family_together(models: dict[str, Path], tmp_path: Path) -> None:
    near = [tuned(models["a"], f"near{seed}", 0.001, 40 + seed) for seed in range(2)]
    sds.cast(models["b"], out=tmp_path / "cast.safetensors", dtype="bf16", sync=False)
    family = [*(models[name] for name in ("base", "a", "b", "c")), *near, tmp_path / "cast.safetensors"]
    assert sds.relations(family).clusters == [list(map(str, family))]
    stranger = tuned(models["base"], "stranger", 0.6, 50)
    of_stranger = tuned(stranger, "of_stranger", 0.05, 51)
    found = sds.relations([*family, stranger, of_stranger])
    assert sorted(found.clusters, key=len) == [list(map(str, (stranger, of_stranger))), list(map(str, family))]


def test_a_merge_between_two_is_not_their_root(models: dict[str, Path], tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    sds.merge("weighted-sum", [models["a"], models["b"]], alpha=0.5, out=half, sync=False)
    found = sds.relations([half, *(models[name] for name in ("a", "b", "c", "base"))])
    assert Path(found.root).stem == "base"


def baked(base: Path, name: str, rank: int, seed: int) -> Path:
    """The base with a change of low rank, of 5 % of the norm, in the matrices of the U-Net's attention."""
    rng = np.random.default_rng(seed)
    found = load_file(base)
    for key, tensor in found.items():
        if ".attn" in key and tensor.ndim == 2 and min(tensor.shape) > 4 * rank:
            change = rng.normal(size=(tensor.shape[0], rank)) @ rng.normal(size=(rank, tensor.shape[1]))
            change *= 0.05 * np.linalg.norm(tensor.astype(np.float64)) / np.linalg.norm(change)
            found[key] = (tensor + change).astype(np.float16)
    path = base.with_name(f"{name}.safetensors")
    save_file(found, path)
    return path


def test_a_link_by_an_adapter_has_its_rank(models: dict[str, Path], tmp_path: Path) -> None:
    base = models["base"]
    adapted, again = baked(base, "adapted", 4, 60), tuned(base, "again", 0, 61)
    sds.cast(base, out=tmp_path / "cast.safetensors", dtype="bf16", sync=False)
    files = [base, models["a"], models["b"], adapted, again, tmp_path / "cast.safetensors"]
    found = sds.relations(files)
    links = {Path(link["to"]).stem: (link["rank"], link["low"]) for link in found.tree}
    assert Path(found.root).stem == "base" and links["adapted"] == (4, True)
    assert links["cast"] == links["again"] == (None, None)  # by rounding, and equal
    for link in found.tree:
        if Path(link["to"]).stem in "ab":
            assert link["low"] is False and link["rank"] > link["full"] / 2
    text = command("map", *files).out
    assert text.count("by an adapter of rank 4") == 1 and "base → adapted" in text
    sds.relations(files, html=tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text(encoding="utf-8").count("by an adapter of rank 4") == 1


def test_the_command_line(models: dict[str, Path]) -> None:
    files = [models[name] for name in ("base", "a", "d")]
    run = command("map", *files, "--json")
    assert run.rc == 0, run.err
    assert json.loads(run.out)["files"] == list(map(str, files))
    text = command("map", *files).out
    assert "the same vae: a, d" in text and "root: base" in text


def test_refusals(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        sds.relations([models["a"]])
    write_checkpoint(tmp_path / "xl.safetensors", "sdxl-base", size="tiny")
    with pytest.raises(InputRefused, match="another family"):
        sds.relations([models["a"], tmp_path / "xl.safetensors"])


# ---- the picture


@pytest.mark.parametrize("count", [2, 40])
def test_the_picture_has_every_file_s_name_whole(count: int, tmp_path: Path) -> None:
    files = [
        plain(tmp_path / f"{k:02d} a_rather$long$ name, <{'x' * k}> of a merge.safetensors", *np.random.rand(8))
        for k in range(count)
    ]
    out = tmp_path / "map.svg"
    sds.relations(files).plot(out)
    texts = html.unescape(out.read_text("utf-8"))
    assert [path.stem for path in files if f"{int(path.stem[:2]) + 1}  {path.stem}" not in texts] == []


def test_pictures_are_png_svg_or_pdf_and_the_same_every_time(models: dict[str, Path], tmp_path: Path) -> None:
    found = sds.relations([models["base"], models["a"], models["b"]])
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        out = tmp_path / f"map{suffix}"
        found.plot(out)
        first = out.read_bytes()
        found.plot(out, overwrite=True)
        assert first.startswith(start) and out.read_bytes() == first
    refused(command("map", models["a"], models["b"], "--plot", tmp_path / "map.gif"), 2, ".png")
    refused(command("map", models["a"], models["b"], "--plot", tmp_path / "map.png"), 2, "exists", "--force")


def test_what_the_font_lacks_is_escaped() -> None:
    from sdsurgery.report.pictures import drawable

    assert drawable("模型 é №") == "\\u6a21\\u578b é №"


def test_the_dendrogram_is_that_of_single_linkage() -> None:
    from sdsurgery.report.dendrogram import dendrogram

    names = ["a", "b", "c", "d"]
    links = [("a", "c", 1.0), ("c", "b", 3.0), ("a", "d", 2.0)]
    tree = [{"from": one, "to": other, "distance": far} for one, other, far in links]
    found = dendrogram(sds.Relations(names, "sd1", "a", tree=tree))
    assert found.order == [0, 2, 3, 1] and found.longest == 3.0
    assert [(node.height, node.row) for node, _, _ in found.joins] == [(1.0, 0.5), (2.0, 1.25), (3.0, 2.125)]
