"""Who takes part in the end-to-end benchmark: each is a command line for a case, run as a whole process.

A new contender is one function here and one row in ``CONTENDERS``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Job:
    """One case on this machine. ``alike`` is a file of the output's size, for ``cp``; ``floor`` the compiled floor.

    ``needed`` are files of as many bytes as the output is made of: the inputs, unless much of them is dropped.
    """

    operation: str  # weighted-sum, add-diff, cast, ema, prune or convert
    inputs: tuple[str, ...]
    alpha: float
    dtype: str
    out: str
    out_bytes: int
    alike: str
    needed: tuple[str, ...]
    threads: int
    hash: bool
    sync: bool
    floor: str | None


@dataclass(frozen=True)
class Contender:
    """``command`` gives the process's arguments; ``inner`` finds the seconds of the work in what it printed.

    ``syncs``: flushes its output by itself when the job asks for it.
    """

    command: Callable[[Job], list[str]]
    inner: Callable[[str], float | None]
    available: Callable[[Job], bool]
    syncs: bool = False


_SINGLE = {"cast": ["cast"], "ema": ["ema"], "prune": ["prune", "--preset", "no-ema"], "convert": ["convert"]}
"""Commands of the operations on one file."""


EARLIER = "SDS_BENCH_EARLIER"
"""The environment variable that names a folder with another version (``pip install --target FOLDER``)."""


def _earlier(job: Job) -> list[str]:
    return ["env", f"PYTHONPATH={os.environ[EARLIER]}", *_ours(job)]


def _ours(job: Job) -> list[str]:
    head = [sys.executable, "-m", "sdsurgery"]
    if job.operation in _SINGLE:
        head += [*_SINGLE[job.operation], *job.inputs, "--dtype", job.dtype]
    else:
        head += ["merge", "--method", job.operation, *job.inputs, "--alpha", str(job.alpha)]
    switches = [*([] if job.hash else ["--no-hash"]), *([] if job.sync else ["--no-sync"])]
    return [*head, "--threads", str(job.threads), *switches, "--json", "-q", "-o", job.out]


def _cp(job: Job) -> list[str]:
    return ["cp", job.alike, job.out]


def _cp_and_read(job: Job) -> list[str]:
    """A copy of the output's size, then the other inputs read once: the yardstick when nothing is cached."""
    script = 'cp "$1" "$2" && shift 2 && for file; do dd if="$file" of=/dev/null bs=1M status=none; done'
    return ["sh", "-c", script, "sh", job.inputs[0], job.out, *job.inputs[1:]]


def _floor(kind: str) -> Callable[[Job], list[str]]:
    return lambda job: [job.floor or "", kind, job.out, str(job.out_bytes), str(job.threads), *job.needed]


def _rival(name: str) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        script = os.path.join(HERE, "rivals.py")
        return [sys.executable, script, name, job.operation, str(job.alpha), job.dtype, job.out, *job.inputs]

    return command


def _json_seconds(text: str) -> float | None:
    return float(json.loads(text)["seconds"])


def _printed_seconds(text: str) -> float | None:
    return float(text.strip().splitlines()[-1])


def _untold(text: str) -> float | None:
    return None


def _installed(*modules: str) -> Callable[[Job], bool]:
    return lambda job: (
        job.operation not in ("ema", "prune", "convert") and all(importlib.util.find_spec(module) for module in modules)
    )


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(_ours, _json_seconds, lambda job: True, syncs=True),
    "earlier": Contender(_earlier, _json_seconds, lambda job: EARLIER in os.environ, syncs=True),
    "cp": Contender(_cp, _untold, lambda job: shutil.which("cp") is not None),
    "cp+read": Contender(
        _cp_and_read, _untold, lambda job: job.operation not in _SINGLE and shutil.which("dd") is not None
    ),
    "floor": Contender(_floor("plain"), _printed_seconds, lambda job: job.floor is not None),
    "floor-reserved": Contender(_floor("reserved"), _printed_seconds, lambda job: job.floor is not None),
    "torch": Contender(_rival("torch"), _printed_seconds, _installed("torch", "safetensors")),
    "sd-mecha": Contender(_rival("sd-mecha"), _printed_seconds, _installed("sd_mecha")),
}


def build_floor(folder: str) -> str | None:
    """Compile floor.cc with the system's compiler ($CXX, c++, g++ or clang++); None when there is none."""
    names: Sequence[str | None] = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler is None or os.name == "nt":
        return None
    program = os.path.join(folder, "floor")
    source = os.path.join(HERE, "floor.cc")
    subprocess.run([compiler, "-std=c++17", "-O2", "-pthread", source, "-o", program], check=True)
    return program
