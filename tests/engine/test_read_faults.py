"""Reads that fail, at any place of any verb: one line with the file's name, or the right result; never a traceback.

A small library (``tests/helpers/faults.c``) is preloaded, which makes the K-th read of an input fail.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from fault_driver import runs

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library that it compiles"
)

KINDS = ("EIO", "ESTALE", "EINTR", "SHORT", "CUT")
READS = 20
MERGE = ["merge", "--method", "weighted-sum", "in.safetensors", "in.b.safetensors", "-o", "out.safetensors"]
VERBS = {
    "inspect": ["inspect", "in.safetensors"],
    "inspect ckpt": ["inspect", "in.ckpt"],
    "verify": ["verify", "in.safetensors"],
    "verify ckpt": ["verify", "in.ckpt"],
    "compare": ["compare", "in.safetensors", "in.b.safetensors"],
    "scan": ["scan", "in.ckpt"],
    "merge": MERGE,
    "merge by reading": [*MERGE, "--io", "pread"],
    "merge, the output hashed": [*MERGE, "--hash", "full"],
    "cast": ["cast", "in.ckpt", "--dtype", "bf16", "-o", "out.safetensors"],
    "prune": ["prune", "in.safetensors", "-o", "out.safetensors"],
    "ema": ["ema", "in.ema.safetensors", "-o", "out.safetensors"],
    "extract": ["extract", "in.safetensors", "--component", "vae", "-o", "out.safetensors"],
    "replace": [
        *("replace", "in.safetensors", "--component", "vae", "--with", "in.b.safetensors"), *("-o", "out.safetensors"),
    ],
    "convert": ["convert", "in.safetensors", "-o", "out.ckpt"],
    "fix-clip": ["fix-clip", "in.safetensors", "-o", "out.safetensors"],
}  # fmt: skip


def _faults(*, every: bool) -> list[tuple[str, list[str]]]:
    """Each of the first reads fails by EIO and, in turn, by one of the other kinds, or by every one."""
    others = KINDS[1:]
    faults = [("none", ["0 EIO"]), ("EIO", [f"{number} EIO" for number in range(1, READS + 1)])]
    for turn, kind in enumerate(others):
        numbers = [number for number in range(1, READS + 1) if every or number % len(others) == turn]
        faults.append((kind, [f"{number} {kind}" for number in numbers]))
    return faults


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every kind"])
def test_a_read_that_fails_is_one_line_with_the_file_s_name(library: Path, folder: Path, every: bool) -> None:
    found = runs(library, folder, VERBS, "SDS_FAULT_READ", _faults(every=every), SDS_FAULT_PATH=f"{folder}/in.")
    failed = dict.fromkeys(VERBS, 0)
    usual = {case.verb: (case.code, case.err) for case in found if case.kind == "none"}
    assert {code for code, _ in usual.values()} == {0, 4}  # 4: compare finds differences, verify that parts are absent
    for case in found:
        if not case.fired or case.kind in ("EINTR", "SHORT"):
            assert (case.code, case.err) == usual[case.verb], case
        elif (case.code, case.err) != usual[case.verb]:
            failed[case.verb] += 1
            assert case.code in (1, 3), case
            assert case.err.startswith("sdsurgery: ") and case.err.count("\n") == 1, case
            assert "internal error" not in case.err and "in." in case.err, case
            assert not case.made, case
        assert set(case.made) <= {"out.safetensors", "out.ckpt"}, case
        assert case.handles <= 0, case
    assert min(failed.values()) >= 3, "too few reads failed for this test to mean anything"
