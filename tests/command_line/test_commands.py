"""Every command in the words of the manual: what it writes and what it prints."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, floats, plain, read_raw, refused, sds, started
from sdsurgery.testing import write_checkpoint

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


# ---- the commands, in exactly these words


def test_merge_weighted_sum_in_the_words_of_the_manual(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "out.safetensors"
    result = done(sds("merge", "--method", "weighted-sum", a, b, "--alpha", "0.5", "-o", out))
    assert result.out == ""
    assert str(out) in result.err
    assert "tensors: " in result.err
    assert "merged" in result.err
    tensors, metadata = read_raw(out)
    assert metadata["format"] == "pt"
    recipe = json.loads(metadata["sd_merge_recipe"])
    assert (recipe["type"], recipe["method"], recipe["parameters"]) == ("sdsurgery", "weighted-sum", {"alpha": 0.5})
    name = "model.diffusion_model.out.2.bias"
    left, right = (floats(read_raw(path)[0][name]) for path in (a, b))
    want = [struct.unpack("<e", struct.pack("<e", 0.5 * x + 0.5 * y))[0] for x, y in zip(left, right, strict=True)]
    assert floats(tensors[name]) == want


def test_merge_add_diff_in_the_words_of_the_manual(models: Path, tmp_path: Path) -> None:
    paths = [models / f"{name}.safetensors" for name in "abc"]
    out = tmp_path / "out.safetensors"
    done(sds("merge", "--method", "add-diff", *paths, "--alpha", "1.0", "-o", out))
    found = sdsurgery.inspect(out)
    assert (found.family, found.recipe["method"]) == ("sd1", "add-diff")


def test_cast_in_the_words_of_the_manual(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in.safetensors", "sd1", size="tiny", dtype="fp32")
    out = tmp_path / "out.safetensors"
    done(sds("cast", tmp_path / "in.safetensors", "--dtype", "fp16", "-o", out))
    assert sdsurgery.inspect(out).components["unet"].dtypes == {"F16": 686}


def test_weights_take_any_number_of_inputs(tmp_path: Path) -> None:
    paths = [plain(tmp_path / f"{i}.safetensors", *values) for i, values in enumerate([(1, 2), (10, 20), (100, 200)])]
    out = tmp_path / "out.safetensors"
    done(sds("merge", "--method", "weighted-sum", *paths, "--weights", "0.5,0.25,0.25", "-o", out))
    assert floats(read_raw(out)[0]["w"]) == [28.0, 56.0]


@pytest.mark.parametrize("option", ["--alpha=-0.5", "--alpha -0.5", "--alpha -5e-1"])
def test_negative_numbers_are_values_and_not_options(tmp_path: Path, option: str) -> None:
    a, b = plain(tmp_path / "a.safetensors", 2.0), plain(tmp_path / "b.safetensors", 4.0)
    done(sds("merge", "--method", "weighted-sum", a, b, *option.split(), "-o", tmp_path / "out.safetensors"))
    assert floats(read_raw(tmp_path / "out.safetensors")[0]["w"]) == [1.0]


def test_negative_weights_are_values_and_not_options(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.safetensors", 2.0), plain(tmp_path / "b.safetensors", 4.0)
    done(sds("merge", "--method", "weighted-sum", a, b, "--weights", "-0.5,1.5", "-o", tmp_path / "out.safetensors"))
    assert floats(read_raw(tmp_path / "out.safetensors")[0]["w"]) == [5.0]


def test_block_weights_of_inputs_are_one_word_or_several(models: Path, tmp_path: Path) -> None:
    files = [models / "a.safetensors", models / "b.safetensors", models / "a.safetensors"]
    merge = ("merge", "--method", "weighted-sum", *files, "--weights", "0.5,0.3,0.2", "--no-recipe", "-o")
    done(sds(*merge, tmp_path / "one", "--blocks", "B:GRAD_V C:0.3"))
    done(sds(*merge, tmp_path / "two", "--blocks", "B:GRAD_V", "C:0.3", "--title", "one"))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    refused(sds(*merge, tmp_path / "no", "--blocks", "B:GRAD_V", "D:0.1"), 2, "no ratio 'D'", "A, B, C")


def test_a_formula_may_begin_with_a_sign(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.safetensors", 2.0), plain(tmp_path / "b.safetensors", 5.0)
    done(sds("merge", a, b, "--formula", "-(A - B)", "-o", tmp_path / "out.safetensors"))
    assert floats(read_raw(tmp_path / "out.safetensors")[0]["w"]) == [3.0]
    refused(sds("merge", a, b, "--formula", "-o", tmp_path / "out.safetensors"), 2, "--formula: expected one argument")


def test_every_shared_option_is_accepted_by_merge_and_cast(models: Path, tmp_path: Path) -> None:
    words = "--dtype bf16 --threads 2 --backend cpu --io pread --overflow saturate --on-nonfinite keep"
    common = [*words.split(), "--compute", "fp64", "--no-hash", "--no-sync", "--force", "-v"]
    a, b = models / "a.safetensors", models / "b.safetensors"
    out = tmp_path / "out.safetensors"
    done(sds("merge", "--method", "weighted-sum", a, b, "--add-missing", *common, "-o", out))
    done(sds("cast", a, *common, "-o", out))
    assert sdsurgery.inspect(out).components["unet"].dtypes == {"BF16": 686}


def test_inspect_shows_family_components_dtypes_ema_and_metadata(models: Path) -> None:
    text = done(sds("inspect", models / "a.safetensors")).out
    for word in ("family: sd1", "EMA weights: full", "unet", "vae", "text_encoder", "parameters", "F16", "format: pt"):
        assert word in text, word
    found = done(sds("inspect", models / "a.safetensors", "--json")).json()
    assert found["family"] == "sd1"
    assert found["ema"] == "full"
    assert found["total"]["tensors"] == sum(part["tensors"] for part in found["components"].values())
    assert found["components"]["unet"]["tensors"] == 686
    assert found["metadata"] == {"format": "pt"}
    assert found["recipe"] is None


def test_inspect_shows_the_recipe_of_a_merged_file(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("weighted-sum", [models / "b.safetensors", models / "c.safetensors"], alpha=0.25, out=out)
    text = done(sds("inspect", out)).out
    assert "out = 0.75·b + 0.25·c" in text
    assert done(sds("inspect", out, "--json")).json()["recipe"]["parameters"] == {"alpha": 0.25}


def test_methods_lists_every_registered_method() -> None:
    text = done(sds("methods")).out
    rows = done(sds("methods", "--json")).json()["methods"]
    assert {row["name"] for row in rows} == set(sdsurgery.methods())
    bases = {row["name"]: row["base"] for row in rows}
    assert (bases["ties"], bases["train-diff"], bases["mean"]) == ("A", "C", None)
    columns = {
        line.index(row["formula"]) for row in rows for line in text.splitlines() if line.startswith(row["name"] + " ")
    }
    assert len(columns) == 1, "the formulas are in one column"
    assert text.count(" base: A\n") == list(bases.values()).count("A")
    for method in sdsurgery.methods().values():
        assert method.name in text
        assert method.summary in text
        for name in method.params:
            assert "--" + name.replace("_", "-") in text


def test_every_methods_parameters_are_flags_of_merge() -> None:
    from sdsurgery.cli import command_parser

    for method in sdsurgery.methods().values():
        text = command_parser("merge", ["--method", method.name]).format_help()
        for name in method.params:
            assert "--" + name.replace("_", "-") in text


def test_layouts_lists_every_family() -> None:
    from sdsurgery.layouts import all_layouts

    rows = done(sds("layouts", "--json")).json()["layouts"]
    assert [row["name"] for row in rows] == [layout.name for layout in all_layouts()]
    text = done(sds("layouts")).out
    assert all(row["title"] in text for row in rows)


def test_info_lists_version_targets_and_packages() -> None:
    found = done(sds("info", "--json")).json()
    assert found["version"] == sdsurgery.__version__
    assert found["cpu_target"] in found["cpu_targets"]
    assert found["cpu_targets"]["scalar"] is True
    assert {"cuda", "packages", "backends"} <= set(found)
    text = done(sds("info")).out
    for word in ("CPU targets built", "active", "CUDA", "torch", "triton", sdsurgery.__version__):
        assert word in text, word


def test_without_a_command_the_overview_is_shown() -> None:
    bare, asked = sds(), done(sds("--help"))
    assert (bare.rc, bare.out, bare.err) == (2, asked.out, "")


def test_the_help_of_merge_is_in_groups_with_files_first_and_three_examples() -> None:
    text = done(sds("merge", "--help")).out
    assert text.startswith("usage: sdsurgery merge FILE FILE")
    titles = ["what is merged:", "ratios:", "output:", "dtypes and rounding:", "metadata of the output:", "examples:"]
    assert sorted(titles, key=text.index) == titles
    assert text.split("examples:")[1].count("sdsurgery merge A.safetensors") == 3


def test_info_reports_the_target_that_sds_cpu_asks_for() -> None:
    assert done(started("info", "--json", env={"SDS_CPU": "scalar"})).json()["cpu_target"] == "scalar"


def test_verify_accepts_our_output_and_finds_a_changed_byte(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("weighted-sum", [models / "b.safetensors", models / "c.safetensors"], out=out)
    assert done(sds("verify", out, "--json")).json()["ok"] is True
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    result = sds("verify", out)
    assert result.rc == 4
    assert result.err.count("\n") == 1
    assert result.err.startswith("sdsurgery: ")
    result = sds("verify", out, "--json")
    assert result.rc == 4
    assert result.json()["ok"] is False


def test_verify_counts_non_finite_values(tmp_path: Path) -> None:
    path = plain(tmp_path / "x.safetensors", 1.0, float("nan"), float("inf"))
    assert done(sds("verify", path, "--json")).json()["nonfinite"] == {"w": 2}


def test_demo_merges_checks_and_leaves_nothing(tmp_path: Path) -> None:
    result = done(started("demo", cwd=tmp_path, env={"TMPDIR": str(tmp_path)}))
    assert "checked" in result.out
    assert "merged" in result.out
    assert list(tmp_path.iterdir()) == []
    found = done(started("demo", "--json", cwd=tmp_path, env={"TMPDIR": str(tmp_path)}))
    assert found.json()["verb"] == "merge"
    assert found.err == ""


def test_the_installed_command_is_the_same_program() -> None:
    try:
        metadata.distribution("sdsurgery")
    except metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, without an installation")
    command = shutil.which("sdsurgery", path=sysconfig.get_path("scripts"))
    assert command is not None
    ran = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == done(sds("--version")).out == f"sdsurgery {sdsurgery.__version__}\n"


# ---- the output's name


def test_a_name_without_a_suffix_gets_one_and_a_foreign_one_is_refused(models: Path, tmp_path: Path) -> None:
    model = models / "b.safetensors"
    for given in ("mix", "mix-0.5", "v1.5 final"):
        report = done(sds("cast", model, "-o", given, "--json", cwd=tmp_path)).json()
        assert report["output"] == f"{given}.safetensors"
        assert [note for note in report["notes"] if "has no suffix" in note] != []
        assert sdsurgery.inspect(tmp_path / report["output"]).metadata["modelspec.title"] == given
    for given in ("x.safetensor", "x.safetensros", "x.cpkt"):
        refused(sds("cast", model, "-o", given, cwd=tmp_path), 2, "did you mean 'x.")
    for given, kind in (("x.gguf", "GGUF"), ("x.ONNX", "ONNX"), ("x.zip", "archive"), ("-", "standard output")):
        refused(sds("cast", model, "-o", given, cwd=tmp_path), 2, kind)
    assert len(list(tmp_path.iterdir())) == 3
