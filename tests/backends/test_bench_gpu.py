"""bench/gpu.py where there is no GPU, and the comparison that a workflow fails by."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIZE = str(16 << 20)


def results(**values: Any) -> dict[str, Any]:
    ratios = {"kernels": {"add": {"float16": {SIZE: values}}}, "unet": {"on the GPU": {"cuda": 0.9}}}
    return {"gpu": "Some GPU", "copy_bytes_per_second": {SIZE: 1e12}, "ratios": ratios}


def test_only_our_falling_ratios_are_regressions(bench: ModuleType) -> None:
    from gpu_results import regressions

    old = results(cuda=0.95, torch=0.3)
    for better in (old, results(cuda=0.99, torch=0.1), results(cuda=0.91, triton=0.2), results(cuda=0.95)):
        assert regressions(old, better, 0.05) == []
    (line,) = regressions(old, results(cuda=0.90, torch=0.3), 0.05)
    assert f"kernels/add/float16/{SIZE}/cuda" in line and "0.950" in line and "0.900" in line
    (line,) = regressions(old, results(torch=0.3), 0.05)
    assert "not measured" in line
    small = {"ratios": {"kernels": {"add": {"float16": {"1024": {"cuda": 0.5}}}}}}  # the launch, which varies
    assert regressions(small, results(), 0.05) == []


def test_the_worst_ratio_is_printed_beside_its_limit(bench: ModuleType) -> None:
    found = results(cuda=0.95, triton=0.8)
    found["ratios"]["kernels"]["cast"] = {"float32": {SIZE: {"cuda": 0.93}}}
    found["ratios"]["files"] = {"over the CPU": {"cuda": 0.1}, "of reading or writing": {"cpu": 0.2, "cuda": 0.7}}
    assert list(bench.worst(found)) == [
        f"kernels, limit 0.92: cuda has at least 0.930 (kernels/cast/float32/{SIZE}/cuda)",
        f"kernels, limit 0.92: triton has at least 0.800 (kernels/add/float16/{SIZE}/triton)",
        "unet, limit 0.85: cuda has at least 0.900 (unet/on the GPU/cuda)",
        "files, limit 0.90: cuda has at least 0.700 (files/of reading or writing/cuda)",
    ]


def test_the_comparison_has_an_exit_code(tmp_path: Path) -> None:
    old, new, other = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "other.json"
    old.write_text(json.dumps(results(cuda=0.9)))
    new.write_text(json.dumps(results(cuda=0.5)))
    other.write_text(json.dumps({**results(cuda=0.9), "gpu": "Another GPU"}))
    for files, code in (((old, old), 0), ((new, old), 0), ((old, new), 1), ((old, other), 2), ((old,), 0)):
        ran = subprocess.run([sys.executable, str(SCRIPT), "--compare", *map(str, files)], check=False)
        assert ran.returncode == code, files


# ---- the measuring, on a device that is the processor


def test_the_clock_measures_what_lies_between_its_events(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from gpu_clock import timed

    now, slept = [0.0], []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    fake = {"Event": Event, "synchronize": lambda: None, "_sleep": slept.append}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    order = []

    def work(number: int) -> None:
        order.append(number)
        now[0] += 3.0  # milliseconds

    found = timed([lambda: work(0), lambda: work(1)])
    assert found.gpu == pytest.approx(0.003) and 0 < found.host < 1
    assert order == [0, 1] * (len(order) // 2) + [0] * (len(order) % 2)
    assert len(slept) == 5 and all(isinstance(cycles, int) and cycles > 1e6 for cycles in slept)


def test_everything_is_measured_and_written(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_clock
    import torch
    from cuda_tools import install
    from numeric_tools import identity
    from sdsurgery import layouts
    from sdsurgery.backends.cpu import native_program
    from sdsurgery.gpu import tensors
    from sdsurgery.interop import calls
    from sdsurgery.methods import registered
    from sdsurgery.program.tracing import trace

    install(monkeypatch)
    monkeypatch.setattr(calls, "device_of", lambda inputs, out: torch.device("cpu"))
    monkeypatch.setattr(tensors, "BACKENDS", tensors.BACKENDS)
    monkeypatch.setattr(gpu_clock, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_clock, "MOST_SETS", 2)
    monkeypatch.setattr(bench, "LARGE", 4096)
    monkeypatch.setattr(bench, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(bench, "free_memory", lambda: 8 << 30)
    monkeypatch.setattr(torch, "compile", lambda body, **_: body)
    monkeypatch.setitem(vars(torch), "_dynamo", SimpleNamespace(reset=lambda: None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    some = list(layouts.get("sd1").tensors())
    some = [item for item in some if item.key.startswith("model.diffusion_model.out.")]
    monkeypatch.setattr(layouts, "get", lambda name: type("Layout", (), {"tensors": lambda self: some})())
    met: list[int] = []

    def timed(works: Any, most_calls: int = 0) -> Any:
        for work in works:
            work()
        met.append(len(works))
        return gpu_clock.Timed(2e-3, 1e-3)

    for module in (bench, gpu_clock):
        monkeypatch.setattr(module, "timed", timed)
    monkeypatch.setattr(bench, "usable", lambda: ["cuda"])
    monkeypatch.setattr(bench, "files", lambda names, size: ({"over the CPU": {"cuda": 0.5}}, {"cpu": 1.0}))
    out = tmp_path / "gpu.json"
    assert bench.main(["--quick", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(met) == {1, 2}
    assert {"cuda", "torch", "torch.compile", "torch._foreach"} == set(
        found["ratios"]["kernels"]["add-diff"]["float32"]["4096"]
    )
    assert {"weighted-sum", "add-diff", "cast"} <= set(found["ratios"]["kernels"]) <= {*registered(), "cast"}
    hot = {  # a kernel of several names is measured once
        program
        for method in registered().values()
        for program in (trace(method, len(method.inputs), bench.bound(method)).program,)
        if not program.in_stages and native_program(program, False).fused
    }
    assert len(found["ratios"]["kernels"]) == len(hot | {identity().program})
    assert all(len(kinds) == 7 for kinds in found["ratios"]["kernels"].values())
    assert set(found["ratios"]["unet"]["on the GPU"]) == {"cuda", "torch", "torch._foreach"}
    assert found["gpu"] == "Some GPU" and found["machine"]["cores"] and found["versions"]["torch"]
    printed = capsys.readouterr()
    assert "written: " in printed.out and "Error" not in printed.err, printed.err


def test_files_are_measured_against_reading_and_writing(bench: ModuleType, tmp_path: Path) -> None:
    shares, seconds = bench.files(["reference"], "tiny", str(tmp_path))
    assert set(seconds) == {"cpu", "reference", "read", "write"} and all(value > 0 for value in seconds.values())
    floor = max(seconds["read"], seconds["write"])
    assert shares["of reading or writing"]["cpu"] == floor / seconds["cpu"]
    assert shares["over the CPU"] == {"reference": seconds["cpu"] / seconds["reference"]}
    path = tmp_path / "w"
    bench.write_file(str(path), (8 << 20) * 5 + 17)
    assert path.stat().st_size == (8 << 20) * 5 + 17
    bench.read_file(str(path))


# ---- without a GPU


def test_without_a_gpu_it_says_so_and_fails() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "no GPU" in ran.stderr and "Traceback" not in ran.stderr


SKIPPED = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu():
    pytest.skip("no GPU")
"""


def test_requiring_a_gpu_makes_skipping_all_a_failure(tmp_path: Path) -> None:
    root = SCRIPT.parents[1]
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "conftest", str(tmp_path)]
    command += ["-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider"]
    surroundings = {**os.environ, "PYTHONPATH": str(root / "tests")}
    for options, code in (([], 0), (["--require-gpu"], 1)):
        ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=surroundings)
        assert ran.returncode == code, ran.stdout + ran.stderr
    assert "no GPU test ran" in ran.stdout
