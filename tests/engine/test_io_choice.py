"""How inputs are read when nobody says: by their mapping when they are in the page cache, past it when they aren't."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import sdsurgery
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells what is cached")


def _read_by(path: Path, out: Path) -> list[str]:
    report = sdsurgery.cast(path, dtype="bf16", out=out, sync=False)
    os.unlink(out)
    ways = report.how["io"]
    assert isinstance(ways, list)
    return ways


def _forget(path: Path, begin: int = 0) -> None:
    """Put a file's pages from ``begin`` on out of the page cache; skips the test where they stay."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), begin, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            pages = (ctypes.c_ubyte * -(-len(mapping) // mmap.PAGESIZE))()
            address = np.frombuffer(mapping, np.uint8).ctypes.data
            assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), pages) == 0
    if pages[-1] & 1:
        pytest.skip("the file system keeps its files in memory")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, "sd1", size="tiny", dtype="fp32")
    return path


def test_a_cached_file_is_mapped(model: Path, tmp_path: Path) -> None:
    model.read_bytes()
    assert _read_by(model, tmp_path / "out.safetensors") == ["mmap"]


def test_a_file_that_is_not_cached_is_read_past_the_cache(model: Path, tmp_path: Path) -> None:
    _forget(model)
    assert _read_by(model, tmp_path / "out.safetensors") == ["direct"]


def test_a_file_that_is_cached_in_part_is_read_through_the_cache(model: Path, tmp_path: Path) -> None:
    model.read_bytes()
    _forget(model, int(model.stat().st_size * 0.75) // mmap.PAGESIZE * mmap.PAGESIZE)
    assert _read_by(model, tmp_path / "out.safetensors") == ["pread"]
