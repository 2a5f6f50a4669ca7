"""Files that are not in the page cache, for the tests of cold reads."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest


def forget(path: Path, begin: int = 0) -> None:
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
