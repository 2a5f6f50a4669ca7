"""The command line from the outside: the words that others script against, what goes where, and what the output is."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, environment, floats, listing, plain, read_raw, refused, sds, started
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


# ---- where text goes


def test_json_is_one_object_on_stdout_for_a_written_file(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    out = tmp_path / "out.safetensors"
    result = done(sds("merge", "--method", "weighted-sum", a, b, "--json", "-o", out))
    report = result.json()
    assert report["output"] == str(out)
    assert report["bytes_written"] == out.stat().st_size
    assert report["counts"]["merged"] == 1130
    assert report["dropped"] and sum(report["dropped"].values()) == report["counts"]["dropped"] == 688
    assert len(report["sha256"]) == 2
    assert done(sds("cast", a, "--json", "-q", "--no-hash", "-o", tmp_path / "c.safetensors")).json()["verb"] == "cast"


def test_quiet_says_nothing(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    out = tmp_path / "out.safetensors"
    for args in (("merge", "--method", "weighted-sum", a, b), ("cast", a)):
        result = done(sds(*args, "-q", "--force", "--no-hash", "-o", out))
        assert (result.out, result.err) == ("", "")


def test_verbose_says_how_it_ran(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    merge = ("merge", "--method", "weighted-sum", a, b, "-v", "--force", "-o", tmp_path / "out.safetensors")
    for io in ("pread", "mmap"):
        text = done(sds(*merge, "--io", io)).err
        assert "backend cpu" in text
        assert f"read {a} by {io}" in text
        assert f"read {b} by {io}" in text
        assert "sha256" in text
    quiet = done(sds(*(arg for arg in merge if arg != "-v"))).err
    assert "backend" not in quiet


def test_quiet_and_verbose_exclude_each_other() -> None:
    refused(sds("info", "-q", "-v"), 2, "not allowed with")


def test_text_that_is_not_on_a_terminal_has_no_colours(models: Path, tmp_path: Path) -> None:
    result = done(sds("cast", models / "a.safetensors", "-v", "-o", tmp_path / "o.safetensors"))
    assert "\x1b" not in result.out + result.err
    assert "\x1b" not in done(sds("inspect", models / "a.safetensors")).out


@posix
def test_the_bar_on_a_terminal_honours_no_color() -> None:
    shown = _on_terminal({})
    assert re.search(rb"\x1b\[[0-9;]*3[0-9]", shown), "no colour at all: this test would not see one"
    assert b"/s" in shown
    plain_bar = _on_terminal({"NO_COLOR": "1"})
    assert b"/s" in plain_bar
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])[0-9;]*m", plain_bar)


def _on_terminal(extra: dict[str, str]) -> bytes:
    import pty

    script = (
        "import time; from sdsurgery.report import progress; progress._QUICK = -1\n"
        "with progress.display('merge') as show:\n"
        "    for i in range(3): show(i * 1000000, 9000000); time.sleep(0.15)\n"
    )
    master, slave = pty.openpty()
    env = environment({"TERM": "xterm-256color", "COLUMNS": "100", **extra})
    with subprocess.Popen([sys.executable, "-c", script], stderr=slave, stdout=subprocess.DEVNULL, env=env) as child:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert child.wait(60) == 0
    os.close(master)
    return shown


# ---- wrong usage


def test_wrong_usage_is_one_line_and_code_2(tmp_path: Path) -> None:
    refused(sds("merge"), 2, "--method")
    refused(sds("cast"), 2)
    refused(sds("info", "--nonsense"), 2, "--nonsense")
    refused(sds("cast", "x.safetensors"), 2, "-o")
    refused(sds("cast", "x.safetensors", "-o", tmp_path / "y", "--threads", "-1"), 2, "--threads")
    refused(sds("cast", "x.safetensors", "-o", tmp_path / "y", "--threads", "many"), 2, "--threads")
    assert list(tmp_path.iterdir()) == []


def test_did_you_mean_for_methods_backends_and_values(models: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    merge = ("merge", "--method", "weighted-sum", a, b, "--dry-run")
    refused(sds("merge", "--method", "weigthed-sum", a, b, "--dry-run"), 2, "did you mean 'weighted-sum'")
    refused(sds("merge", "--method", "xyzzy", a, b, "--dry-run"), 2, "known: ", "add-diff", "weighted-sum")
    for option, wrong, right in (
        ("--dtype", "fp61", "fp16"),
        ("--overflow", "saturated", "saturate"),
        ("--on-nonfinite", "eror", "error"),
        ("--compute", "fp46", "fp64"),
        ("--io", "nmap", "mmap"),
        ("--backend", "referense", "reference"),
    ):
        refused(sds(*merge, option, wrong), 2, f"'{wrong}'", "did you mean", f"'{right}'")


def test_did_you_mean_for_verbs_and_parameters(models: Path) -> None:
    refused(sds("merg"), 2, "merg", "merge")
    refused(
        sds("merge", "--method", "add-diff", *[models / "a.safetensors"] * 3, "--alhpa", "1", "--dry-run"), 2, "alhpa"
    )
    # An option that must be there is not said to be missing when it is only mistyped.
    refused(sds("merge", "--methd", "add-diff", models / "a.safetensors"), 2, "'--methd'", "did you mean '--method'")
    refused(sds("merge", models / "a.safetensors", "--alpha", "1"), 2, "--alpha needs --method, one of weighted-sum")
    with pytest.raises(sdsurgery.UsageError, match="did you mean 'alpha'"):
        sdsurgery.merge("add-diff", [models / "a.safetensors"] * 3, alhpa=1, dry_run=True)
    with sdsurgery.open(models / "a.safetensors") as opened, pytest.raises(KeyError, match="did you mean"):
        opened.info("model.diffusion_model.out.2.bais")


def test_after_two_dashes_come_files_whatever_their_names(models: Path, tmp_path: Path) -> None:
    for name in ("-a.safetensors", "--force", "--"):
        (tmp_path / name).write_bytes((models / "a.safetensors").read_bytes())
        out = sds("cast", "--dtype", "fp16", "--json", "-o", "out.safetensors", "--dry-run", "--", name, cwd=tmp_path)
        assert out.rc == 0, out.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_stdout_that_is_not_utf8_gets_all_lines(encoding: str, models: Path) -> None:
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for args in (["--help"], ["merge", "--help"], ["methods"], ["layouts"], ["inspect", models / "a.safetensors"]):
        usual, here = done(sds(*args)), done(started(*args, env=env))
        assert here.raw_out == usual.out.encode(encoding, "backslashreplace")


@pytest.mark.skipif(os.name != "posix", reason="only there a folder can be removed under a process")
def test_the_current_folder_may_be_gone(models: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = "import os, sys; os.rmdir(os.getcwd()); from sdsurgery.cli import run; sys.exit(run(sys.argv[1:]))"
    for out, code, words in (
        ("o.safetensors", 1, "the current folder no longer exists"),
        (tmp_path / "o.safetensors", 0, ""),
    ):
        gone.mkdir(exist_ok=True)
        ended = started("cast", models / "a.safetensors", "-o", out, cwd=gone, python=("-c", program))
        assert ended.rc == code and words in ended.err, ended.err


def test_an_existing_target_is_refused_without_force(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    cast = ("cast", models / "b.safetensors", "--no-hash", "-o", out)
    refused(sds(*cast), 2, str(out), "--force")
    assert listing(tmp_path) == {"out.safetensors": b"precious"}
    done(sds(*cast, "--force"))
    assert len(read_raw(out)[0]) == 1143


@posix
def test_a_dangling_symlink_is_an_existing_target(models: Path, tmp_path: Path) -> None:
    link, real = tmp_path / "link.safetensors", tmp_path / "real.safetensors"
    link.symlink_to(real)
    refused(sds("cast", models / "b.safetensors", "--no-hash", "-o", link), 2, "--force")
    assert not real.exists()


# ---- dry run


def test_dry_run_prints_the_plan_and_writes_nothing(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "out.safetensors"
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", out, "--dry-run")
    result = done(sds(*merge))
    for word in (
        "family sd1",
        "1130 merged",
        "13 copied",
        "688 dropped",
        "EMA",
        "would read",
        "peak memory",
        "free space",
    ):
        assert word in result.out, word
    assert result.err == ""
    assert list(tmp_path.iterdir()) == []
    report = done(sds(*merge, "--json")).json()
    assert report["dry_run"] is True
    assert len(report["tensors"]) == 1143
    assert report["bytes_read"] > report["bytes_written"] > 0
    assert list(tmp_path.iterdir()) == []
    report = done(sds("cast", a, "--dtype", "fp32", "--dry-run", "--json")).json()
    assert (report["counts"]["cast"], report["counts"]["copied"]) == (1130 + 686, 15)


def test_dry_run_predicts_the_size_that_is_written(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    args = ("weighted-sum", [models / "a.safetensors", models / "b.safetensors"])
    foretold = sdsurgery.merge(*args, out=out, dry_run=True)
    written = sdsurgery.merge(*args, out=out)
    assert foretold.bytes_written == written.bytes_written == out.stat().st_size
    assert foretold.counts == written.counts


def test_dry_run_lists_what_is_missing_on_each_side(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0, names=("shared", "also", "third", "only_a"))
    b = plain(tmp_path / "b.safetensors", 2.0, names=("shared", "also", "third", "only_b"))
    before = listing(tmp_path)
    result = done(sds("merge", "--method", "weighted-sum", a, b, "--dry-run"))
    assert f"missing in {b}: only_a" in result.out
    assert f"only in {b}, not added: only_b" in result.out
    assert listing(tmp_path) == before


def test_dry_run_ends_as_the_run_would_after_its_plan(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    cast = ("cast", models / "b.safetensors", "--dry-run", "-o", out)
    result = sds(*cast)
    assert result.rc == 2
    assert result.err.splitlines() == [f"sdsurgery: {out} exists; --force replaces it"]
    assert "would write" in result.out
    found = sds(*cast, "--json").json()
    assert (found["error"]["code"], found["refusal"]["code"], found["family"]) == ("exists", "exists", "sd1")
    done(sds(*cast, "--force"))
    assert listing(tmp_path) == {"out.safetensors": b"precious"}
    for wrong, code in (("no/folder.safetensors", 1), ("x.gguf", 2), ("-", 2), ("/dev/null", 2)):
        command = ("cast", models / "b.safetensors", "-o", wrong)
        assert sds(*command, cwd=tmp_path).rc == sds(*command, "--dry-run", cwd=tmp_path).rc == code, wrong
    batch = ("cast", models / "b.safetensors", models / "a.safetensors", "--out-dir", models, "--dry-run")
    result = sds(*batch)
    assert (result.rc, "2 of 2 files" in result.err) == (2, True)


def test_a_dry_run_of_more_than_fits_the_disk_ends_as_the_run_would(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdsurgery.surgery import outputs

    monkeypatch.setattr(outputs, "free_bytes", lambda folder: 15_000_000)
    out = str(tmp_path / "mix-{alpha}.safetensors")
    pair = [models / "a.safetensors", models / "b.safetensors"]
    one = sdsurgery.merge("weighted-sum", pair, out=tmp_path / "mix.safetensors", dry_run=True)
    assert one.refusal is None
    reports = sdsurgery.sweep("weighted-sum", pair, parameters={"alpha": [0.1, 0.2]}, out=out, dry_run=True)
    assert [each.refusal.code for each in reports if each.refusal] == ["no_space", "no_space"]


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


# ---- start-up


@pytest.mark.parametrize("verb", ["--help", "merge --help", "methods", "layouts", "inspect", "merge", "cast", "dry"])
def test_the_cpu_path_imports_neither_numpy_nor_torch_nor_rich(models: Path, tmp_path: Path, verb: str) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "o.safetensors"
    args = {
        "inspect": ["inspect", a],
        "merge": ["merge", "--method", "weighted-sum", a, b, "-o", out],
        "cast": ["cast", a, "--dtype", "fp32", "-o", out],
        "dry": ["merge", "--method", "weighted-sum", a, b, "--dry-run"],
    }.get(verb, verb.split())
    result = done(started(*args, python=("-X", "importtime", "-m", "sdsurgery")))
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", result.err, re.MULTILINE))
    assert "sdsurgery.cli" in imported, "the probe sees nothing"
    assert not {"numpy", "torch", "rich", "safetensors", "triton"} & imported


def test_importing_the_package_imports_nothing_heavy() -> None:
    probe = (
        "import sys, sdsurgery; print([m for m in ('numpy','torch','rich','sdsurgery._native') if m in sys.modules])"
    )
    assert started(python=("-c", probe)).out == "[]\n"
