"""How inputs are read by default: by their mapping when they are in the page cache, past it when they aren't."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest
import sdsurgery
from page_cache import forget
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing shows what is cached")


def _read_by(path: Path, out: Path) -> list[str]:
    report = sdsurgery.cast(path, dtype="bf16", out=out, sync=False)
    os.unlink(out)
    ways = report.how["io"]
    assert isinstance(ways, list)
    return ways


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, "sd1", size="tiny", dtype="fp32")
    return path


def test_a_cached_file_is_mapped(model: Path, tmp_path: Path) -> None:
    model.read_bytes()
    assert _read_by(model, tmp_path / "out.safetensors") == ["mmap"]


def test_a_file_that_is_not_cached_is_read_past_the_cache(model: Path, tmp_path: Path) -> None:
    forget(model)
    assert _read_by(model, tmp_path / "out.safetensors") == ["direct"]


def test_a_file_that_is_cached_in_part_is_read_through_the_cache(model: Path, tmp_path: Path) -> None:
    model.read_bytes()
    forget(model, int(model.stat().st_size * 0.75) // mmap.PAGESIZE * mmap.PAGESIZE)
    assert _read_by(model, tmp_path / "out.safetensors") == ["pread"]
