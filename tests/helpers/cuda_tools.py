"""The CUDA module without a GPU: kernels/*.cu compiled as C++ over helpers/fake_cuda, where a launch runs the kernel's
threads one after the other. What this cannot show is the hardware's own conversions (kernels/convert.cuh) and speed."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden", "-w")


@functools.cache
def fake_module() -> ModuleType:
    """The module ``_cuda`` with a fake device; the test is skipped where it cannot be compiled."""
    compiler = shutil.which("c++") or shutil.which("g++")
    import pybind11
    import torch

    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = Path(tempfile.mkdtemp(prefix="sds-fake-cuda-"))
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    headers = folder / "include"
    (headers / "dlpack").mkdir(parents=True)
    # torch has the official header too, under another name.
    (headers / "dlpack" / "dlpack.h").symlink_to(Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h")
    fake = ROOT / "tests" / "helpers" / "fake_cuda"
    includes = [fake, headers, pybind11.get_include(), sysconfig.get_path("include")]
    if not (Path(includes[-1]) / "Python.h").exists():
        pytest.skip("no Python headers")
    command = [compiler, *FLAGS, '-DSDS_CUDA_ARCHITECTURES="fake"', *(f"-I{item}" for item in includes), "-x", "c++"]
    sources = [str(ROOT / "kernels" / name) for name in ("elementwise.cu", "reduce.cu", "bind_cuda.cc")]
    try:
        subprocess.run([*command, *sources, "-o", str(target)], check=True)
        spec = importlib.util.spec_from_file_location("sdsurgery.kernels._cuda", target)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        shutil.rmtree(folder)
    return module


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fake module the one that the backend finds."""
    import sdsurgery.kernels

    module = fake_module()
    monkeypatch.setitem(sys.modules, "sdsurgery.kernels._cuda", module)
    monkeypatch.setattr(sdsurgery.kernels, "_cuda", module, raising=False)
