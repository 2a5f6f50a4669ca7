"""What starting a command and importing the package load."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from cli_support import done, started

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


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
