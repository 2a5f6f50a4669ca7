"""The CUDA module without a GPU: kernels/*.cu compiled as C++ over helpers/fake_cuda, where a launch runs the kernel's
threads one after the other. What this cannot show is the hardware's own conversions (kernels/convert.cuh) and speed."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "helpers" / "fake_cuda"
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-w")
# The module's functions only pass on what the kernels do; optimising them takes longer than it saves.
SOURCES = {"bind_cuda.cc": "-O0", "elementwise.cu": "-O1", "reduce.cu": "-O1"}


@functools.cache
def fake_module() -> ModuleType:
    """The module ``_cuda`` with a fake device, compiled once for all processes of a run and later runs over the same
    sources; the test is skipped where it cannot be compiled."""
    compiler = shutil.which("c++") or shutil.which("g++") or pytest.skip("no C++ compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no Python headers")
    name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    built = Path(tempfile.gettempdir(), f"sds-fake-cuda-{os.getuid()}", _digest(compiler))
    built.mkdir(parents=True, exist_ok=True)
    with open(built / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (built / name).exists():
            _compile(compiler, built / "unfinished")
            (built / "unfinished").rename(built / name)
    spec = importlib.util.spec_from_file_location("sdsurgery.kernels._cuda", built / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(compiler: str) -> str:
    """Of all that the module is compiled from."""
    files = [*FAKE.iterdir(), *(ROOT / "kernels").iterdir(), *(ROOT / "csrc").rglob("*.h")]
    found = hashlib.sha256(repr((compiler, FLAGS, SOURCES, sys.version)).encode())
    for path in sorted(path for path in files if path.is_file()):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _compile(compiler: str, target: Path) -> None:
    import pybind11
    import torch

    with tempfile.TemporaryDirectory() as folder:
        dlpack = Path(folder, "dlpack")
        dlpack.mkdir()
        # torch has the official header too, under another name.
        (dlpack / "dlpack.h").symlink_to(Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h")
        includes = [FAKE, folder, pybind11.get_include(), sysconfig.get_path("include")]
        command = [compiler, *FLAGS, '-DSDS_CUDA_ARCHITECTURES="fake"', *(f"-I{item}" for item in includes)]
        objects = [f"{folder}/{name}.o" for name in SOURCES]
        running = [
            subprocess.Popen([*command, level, "-x", "c++", "-c", str(ROOT / "kernels" / name), "-o", item])
            for (name, level), item in zip(SOURCES.items(), objects, strict=True)
        ]
        assert [each.wait() for each in running] == [0] * len(running)
        subprocess.run([compiler, "-shared", *objects, "-o", str(target)], check=True)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fake module the one that the backend finds."""
    import sdsurgery.kernels

    module = fake_module()
    monkeypatch.setitem(sys.modules, "sdsurgery.kernels._cuda", module)
    monkeypatch.setattr(sdsurgery.kernels, "_cuda", module, raising=False)
