"""bench/gpu.py where there is no GPU, and the comparison that a workflow fails by."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(**values: Any) -> dict[str, Any]:
    return {"gpu": "Some GPU", "copy_bytes_per_second": 1e12, "ratios": {"kernels": values, "unet": {"cuda": 0.9}}}


def test_only_falling_ratios_are_regressions(bench: ModuleType) -> None:
    old = results(add={"float16": {"1024": {"cuda": 0.95, "torch": 0.3}}})
    assert bench.regressions(old, old, 0.05) == []
    better = results(add={"float16": {"1024": {"cuda": 0.99, "torch": 0.3}}}, new={"float16": 0.1})
    assert bench.regressions(old, better, 0.05) == []
    slightly = results(add={"float16": {"1024": {"cuda": 0.91, "torch": 0.3}}})
    assert bench.regressions(old, slightly, 0.05) == []
    worse = results(add={"float16": {"1024": {"cuda": 0.90, "torch": 0.3}}})
    (line,) = bench.regressions(old, worse, 0.05)
    assert "kernels/add/float16/1024/cuda" in line and "0.950" in line and "0.900" in line
    gone = results(add={"float16": {"1024": {"torch": 0.3}}})
    assert "not measured" in bench.regressions(old, gone, 0.05)[0]


def test_the_comparison_has_an_exit_code(tmp_path: Path) -> None:
    old, new, other = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "other.json"
    old.write_text(json.dumps(results(add=0.9)))
    new.write_text(json.dumps(results(add=0.5)))
    other.write_text(json.dumps({**results(add=0.9), "gpu": "Another GPU"}))
    for pair, code in (((old, old), 0), ((new, old), 0), ((old, new), 1), ((old, other), 2)):
        ran = subprocess.run([sys.executable, str(SCRIPT), "--compare", *map(str, pair)], check=False)
        assert ran.returncode == code, pair


def test_without_a_gpu_it_says_so_and_fails() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "no GPU" in ran.stderr and "Traceback" not in ran.stderr


def test_requiring_a_gpu_makes_skipping_all_a_failure() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(SCRIPT.parents[1] / "tests" / "test_gpu.py")]
    command += ["-k", "overflow"]
    for options, code in (([], 0), (["--require-gpu"], 1)):
        ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
        assert ran.returncode == code, ran.stdout + ran.stderr
    assert "no GPU test ran" in ran.stdout
