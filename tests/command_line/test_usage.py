"""Wrong usage is one line and exit code 2; existing targets; odd folders and encodings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, listing, read_raw, refused, sds, started

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


def test_wrong_usage_is_one_line_and_code_2(tmp_path: Path) -> None:
    refused(sds("merge"), 2, "--method")
    refused(sds("cast"), 2)
    refused(sds("info", "--nonsense"), 2, "--nonsense")
    refused(sds("cast", "x.safetensors"), 2, "-o")
    refused(sds("cast", "x.safetensors", "-o", tmp_path / "y", "--threads", "-1"), 2, "--threads")
    refused(sds("cast", "x.safetensors", "-o", tmp_path / "y", "--threads", "1.5"), 2, "'1.5' is not a whole number")
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


def test_words_of_other_programs_lead_to_the_command_and_to_a_block_s_spelling(models: Path) -> None:
    files = [models / f"{name}.safetensors" for name in "ab"]
    refused(sds("mix", *files), 2, "did you mean 'merge'?")
    refused(sds("help"), 2, "did you mean '--help'?")
    refused(sds("info", files[0]), 2, f"sdsurgery inspect {files[0]}")
    for blocks, hint in (("IN00:0.5", "IN00=NUMBER"), ("OUT=0.5", "OUT00-OUT11")):
        refused(sds("merge", *files, "--method", "weighted-sum", "--blocks", blocks, "--dry-run"), 2, hint)


def test_did_you_mean_for_verbs_and_parameters(models: Path) -> None:
    refused(sds("merg"), 2, "merg", "merge")
    refused(
        sds("merge", "--method", "add-diff", *[models / "a.safetensors"] * 3, "--alhpa", "1", "--dry-run"), 2, "alhpa"
    )
    # An option that must be there is not said to be missing when it is only mistyped.
    refused(sds("merge", "--methd", "add-diff", models / "a.safetensors"), 2, "'--methd'", "did you mean '--method'")
    with pytest.raises(sdsurgery.UsageError, match="did you mean 'alpha'"):
        sdsurgery.merge("add-diff", [models / "a.safetensors"] * 3, alhpa=1, dry_run=True)
    with sdsurgery.open(models / "a.safetensors") as opened, pytest.raises(KeyError, match="did you mean"):
        opened.info("model.diffusion_model.out.2.bais")


def test_without_a_method_the_usual_ones_for_so_many_files_are_shown(models: Path) -> None:
    files = [models / f"{name}.safetensors" for name in "abc"]
    refused(sds("merge", *files[:2], "--alpha", "0.3"), 2, "merge needs a method", f"{files[1]} --method weighted-sum")
    refused(sds("merge", *files), 2, "--method add-diff", "A + (B − C)", "--method triple-sum")
    refused(sds("merge", *files, files[0]), 2, "--method mean", "--weights")
    refused(sds("merge", files[0]), 2, "two files or more")
    refused(sds("merge", files[0], "none.safetensors"), 3, "none.safetensors: No such file")


def test_after_two_dashes_come_files_whatever_their_names(models: Path, tmp_path: Path) -> None:
    for name in ("-a.safetensors", "--force", "--"):
        (tmp_path / name).write_bytes((models / "a.safetensors").read_bytes())
        out = sds("cast", "--dtype", "fp16", "--json", "-o", "out.safetensors", "--dry-run", "--", name, cwd=tmp_path)
        assert out.rc == 0, out.err


def test_an_output_named_like_an_input_is_recognised(models: Path) -> None:
    for verb in (["merge", "a.safetensors", "--method", "weighted-sum"], ["cast", "--dtype", "fp16"]):
        refused(sds(*verb, "b.safetensors", "new.safetensors", cwd=models), 2, "did you mean -o new.safetensors?")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("cast a.safetensors -o x.safetensors -o y.safetensors", "-o (or --out, --output)"),
        ("cast a.safetensors -o x.safetensors --dtype fp16 --dtype bf16", "--dtype"),
        ("extract-lora a.safetensors b.safetensors --rank 4 --rank 8 -o x.safetensors", "--rank"),
        ("layouts --keys sd1 --keys sd2", "--keys"),
    ],
)
def test_an_option_with_two_values_is_refused(args: str, named: str) -> None:
    refused(sds(*args.split()), 2, f"{named} is given twice, with different values")


def test_an_option_may_be_repeated(models: Path, tmp_path: Path) -> None:
    done(
        sds("cast", models / "a.safetensors", "--dtype", "bf16", "--dtype", "bf16", "-o", tmp_path / "out.safetensors")
    )


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
