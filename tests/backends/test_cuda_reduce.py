"""The CUDA reductions, thread by thread on the processor (tests/helpers/cuda_tools.py): bit for bit those of the
reference, in one call and from file to file."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sdsurgery
from cuda_tools import fake_module, install
from numeric_tools import FLOATS, SORTS
from reduce_tools import BLOCK, CHUNK, INTEGERS, SIZES, Tensor, bits, expected, integers, nearly
from safetensors.numpy import save_file
from sdsurgery.backends import Reduced
from sdsurgery.checkpoint import open_checkpoint
from sdsurgery.dtypes import F16, F32, F64, DType
from sdsurgery.errors import UsageError
from sdsurgery.gpu.reductions import Gathered
from sdsurgery.layouts import detect
from sdsurgery.settings import Settings
from sdsurgery.surgery.gram import grams
from sdsurgery.testing import write_checkpoint
from triton_support import require_triton


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    return fake_module()


def reduced(cuda: ModuleType, a: Tensor, b: Tensor) -> Reduced:
    arrays = [np.ascontiguousarray(codes.astype(f"u{dtype.itemsize}", copy=False)) for codes, dtype in (a, b)]
    count = arrays[0].size
    scratch = np.empty(cuda.reduce_scratch_bytes(count) + 16, np.uint8)
    chunks = (count + CHUNK - 1) // CHUNK
    out = np.empty(80 * chunks, np.uint8)
    pairs = [(array.ctypes.data, dtype.native) for array, (_, dtype) in zip(arrays, (a, b), strict=True)]
    cuda.reduce(0, 0, *pairs, count, scratch.ctypes.data, out.ctypes.data)
    gathered = Gathered()
    found = [(part[:4], part[4:7], part[7:]) for part in struct.iter_unpack("7d3Q", out)]
    gathered.add(0, 0, found)
    ((_, *values),) = gathered.totals()
    return Reduced(*values)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_equal_the_reference_to_the_bit(cuda: ModuleType, dtype: DType) -> None:
    rng = np.random.default_rng(dtype.native)
    for count in SIZES:
        for sort in SORTS.values():
            a = sort(dtype, count, rng)
            for b in (sort(dtype, count, rng), nearly(a, rng), a.copy()):
                assert bits(reduced(cuda, (a, dtype), (b, dtype))) == bits(expected((a, dtype), (b, dtype))), count
        for other in (F64, F16, INTEGERS[0]):
            b = SORTS["wild"](other, count, rng) if other in FLOATS else integers(other, count, rng)
            assert bits(reduced(cuda, (a, dtype), (b, other))) == bits(expected((a, dtype), (b, other))), other


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_equal_the_reference_to_the_bit(cuda: ModuleType, dtype: DType) -> None:
    rng = np.random.default_rng(6)
    a = integers(dtype, 3 * BLOCK + 5, rng)
    b = nearly(a, rng)
    assert bits(reduced(cuda, (a, dtype), (b, dtype))) == bits(expected((a, dtype), (b, dtype)))


def test_chunks_are_added_in_order(cuda: ModuleType) -> None:
    rng = np.random.default_rng(7)
    size = 2 * CHUNK + 1500
    a, b = SORTS["plain"](F32, size, rng), SORTS["mixed"](F32, size, rng)
    assert bits(reduced(cuda, (a, F32), (b, F32))) == bits(expected((a, F32), (b, F32)))


def test_compare_through_the_pipeline_gives_the_cpus_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, (path, dtype) in enumerate(zip(files, ("fp16", "bf16"), strict=True)):
        write_checkpoint(path, "sd1", dtype=dtype, seed=seed, size="tiny")
    wanted = sdsurgery.compare(*files).to_dict()
    for devices, threads in ((1, 1), (2, 0)):
        monkeypatch.setenv("FAKE_CUDA_DEVICES", str(devices))
        found = sdsurgery.compare(*files, backend="cuda", threads=threads, gpu_memory=20 << 20).to_dict()
        assert found["how"]["backend"] == "cuda"
        assert {**found, "how": 0, "seconds": 0} == {**wanted, "how": 0, "seconds": 0}


def test_unmix_through_the_pipeline_gives_the_cpus_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    files = [tmp_path / f"{name}.safetensors" for name in "mabc"]
    rng = np.random.default_rng(3)
    sizes = {"large.weight": (1100, 700), "small.weight": (3, 5), "block.weight": (1024,)}  # the first: three chunks
    for path, dtype in zip(files, (np.float16, np.float16, np.float32, np.float16), strict=True):
        save_file({name: rng.normal(size=size).astype(dtype) for name, size in sizes.items()}, path)
    mix, *candidates = files
    wanted = grams_of(files, "cpu")
    for devices, threads, memory in ((1, 1, 0), (2, 0, 8 << 20)):
        monkeypatch.setenv("FAKE_CUDA_DEVICES", str(devices))
        assert grams_of(files, "cuda", threads=threads, gpu_memory=memory) == wanted
    found = sdsurgery.unmix(mix, candidates, backend="cuda")
    assert found.how["backend"] == "cuda" and found.ratios == sdsurgery.unmix(mix, candidates).ratios


def grams_of(files: list[Path], backend: str, **keywords: Any) -> list[tuple[str, Any]]:
    """The sums of every tensor, to the bit."""
    settings = Settings(backend=backend, **keywords)
    opened = [open_checkpoint(path) for path in files]
    try:
        found = grams(opened, detect(opened[0].tensors).layout, settings)
    finally:
        for each in opened:
            each.close()
    assert found.outcome.how["backend"] == backend
    return [(each.name, (each.total, each.square, each.products.tobytes())) for each in found.tensors]


def test_what_the_device_does_not_multiply_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in files:
        save_file({"w": np.zeros(8)}, path)
    with pytest.raises(UsageError, match=r'cuda does not find these values; use backend="cpu"'):
        sdsurgery.unmix(*files[:1], files[1:], backend="cuda")


def test_a_backend_without_reductions_says_so(tmp_path: Path) -> None:
    require_triton(interpreted=True)
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, "sd1", size="tiny")
    with pytest.raises(UsageError, match="triton has no reductions"):
        sdsurgery.compare(path, path, backend="triton")
    with pytest.raises(UsageError, match="triton keeps no values of stages"):
        sdsurgery.unmix(path, [path], backend="triton")
