"""Reads that fail, at any place of any verb: one line with the file's name, or the right result; never a traceback.

A small library (``tests/helpers/faults.c``) is preloaded, which makes the K-th read of an input fail.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import environment
from sdsurgery.testing import write_checkpoint

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

DRIVER = """
import contextlib, ctypes, io, json, os, sys
from sdsurgery import cli
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
verbs, kinds, reads = json.loads(sys.argv[1])
found = []
for name, words in verbs.items():
    for kind in ["none", *kinds]:
        for number in range(1, reads + 1):
            out, err = io.StringIO(), io.StringIO()
            os.environ["SDS_FAULT_READ"] = f"{number} {kind}" if kind != "none" else "0 EIO"
            library.sds_faults_begin()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.run([*words, "-q"])
            fired = library.sds_faults_fired()
            made = [file for file in os.listdir(".") if not file.startswith("in.")]
            for file in made:
                os.unlink(file)
            found.append((name, kind, number, code, err.getvalue(), bool(fired), made))
            if not fired:
                break
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).parent.parent / "helpers" / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny inputs of every form."""
    made = tmp_path_factory.mktemp("inputs")

    def few(tensor: object) -> bool:  # every part of a model, and not all of its layers
        name = getattr(tensor, "name", "")
        return not any(f".{number}." in name for number in range(3, 30)) or "output_blocks" in name

    write_checkpoint(made / "in.safetensors", size="tiny", seed=1)
    write_checkpoint(made / "in.b.safetensors", size="tiny", seed=2)
    write_checkpoint(made / "in.ema.safetensors", size="tiny", seed=3, ema=True)
    write_checkpoint(made / "in.ckpt", size="tiny", seed=4)
    return made


@pytest.mark.parametrize("name", VERBS)
def test_a_read_that_fails_is_one_line_with_the_file_s_name(name: str, library: Path, folder: Path) -> None:
    surroundings = {**environment(), "LD_PRELOAD": str(library), "SDS_FAULT_PATH": f"{folder}/in."}
    work = json.dumps([{name: VERBS[name]}, KINDS, READS])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, work], cwd=folder, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failed = 0
    for verb, kind, number, code, err, fired, made in json.loads(done.stdout):
        case = (verb, kind, number, code, err)
        if not fired or kind in ("EINTR", "SHORT"):
            assert (code, err) in ((0, ""), (4, "")), case  # 4: compare
        elif code:
            failed += 1
            assert code in (1, 3), case
            assert err.startswith("sdsurgery: ") and err.count("\n") == 1 and "internal error" not in err, case
            assert "in." in err, case
            assert made == [], case
        assert set(made) <= {"out.safetensors", "out.ckpt"}, (case, made)
    assert failed >= 3, "too few reads failed for this test to mean anything"
