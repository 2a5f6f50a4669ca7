"""Calls of the system that fail while an output is made: the run ends with a result or one line and a documented exit
code, the target is untouched or whole, and nothing is left behind.

A small library (``tests/helpers/faults.c``) is preloaded, which makes the K-th call of a kind fail.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fault_driver import OLD, Ran, runs

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library that it compiles"
)

CALLS = ("open", "mmap", "fallocate", "ftruncate", "pwrite", "fsync", "linkat", "link", "renameat2", "rename", "close",
         "unlink", "pthread_create")  # fmt: skip
NAMING = ("open", "linkat", "link", "renameat2", "rename", "unlink")
ERRORS = ("EIO", "ENOSPC", "EINTR", "EACCES", "EDQUOT", "EPERM", "ESTALE", "EROFS", "ENOMEM", "EOPNOTSUPP")
MERGE = ["merge", "--method", "weighted-sum", "in.safetensors", "in.b.safetensors", "-o", "out.safetensors"]
VERBS = {
    "merge": MERGE,
    "merge over a file": [*MERGE, "--force"],
    "convert": ["convert", "in.safetensors", "-o", "out.ckpt", "--force"],
    "sweep": [*MERGE[:-1], "out{alpha}.safetensors", "--alpha", "0.2,0.8"],
}
FURTHER = {
    "cast": ["cast", "in.ckpt", "--dtype", "bf16", "-o", "out.safetensors", "--force"],
    "prune": ["prune", "in.safetensors", "-o", "out.safetensors"],
    "ema": ["ema", "in.ema.safetensors", "-o", "out.safetensors"],
    "extract": ["extract", "in.safetensors", "--component", "vae", "-o", "out.safetensors"],
    "fix-clip": ["fix-clip", "in.safetensors", "-o", "out.safetensors", "--force"],
    "extract-lora": ["extract-lora", "in.safetensors", "in.b.safetensors", "--rank", "2", "-o", "out.safetensors"],
}
ODD = {
    "": {},
    "no nameless files": {"SDS_FAULT_NO_TMPFILE": "1"},
    "no hard links": {"SDS_FAULT_NO_TMPFILE": "1", "SDS_FAULT_NO_LINK": "1"},
    "no links, no careful rename": {"SDS_FAULT_NO_TMPFILE": "1", "SDS_FAULT_NO_LINK": "2"},
}


def _faults(calls: Sequence[str], *, every: bool) -> list[tuple[str, list[str]]]:
    """Every call of each kind fails once, by the errors in turn, or by every error."""
    numbers = range(1, 25)
    faults = [("none", ["0 EIO"])]
    for turn, call in enumerate(calls):
        if every:
            faults += [(call, [f"{call} {number} {error}" for number in numbers]) for error in ERRORS]
        else:
            faults.append((call, [f"{call} {number} {ERRORS[(number + turn) % len(ERRORS)]}" for number in numbers]))
    return faults


def _check(case: Ran, whole: dict[str, str]) -> None:
    """``whole``: the outputs of an undisturbed run, and their SHA-256."""
    assert case.code in (0, 1, 3), case
    if case.code:
        assert case.err.startswith("sdsurgery: ") and case.err.count("\n") == 1, case
        assert "internal error" not in case.err, case
    else:
        assert (case.err, set(case.made) & set(whole)) == ("", set(whole)), case
    old = hashlib.sha256(OLD).hexdigest()
    for name, digest in case.made.items():
        if name in whole:
            assert digest == whole[name] or (case.code and digest == old), case
        else:  # only what could not be removed
            assert case.kind == "unlink" and name.startswith(".sdsurgery-"), case
    assert case.handles <= 0, case


@pytest.mark.parametrize("system", ODD)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every error"])
def test_a_call_that_fails_leaves_the_target_untouched_or_whole(
    library: Path, folder: Path, system: str, every: bool
) -> None:
    verbs, calls = ({**VERBS, **FURTHER}, CALLS) if every else (VERBS, CALLS)
    if system and not every:
        verbs, calls = {"merge": MERGE}, NAMING
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = {"SDS_FAULT_PATH": str(folder), **ODD[system]}
    whole: dict[str, dict[str, str]] = {}
    failed = set()
    for case in runs(library, folder, verbs, "SDS_FAULT_CALL", _faults(calls, every=every), **given):
        if case.kind == "none":
            assert case.code == 0, case
            whole[case.verb] = case.made
        _check(case, whole[case.verb])
        if case.code:
            failed.add(case.kind)
    assert failed >= ({"open", "pwrite", "fsync"} & set(calls)), "too few calls failed for this test to mean anything"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
