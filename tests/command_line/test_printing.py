"""Where text goes: JSON, quiet, verbose, colours and bars."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import done, environment, refused, sds

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


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
