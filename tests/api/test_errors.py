"""Errors as programs see them: codes, attributes, spelling, JSON, and Ctrl-C that no ``except Exception`` swallows."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import sdsurgery
from cli_support import plain, sds, write_raw
from sdsurgery.commands.spelling import in_shell


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return plain(tmp_path / "a.safetensors", 1.0, 2.0), plain(tmp_path / "b.safetensors", 3.0, 4.0)


def failure(*args: object, **options: object) -> sdsurgery.SdsError:
    with pytest.raises(sdsurgery.SdsError) as caught:
        sdsurgery.merge(*args, **options)  # type: ignore[arg-type]
    return caught.value


def test_errors_have_codes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert failure("weighted-sum", pair).code == "no_output"
    assert failure("weighted-sun", pair, out=out).code == "unknown_name"
    assert failure("weighted-sum", pair, out=out, alpha="x").code == "bad_value"
    assert failure("weighted-sum", pair, out=out, dtype="fp61").code == "bad_value"
    for wrong in ({"overwrite": "yes"}, {"title": 3}, {"tile_bytes": "x"}, {"gpu_memory": "1M"}, {"progress": 3}):
        assert failure("weighted-sum", pair, out=out, **wrong).code == "bad_value"
    assert failure("add-diff", pair, out=out).code == "wrong_inputs"
    assert failure("weighted-sum", pair, out=out, alpha=1, weights=[1, 2]).code == "conflict"
    assert failure("weighted-sum", (pair[0], tmp_path / "none"), out=out).code == "not_found"
    assert failure("weighted-sum", (pair[0], tmp_path), out=out).code == "not_regular"
    assert failure("weighted-sum", pair, out=tmp_path).code == "bad_output"
    big = plain(tmp_path / "big.safetensors", 1e9, 1e9)
    error = failure("weighted-sum", (big, big), out=out, dtype="fp16", overflow="error")
    assert (error.code, error.tensor) == ("overflow", "w")


def test_a_wrong_shape_says_which_tensor_and_file_and_both_shapes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = plain(tmp_path / "c.safetensors", 1.0, 2.0, 3.0)
    error = failure("weighted-sum", (pair[0], other), out=tmp_path / "o")
    assert (error.code, error.tensor, error.path) == ("shape", "w", str(other))
    assert error.details == {"found": [3], "expected": [2]}
    again = pickle.loads(pickle.dumps(error))
    assert again.to_dict() == error.to_dict()
    assert str(again) == str(error)


def test_a_file_that_is_not_there_is_named_by_the_error(tmp_path: Path) -> None:
    with pytest.raises(sdsurgery.InputRefused) as caught:
        sdsurgery.cast(tmp_path / "none.safetensors", out=tmp_path / "o.safetensors")
    assert (caught.value.code, caught.value.path) == ("not_found", str(tmp_path / "none.safetensors"))


def test_a_damaged_file_and_an_unknown_format_have_different_codes(tmp_path: Path) -> None:
    damaged = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [2], b"\0" * 8)})
    damaged.write_bytes(damaged.read_bytes() + b"more")
    for path, code in ((damaged, "damaged"), (tmp_path / "b.safetensors", "unknown_format")):
        if code == "unknown_format":
            path.write_bytes(b"GIF89a" * 100)
        with pytest.raises(sdsurgery.InputRefused) as caught:
            sdsurgery.open(path)
        assert (caught.value.code, caught.value.path) == (code, str(path))


def test_messages_spell_options_for_python_and_for_the_shell(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(sdsurgery.UsageError, match=r"exists; overwrite=True replaces it$") as caught:
        sdsurgery.cast(pair[0], out=pair[1])
    assert (caught.value.code, caught.value.path) == ("exists", str(pair[1]))
    ended = sds("cast", pair[0], "-o", pair[1])
    assert ended.rc == 2
    assert ended.err == f"sdsurgery: {pair[1]} exists; --force replaces it\n"


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("no output given (out=FILE, or dry_run=True)", "no output given (-o FILE, or --dry-run)"),
        ('(overflow="inf" or "saturate", or a wider dtype=)', "(--overflow inf or saturate, or a wider --dtype)"),
        ("prune(drop_keys=…) before fix_names=True", "prune --drop-keys before --fix-names"),
        ('prune(preset="no-ema") removes them', "prune --preset no-ema removes them"),
        ('say which: blocks={"alpha": …}', "say which: --blocks alpha:…"),
        ("give weights=", "give --weights"),
        ("mix-alpha=0.4.safetensors and dtype=fp16.ckpt", "mix-alpha=0.4.safetensors and dtype=fp16.ckpt"),
    ],
)
def test_options_are_translated_and_file_names_are_not(python: str, shell: str) -> None:
    assert in_shell(python) == shell


def test_json_prints_the_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ended = sds("cast", pair[0], "-o", pair[1], "--json")
    assert ended.rc == 2
    error = ended.json()["error"]
    assert error["code"] == "exists"
    assert error["exit_code"] == 2
    assert error["path"] == str(pair[1])
    assert ended.err == f"sdsurgery: {error['message']}\n"
    assert sds("marge", "--json").json()["error"]["code"] == "unknown_name"
    assert sds("merge", "--json", "--dtpye", "fp16").json()["error"]["code"] == "unknown_name"
    assert sds("cast", "--json", pair[0], "-o").json()["error"]["code"] == "usage"
    assert sds("cast", "--json", pair[0], "--dtype", "fp17").json()["error"]["code"] == "bad_value"
    assert sds("merge", "--json", "--method", "slerp", "--formula", "A").json()["error"]["code"] == "conflict"


def test_a_result_that_is_a_failure_has_the_error_in_it(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [1], b"\0" * 4)}, {"sshs_model_hash": "0" * 64})
    ended = sds("verify", path, "--json")
    assert ended.rc == 4
    assert ended.json()["error"]["code"] == "differs"
    assert ended.json()["tensors"] == 1
    ended = sds("convert", "--json", path, tmp_path / "none.ckpt", "--out-dir", tmp_path / "out")
    assert ended.json()["error"]["code"] == "not_found"
    assert [row["error"] and row["error"]["code"] for row in ended.json()["files"]] == [None, "not_found"]


def test_except_exception_does_not_swallow_an_interruption(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert issubclass(sdsurgery.Interrupted, KeyboardInterrupt)
    assert not issubclass(sdsurgery.Interrupted, Exception)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.safetensors"
    with pytest.raises(sdsurgery.Interrupted, match="nothing was written") as caught:
        sdsurgery.merge("weighted-sum", pair, out=out, progress=interrupt)
    assert (caught.value.code, caught.value.exit_code) == ("interrupted", 130)
    assert not out.exists()
