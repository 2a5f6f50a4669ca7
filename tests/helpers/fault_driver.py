"""Runs the command line again and again in one process, with ``faults.c`` preloaded, and says what each run left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cli_support import environment
from sdsurgery.layouts import LayoutTensor, get
from sdsurgery.testing import write_checkpoint

SOURCE = Path(__file__).parent / "faults.c"
OLD = b"old"
"""What stands in the place of an output that is replaced (``--force``)."""

DRIVER = """
import contextlib, ctypes, gc, hashlib, io, json, os, sys
from sdsurgery import cli
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
inputs = set(os.listdir("."))
verbs, variable, faults = json.loads(sys.argv[1])
for name, words in verbs.items():
    for kind, texts in faults:
        for number, text in enumerate(texts, 1):
            out, err = io.StringIO(), io.StringIO()
            if "--force" in words:
                with open(words[words.index("-o") + 1], "wb") as file:
                    file.write(b"old")
            gc.collect()
            handles = len(os.listdir("/proc/self/fd"))
            os.environ[variable] = text
            library.sds_faults_begin()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.run([*words, "-q"])
            os.environ[variable] = "0 EIO"
            fired = library.sds_faults_fired()
            gc.collect()
            handles = len(os.listdir("/proc/self/fd")) - handles
            made = {}
            for file in set(os.listdir(".")) - inputs:
                with open(file, "rb") as opened:
                    made[file] = hashlib.sha256(opened.read()).hexdigest()
                os.unlink(file)
            print(json.dumps((name, kind, number, code, err.getvalue(), bool(fired), made, handles)))
            if not fired:
                break
"""


class Ran(NamedTuple):
    """One run: which kind of fault was asked for, the number of its text, whether it happened, what the run said, the
    SHA-256 of the files that it left, by name, and how many more handles are open after it than before."""

    verb: str
    kind: str
    number: int
    code: int
    err: str
    fired: bool
    made: dict[str, str]
    handles: int


def compiled(folder: Path) -> Path:
    """The library to preload, compiled."""
    made = folder / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True)
    return made


def write_inputs(folder: Path) -> Path:
    """Small inputs of every form, with something of every part of a model: a run takes 20 ms."""
    family = get("sd1")

    def few(tensor: LayoutTensor) -> bool:
        shows = tensor.key in family.discriminators() or family.is_evidence(tensor.key)
        return shows or not any(f".{number}." in tensor.key for number in range(1, 30))

    for seed, (name, ema) in enumerate({"in": False, "in.b": False, "in.ema": True}.items()):
        write_checkpoint(folder / f"{name}.safetensors", size="tiny", seed=seed, ema=ema, keep=few)
    write_checkpoint(folder / "in.ckpt", size="tiny", seed=4, keep=few)
    return folder


def runs(
    preloaded: Path, folder: Path, verbs: Mapping[str, Sequence[str]], variable: str,
    faults: Sequence[tuple[str, Sequence[str]]], **further: str,
) -> list[Ran]:  # fmt: skip
    """Every verb with every fault: a kind, and texts of the environment's ``variable``, one run for each, as long as
    the faults happen."""
    surroundings = {**environment(), "LD_PRELOAD": str(preloaded), **further}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([verbs, variable, faults])], cwd=folder, env=surroundings,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [name for name in os.listdir(folder) if name.startswith(("out", ".sdsurgery"))]
    return [Ran(*json.loads(line)) for line in done.stdout.splitlines()]
