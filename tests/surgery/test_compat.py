"""Other tools' choice of keys: what a tool skips, and what it takes where a model lacks a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from sdsurgery.layouts import get
from sdsurgery.methods.registry import get as method_named
from sdsurgery.methods.tools import TOOLS
from sdsurgery.recipe import call
from sdsurgery.testing import write_checkpoint

NAMES = (
    "model.diffusion_model.a.to_out.0.weight",
    "model.diffusion_model.a.norm1.weight",
    "model.diffusion_model.b.weight",
)


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> list[Path]:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(4)
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for number, path in enumerate(paths):
        names = NAMES if number != 1 else NAMES[1:]
        save_file({name: rng.normal(size=(4, 5)).astype(np.float32) for name in names}, path)
    return paths


def tensors(path: Path) -> dict[str, np.ndarray]:
    with sds.open(path) as opened:
        return {name: np.array(opened.numpy(name)) for name in opened}


@pytest.mark.parametrize("method", ["self-scale", "add-noise"])
def test_supermerger_skips_outer_layers_and_norms(method: str, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done(command("merge", files[0], "--method", method, "--compat", "supermerger", "--alpha", "0.5", "-o", out))
    before, after = tensors(files[0]), tensors(out)
    assert [np.array_equal(before[name], after[name]) for name in NAMES] == [True, True, False]
    assert "supermerger:" + method in done(command("inspect", out)).out


@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"on_nonfinite": "error"}], ids=str)
def test_what_a_tool_leaves_is_counted_as_kept(options: dict[str, str], tmp_path: Path) -> None:
    a, b = models(tmp_path, "sd1", 2)
    out = tmp_path / "out.safetensors"
    report = sds.merge("comfy:weighted-sum", [a, b], alpha=0.25, out=out, **options)
    before, after, other = tensors(a), tensors(out), tensors(b)
    vae = [name for name in before if name.startswith("first_stage_model.")]
    assert report.counts == {"kept": len(vae), "merged": len(before) - len(vae), "dropped": 0} and len(vae) == 2
    kind = np.float16 if "dtype" in options else np.float32
    assert all(np.array_equal(after[name], before[name].astype(kind)) for name in vae)
    name = "model.diffusion_model.time_embed.0.weight"
    quarter = np.float32(0.25) * before[name] + np.float32(0.75) * other[name]
    assert np.array_equal(after[name], quarter.astype(kind))
    dry = sds.merge("comfy:weighted-sum", [a, b], dry_run=True)
    notes = {row["name"]: row["note"] for row in dry.to_dict()["tensors"] if row["action"] == "kept"}
    assert notes == dict.fromkeys(vae, "the method leaves it unchanged")


def test_what_a_tool_leaves_still_counts_in_its_statistics(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    shapes = {"model.diffusion_model.a.weight": (8, 5), "model.diffusion_model.b.scale": (8, 30)}
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        save_file({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, file)
    outs = [tmp_path / f"{name}.safetensors" for name in ("tool", "all", "one")]
    left = sds.merge("supermerger:cosine-b", files, alpha=0.2, out=outs[0]).counts
    assert (left["kept"], left["merged"]) == (1, 1)
    sds.merge("cosine-b", files, alpha=0.2, fused=True, out=outs[1])
    assert np.array_equal(tensors(outs[0])["model.diffusion_model.a.weight"],
                          tensors(outs[1])["model.diffusion_model.a.weight"])  # fmt: skip
    for file in files:
        name = "model.diffusion_model.a.weight"
        save_file({name: tensors(file)[name]}, file.with_stem(file.stem + "-one"))
    sds.merge("cosine-b", [file.with_stem(file.stem + "-one") for file in files], alpha=0.2, fused=True, out=outs[2])
    assert not np.array_equal(tensors(outs[2])[name], tensors(outs[0])[name])  # the other tensor matters


def test_with_kohya_a_stands_in_for_a_tensor_that_another_model_lacks(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sds.merge("kohya:n-sum", files, weights=[0.5, 0.3, 0.2], out=out)
    a, b, c = map(tensors, files)
    after = tensors(out)
    half, rest, last = np.float32(0.5), np.float32(0.3), np.float32(0.2)
    assert np.array_equal(after[NAMES[0]], half * a[NAMES[0]] + last * c[NAMES[0]] + rest * a[NAMES[0]])  # its order
    assert np.array_equal(after[NAMES[2]], half * a[NAMES[2]] + rest * b[NAMES[2]] + last * c[NAMES[2]])
    sds.merge("n-sum", files, weights=[0.5, 0.3, 0.2], out=out, overwrite=True)
    assert np.array_equal(tensors(out)[NAMES[0]], a[NAMES[0]])  # else A's is kept


WORDS = {"time_embed.0.weight": "time", "label_emb.0.0.weight": "label", "text_projection": "projection",
         "logit_scale": "logit", "ln_final.weight": "base", "final_layer_norm.weight": "base", ".out.2.bias": "out",
         "first_stage_model.decoder.conv_in.bias": "vae"}  # fmt: skip


def models(folder: Path, family: str, count: int) -> list[Path]:
    """Files of the family, of few tensors: those by which it is identified, and those of WORDS."""
    layout = get(family)
    paths = [folder / f"{family}-{number}.safetensors" for number in range(count)]
    for seed, path in enumerate(paths):
        write_checkpoint(
            path, family, size="tiny", dtype="fp32", seed=seed,
            keep=lambda each: layout.is_evidence(each.key) or any(each.key.endswith(word) for word in WORDS),
        )  # fmt: skip
    return paths


def taken(paths: list[Path], out: Path) -> dict[str, str]:
    """By word: whose tensor the output has."""
    after, given = tensors(out), list(map(tensors, paths))
    return {
        word: "ABC"[[np.array_equal(each[name], after[name]) for each in given].index(True)]
        for name in after
        for end, word in WORDS.items()
        if name.endswith(end)
    }


@pytest.mark.parametrize(
    ("tool", "of_b"),
    [
        (None, "projection logit vae base"),
        ("a1111", "projection logit vae base"),
        ("supermerger", "vae base"),
        ("sd-mecha", "projection logit vae base time label"),
        ("comfy", "projection base"),
        ("chattiori", "base"),
    ],
)
def test_each_tool_s_tensors_and_merge_blocks_of_sdxl(tool: str | None, of_b: str, tmp_path: Path) -> None:
    """Only BASE is B's: which tensors belong to it, or stay A's, is the tool's choice."""
    paths, out = models(tmp_path, "sdxl-base", 2), tmp_path / "out.safetensors"
    still, moved = (1, 0) if tool == "comfy" else (0, 1)
    sds.merge(f"{tool}:weighted-sum" if tool else "weighted-sum", paths, alpha=still, blocks=f"BASE={moved}", out=out)
    assert {word for word, whose in taken(paths, out).items() if whose == "B"} == set(of_b.split())


@pytest.mark.parametrize(("tool", "of_b"), [("chattiori", "out time"), ("supermerger", "out"), ("sd-mecha", "out")])
def test_each_tool_s_merge_blocks_of_sd1(tool: str, of_b: str, tmp_path: Path) -> None:
    paths, out = models(tmp_path, "sd1", 2), tmp_path / "out.safetensors"
    done(
        command(
            "merge",
            *paths,
            "--method",
            "weighted-sum",
            "--compat",
            tool,
            "--alpha",
            "0",
            "--blocks",
            "OUT11=1",
            "-o",
            out,
        )
    )
    assert {word for word, whose in taken(paths, out).items() if whose == "B"} == set(of_b.split())


def test_tools_in_one_recipe_keep_their_own_tensors_and_count_blocks_in_one_way(tmp_path: Path) -> None:
    a, b, c = paths = models(tmp_path, "sdxl-base", 3)
    inner = call("supermerger:weighted-sum", [a, b], alpha=1.0)
    call("comfy:weighted-sum", [inner, c], alpha=0.0).save(tmp_path / "out.safetensors")
    found = taken(paths, tmp_path / "out.safetensors")
    assert {"projection": "C", "logit": "A", "vae": "B", "base": "C"}.items() <= found.items()
    mixed = call("sd-mecha:weighted-sum", [a, b], alpha=0.5, blocks="BASE=1")
    with pytest.raises(sds.UsageError, match="count merge blocks in different ways"):
        call("weighted-sum", [mixed, c], alpha=0.5).save(tmp_path / "no.safetensors")


def test_at_0_sd_mecha_gives_a_itself() -> None:
    """Its add_difference returns A; the sum would make +0 of −0, and NaN of Inf − Inf."""
    a, b, c = np.float32([-0.0, 1]), np.float32([2, np.inf]), np.float32([1, np.inf])
    with np.errstate(invalid="ignore"):
        assert str(sds.apply("sd-mecha:add-diff", a, b, c, alpha=0)) == "[-0.  1.]"
        assert str(sds.apply("add-diff", a, b, c, alpha=0)) == "[ 0. nan]"


def test_a_method_that_a_tool_lacks_is_refused(files: list[Path]) -> None:
    refused(
        command("merge", *files[:2], "--method", "slerp", "--compat", "a1111"), 2,
        "no method slerp of a1111 is known; its methods: weighted-sum",
    )  # fmt: skip


def test_the_methods_of_a_tool_are_called_as_the_tables_name_them(files: list[Path], tmp_path: Path) -> None:
    for tool, forms in ((word, TOOLS[word].forms) for word in TOOLS):
        assert [method_named(f"{tool}:{name}").name for name in forms] == [f"{tool}:{name}" for name in forms]
    out = tmp_path / "out.safetensors"
    done(command("merge", *files, "--method", "dare-linear", "--compat", "mergekit", "--density", "0.3", "-o", out))
    assert "mergekit:dare-linear" in done(command("inspect", out)).out
