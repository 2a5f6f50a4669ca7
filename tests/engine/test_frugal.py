"""Dropped tensors are never read: the bytes that ema, prune and extract ask the system for, counted by the kernel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sdsurgery
from cli_support import environment, read_raw
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts with /proc/self/io")

# In a process of its own: the bytes read by read(2) and its kin (rchar) while the command runs, imports apart.
COUNTED = """
import re, sys
from sdsurgery import cli, commands
for name in commands.NAMES: commands.command(name)
import sdsurgery.surgery.ema, sdsurgery.surgery.prune, sdsurgery.surgery.components
import sdsurgery.hashing, sdsurgery.metadata
def read(): return int(re.search(r"rchar: ([0-9]+)", open("/proc/self/io").read()).group(1))
before = read()
code = cli.run(sys.argv[1:])
print(read() - before)
sys.exit(code)
"""
SLACK = 4_000_000  # headers, modules imported late, the output read back for its own hash is added apart


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120 MB: a U-Net part, its EMA twin (which is most of the file) and a VAE part, in float32."""
    path = tmp_path_factory.mktemp("frugal") / "in.safetensors"
    write_checkpoint(
        path, "sd1", dtype="fp32", ema=True, keep=lambda row: row.block in ("IN00", "IN01", "IN02", "OUT11")
    )
    return path


def bytes_read(command: Sequence[object]) -> int:
    words = [sys.executable, "-c", COUNTED, *map(str, command), "--io", "pread", "--no-sync", "-q"]
    ran = subprocess.run(words, env=environment(), check=True, capture_output=True, text=True)
    return int(ran.stdout.split()[-1])


VERBS = {
    "ema": ("ema", "{path}", "--dtype", "fp16"),
    "no-ema": ("prune", "{path}", "--preset", "no-ema"),
    "ema-only": ("prune", "{path}", "--preset", "ema-only"),
    "by name": ("prune", "{path}", "--preset", "no-ema", "--drop-keys", "input_blocks"),
    "extract": ("extract", "{path}", "--component", "unet"),
}


@pytest.mark.parametrize("hashing", [[], ["--no-hash"]], ids=["hashed", "not hashed"])
@pytest.mark.parametrize("verb", VERBS)
def test_dropped_tensors_are_not_read(verb: str, hashing: list[str], trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    read = bytes_read([*(word.format(path=trained) for word in VERBS[verb]), *hashing, "-o", out])
    whole = trained.stat().st_size
    tensors = read_raw(trained)[0]
    kept = {name: name for name in read_raw(out)[0]}
    if verb in ("ema", "ema-only"):
        kept = {n: "model_ema." + n[6:].replace(".", "") if n.startswith("model.diff") else n for n in kept}
    needed = sum(len(tensors[source][2]) for source in kept.values())
    assert whole > 1.8 * needed, "the test needs a file most of which is dropped"
    allowed = needed + SLACK + (0 if hashing else out.stat().st_size)
    assert needed <= read <= allowed < whole + (0 if hashing else out.stat().st_size), (needed, read, whole)


def test_an_input_that_is_read_whole_is_hashed(trained: Path, tmp_path: Path) -> None:
    """Input hashes that cost nothing are given: prune of a file with nothing to drop, and of one with plenty."""
    report = sdsurgery.prune(trained, out=tmp_path / "all.safetensors")
    assert report.sha256[0] is not None
    some = sdsurgery.prune(trained, preset="no-ema", out=tmp_path / "some.safetensors")
    assert some.sha256 == [None]
    assert some.body_sha256 is not None
    assert any("SHA-256 was left out" in note for note in some.notes)
    recipe = json.loads(read_raw(tmp_path / "some.safetensors")[1]["sd_merge_recipe"])
    (model,) = recipe["models"]
    assert model["sha256"] is None
    assert re.fullmatch("[0-9a-f]{8}", model["legacy_hash"])
    assert not [line for line in sdsurgery.verify(tmp_path / "some.safetensors").differs if "stored" in line]
