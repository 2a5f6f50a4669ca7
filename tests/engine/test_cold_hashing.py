"""Inputs that are not in the page cache are read from the disk once, for the merge and for their hashes."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_support import environment, write_raw
from page_cache import forget
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing shows what is cached")

# In a process of its own: the bytes that it had the disk read.
COUNTED = """
import re, sys
import sdsurgery
def read(): return int(re.search(r"^read_bytes: ([0-9]+)", open("/proc/self/io").read(), re.M).group(1))
before = read()
method = "weighted-sum" if len(sys.argv) == 4 else "add-diff"
report = sdsurgery.merge(method, sys.argv[2:], out=sys.argv[1], sync=False)
print(read() - before, *report.how["io"], *report.sha256, report.body_sha256)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cold_merge(inputs: Sequence[Path], out: Path, cache: Path) -> int:
    """Bytes read from the disk by a merge of cold files, whose hashes must be right."""
    wanted = [sha256(path.read_bytes()) for path in inputs]
    for path in inputs:
        forget(path)
    ran = subprocess.run(
        [sys.executable, "-c", COUNTED, out, *inputs], env=environment() | {"SDS_CACHE": str(cache)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    read, *told = ran.stdout.split()
    count = len(inputs)
    assert told[:count] == ["direct"] * count
    content = out.read_bytes()
    assert told[count:] == [*wanted, sha256(content[8 + struct.unpack_from("<Q", content)[0] :])]
    return int(read)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_byte_of_a_cold_input_is_read_once(tmp_path: Path, count: int) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(count)]
    for seed, path in enumerate(paths):  # 43 MB: more than lies between the workers and the hashing
        write_checkpoint(path, "sd1", seed=seed, keep=lambda row: row.block in ("IN00", "IN01", "IN04", "OUT08"))
    size = sum(path.stat().st_size for path in paths)
    read = cold_merge(paths if count > 1 else paths * 2, tmp_path / "out.safetensors", tmp_path / "cache")
    once = size if count > 1 else 2 * size  # A and B are read separately, even where they are one file
    assert size <= read <= once + 8_000_000, (read, size)


@pytest.mark.parametrize("order", ["the same", "reversed", "shuffled"])
def test_hashes_are_right_in_whatever_order_the_tensors_lie(tmp_path: Path, order: str) -> None:
    """20 MB in 40 tensors, those of B in the order of the output or another; in both some bytes that nobody needs."""
    rng = random.Random(1)
    names = [f"layer{number:02}.weight" for number in range(40)]
    sizes = {name: rng.choice([2, 1000, 400_000, 1_500_000]) for name in names}
    paths = []
    for path, arranged in ((tmp_path / "a.safetensors", "the same"), (tmp_path / "b.safetensors", order)):
        keys = list(names)
        if arranged == "reversed":
            keys.reverse()
        elif arranged == "shuffled":
            rng.shuffle(keys)
        extra = ("F16", [300_000], bytes(600_000))
        tensors = {key: ("F16", [sizes[key] // 2], rng.randbytes(sizes[key] // 2 * 2)) for key in keys}
        write_raw(path, {**dict(list(tensors.items())[:20]), f"only.{path.stem}": extra, **tensors})
        paths.append(path)
    cold_merge(paths, tmp_path / "out.safetensors", tmp_path / "cache")
