"""--dry-run says what the run would do, and ends as it would."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, listing, plain, sds

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


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
