"""Flat memory: what a merge keeps in anonymous memory does not grow with the files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import environment
from sdsurgery import save
from sdsurgery.testing import write_checkpoint

MB = 1_000_000
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/PID/status")


def _first(nbytes: int) -> Callable[[Any], bool]:
    """A filter that keeps SD 1.5's tensors (fp16) until they are so many bytes."""
    left = nbytes

    def keep(tensor: Any) -> bool:
        nonlocal left
        size = 2
        for dimension in tensor.shape:
            size *= dimension
        left -= size
        return left >= 0

    return keep


def _peak(command: list[str]) -> tuple[int, int]:
    """Peak anonymous and peak file-backed resident bytes of a command, sampled while it runs."""
    anonymous = mapped = samples = 0
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            text = status.read_text()
            for kind, value in re.findall(r"^Rss(Anon|File):\s+(\d+) kB$", text, re.MULTILINE):
                if kind == "Anon":
                    anonymous, samples = max(anonymous, int(value) * 1024), samples + 1
                else:
                    mapped = max(mapped, int(value) * 1024)
            time.sleep(0.0005)
        assert child.stderr is not None
        assert child.returncode == 0, child.stderr.read()
    assert samples > 20, "the run was not watched"
    return anonymous, mapped


def _merge(folder: Path, io: str, *options: str) -> tuple[int, int]:
    a, b, out = (str(folder / f"{name}.safetensors") for name in ("a", "b", "out"))
    command = [sys.executable, "-m", "sdsurgery", "merge", "--method", "weighted-sum", a, b, "-o", out]
    peaks = _peak([*command, "--io", io, "--threads", "2", "--no-sync", "-q", *options])
    (folder / "out.safetensors").unlink()
    return peaks


def _pair(folder: Path, nbytes: int) -> Path:
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        write_checkpoint(folder / f"{name}.safetensors", "sd1", seed=seed, keep=_first(nbytes))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("memory")
    small, large = _pair(folder / "small", 20 * MB), _pair(folder / "large", 200 * MB)
    assert (large / "a.safetensors").stat().st_size > 9 * (small / "a.safetensors").stat().st_size
    yield small, large
    for path in folder.rglob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize(("io", "options"), [("pread", "--no-hash"), ("mmap", "--no-hash"), ("auto", "--quiet")])
def test_peak_memory_does_not_grow_with_the_files(pairs: tuple[Path, Path], io: str, options: str) -> None:
    (small, _), (large, mapped) = (_merge(folder, io, options) for folder in pairs)
    assert abs(large - small) < 16 * MB, (small, large)
    assert large < 64 * MB
    assert mapped < 96 * MB, "pages of the mapping are released behind the reading position"


def _many(path: Path, tensors: int, separators: tuple[str, str]) -> int:
    entries = {
        f"model.diffusion_model.block.{number // 100}.layer.{number % 100}.weight": {
            "dtype": "F16", "shape": [4, 8], "data_offsets": [64 * number, 64 * number + 64],
        }
        for number in range(tensors)
    }  # fmt: skip
    header = json.dumps(entries, separators=separators).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64 * tensors))
    return 64 * tensors


@pytest.mark.parametrize(
    "separators",
    [pytest.param((",", ":"), id="compact", marks=pytest.mark.slow), pytest.param((", ", ": "), id="with blanks")],
)
def test_a_hundred_thousand_tensors_take_little_beyond_their_data(tmp_path: Path, separators: tuple[str, str]) -> None:
    data = sum(_many(tmp_path / f"{name}.safetensors", 100_000, separators) for name in ("a", "b"))
    anonymous, _ = _merge(tmp_path, "auto")
    assert anonymous < 120 * MB + data


@pytest.mark.slow
@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_peak_memory_of_full_size_files(tmp_path: Path, pairs: tuple[Path, Path], io: str) -> None:
    small, _ = _merge(pairs[0], io, "--no-hash")
    huge, mapped = _merge(_pair(tmp_path / "full", 1 << 40), io, "--no-hash")
    assert abs(huge - small) < 16 * MB, (small, huge)
    assert huge < 64 * MB
    assert mapped < 96 * MB


def test_200_selections_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    """A histogram of 256 KB for each of them, and for each thread, would be 100 MB."""
    paths = []
    for number in range(200):
        values = np.random.default_rng(number).normal(size=(64, 64)).astype(np.float32)
        paths.append(str(tmp_path / f"{number}.safetensors"))
        save({f"weight.{k}": values * (k + 1) for k in range(4)}, paths[-1])
    command = [sys.executable, "-m", "sdsurgery", "merge", "--method", "ties", *paths, "--density", "0.5", "-q"]
    anonymous, _ = _peak([*command, "--threads", "2", "--no-hash", "--no-sync", "-o", str(tmp_path / "o.safetensors")])
    assert anonymous < 64 * MB
