"""inspect on the command line: one file, a table of several, lists of tensors, hashes, narrow terminals."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, on_terminal, refused, sds


def test_several_files_are_a_table_and_a_failure_does_not_stop_the_others(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    report = sdsurgery.merge("weighted-sum", [models / "a.safetensors", models / "b.safetensors"], out=out)
    head, first, second = done(sds("inspect", models / "a.safetensors", out)).out.splitlines()[:3]
    assert head.split()[:5] == ["file", "family", "size", "dtypes", "EMA"]
    assert first.startswith("a.safetensors") and "unet" in first
    assert second.startswith("mix.safetensors") and report.body_sha256[:12] in second  # stated, so not computed
    result = sds("inspect", tmp_path / "none", out, "--json")
    assert result.rc == 3
    missing, whole = result.json()["files"]
    assert (missing["inspection"], missing["error"]["code"]) == (None, "not_found")
    assert (whole["inspection"]["family"], whole["error"]) == ("sd1", None)
    refused(sds("inspect", models / "a.safetensors", out, "--base", out), 2, "--base")


def test_keys_lists_tensors(models: Path) -> None:
    path = models / "a.safetensors"
    rows = done(sds("inspect", "--keys", r"\.out\.2\.", path)).out.splitlines()
    assert rows[1].split()[:2] == ["model.diffusion_model.out.2.weight", "F16"] and rows[1].endswith("unet")
    assert len(rows) == 4 and rows[-1].startswith("2 of ")
    everything = done(sds("inspect", "--keys", path, "--json")).json()["tensors"]  # the file is not an expression
    assert everything[0].keys() == {"name", "dtype", "shape", "component", "bytes"}
    assert len(everything) == len(sdsurgery.inspect(path, keys="").tensors) > 1000
    assert sdsurgery.inspect(path).tensors == []
    refused(sds("inspect", "--keys", "(", path), 2, "--keys", "expression")


def test_hashes_are_those_of_the_file_and_its_tensor_data(models: Path) -> None:
    path = models / "a.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    whole, body = hashlib.sha256(data).hexdigest(), hashlib.sha256(data[start:]).hexdigest()
    found = sdsurgery.inspect(path, hashes=True).hashes
    assert (found["sha256"], found["autov2"], found["body_sha256"], found["autov3"]) == (
        whole, whole[:10], body, body[:12],
    )  # fmt: skip
    assert found["autov1"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert found["crc32"] == f"{zlib.crc32(data):08x}"
    assert f"CRC-32: {found['crc32']}" in done(sds("inspect", "--hashes", path)).out


def test_blake3_is_that_of_the_file(tmp_path: Path, models: Path) -> None:
    blake3 = pytest.importorskip("blake3")
    data = (models / "a.safetensors").read_bytes()
    assert sdsurgery.inspect(models / "a.safetensors", hashes=True).hashes["blake3"] == blake3.blake3(data).hexdigest()


def test_info_ends_with_its_last_line() -> None:
    code, text = on_terminal("info", columns=200)
    assert code == 0 and "leaked" not in text
    assert text.rstrip().splitlines()[-1].startswith("rich: ")


def test_every_report_fits_sixty_columns(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "out.safetensors"
    sdsurgery.merge("weighted-sum", [a, b], out=out)
    commands = (
        ("merge", "--method", "weighted-sum", a, b, "-o", out, "--force", "-v"), ("merge", "--help"),
        ("merge", "--method", "weighted-sum", a, b, "-o", out, "--force", "--dry-run"),
        ("prune", out, "-o", tmp_path / "p.safetensors"), ("cast", out, "--dtype", "bf16", "-o", tmp_path / "c"),
        ("inspect", out, "--hashes"), ("inspect", a, out), ("inspect", out, "--keys"), ("verify", out),
        ("compare", a, out), ("unmix", out, a, b), ("map", a, b, out), ("scan", out), ("methods",), ("layouts",),
        ("layouts", "--blocks", "sd1"), ("info",), ("--help",),
    )  # fmt: skip
    for command in commands:
        code, text = on_terminal(*command, columns=60)
        assert code in (0, 4), (command, text)
        for line in text.splitlines():
            # Names, paths and hashes are not broken: they are searched for and copied.
            assert len(line) <= 60 or " " not in line.strip(), (command, line)
