"""Kernels in GB/s: every formula on every dtype, against memcpy, NumPy and torch of the same expression.

    pytest bench --benchmark-only -n 0

The method's own body is what NumPy and torch evaluate, in float32, so a new method or dtype needs no line here.
``ours`` uses all processors, ``ours 1 thread`` one, as ``memcpy`` (NumPy's copy) and ``numpy`` do; torch as it likes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sdsurgery import _native
from sdsurgery.backends.cpu import native_program
from sdsurgery.dtypes import BY_NAME, F16, F32, DType
from sdsurgery.methods import Method, registered
from sdsurgery.program import identity
from sdsurgery.program.tracing import trace

NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
CONTENDERS = ("memcpy", "ours", "ours 1 thread", "numpy", "torch")
SAME = [(dtype, dtype) for dtype in BY_NAME.values() if dtype.computable]
CAST = Method("cast", ("A",), {}, lambda a: a)
CASTS = [(F32, F16), (F16, F32), *((F32, BY_NAME[name]) for name in ("BF16", "F8_E4M3", "F8_E5M2"))]


@dataclass(frozen=True)
class Kernel:
    """A method evaluated on inputs of one dtype into another."""

    method: Method
    source: DType
    target: DType

    @property
    def name(self) -> str:
        dtypes = self.source.name if self.source is self.target else f"{self.source.name}→{self.target.name}"
        return f"{self.method.name} {dtypes}"


def _kernels() -> list[Kernel]:
    merges = [Kernel(method, *dtypes) for method in registered().values() for dtypes in SAME]
    return merges + [Kernel(CAST, *dtypes) for dtypes in CASTS]


@dataclass
class Data:
    """Inputs, their copy's place and the result, as raw bytes; ``count`` elements each."""

    kernel: Kernel
    count: int
    inputs: list[np.ndarray]
    out: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.out.nbytes + sum(each.nbytes for each in self.inputs)


def _data(kernel: Kernel, mib: float) -> Data:
    count = int(mib * (1 << 20)) // max(kernel.source.itemsize, kernel.target.itemsize)
    encode = native_program(identity().program, False)
    inputs = []
    for seed in range(len(kernel.method.inputs)):
        values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
        raw = np.empty(count * kernel.source.itemsize, np.uint8)
        _native.apply(encode, (), [(values.ctypes.data, F32.native)], raw.ctypes.data, kernel.source.native, count)
        inputs.append(raw)
    # Written once, so that no contender pays for the first touch of fresh memory.
    return Data(kernel, count, inputs, np.ones(count * kernel.target.itemsize, np.uint8))


def _ours(data: Data, threads: int) -> Callable[[], Any]:
    method = data.kernel.method
    formula = trace(method, len(data.inputs), method.bind(len(data.inputs), {}))
    program = native_program(formula.program, False)
    operands = [(raw.ctypes.data, data.kernel.source.native) for raw in data.inputs]
    place, code, cpu = data.out.ctypes.data, data.kernel.target.native, os.environ.get("SDS_CPU", "")
    return lambda: _native.apply(
        program, formula.numbers, operands, place, code, data.count, threads=threads, target=cpu
    )


def _memcpy(data: Data) -> Callable[[], Any]:
    source, target = np.ones(data.nbytes // 2, np.uint8), np.ones(data.nbytes // 2, np.uint8)
    return lambda: np.copyto(target, source)


def _numpy(data: Data) -> Callable[[], Any]:
    kernel = data.kernel
    if kernel.source.name not in NUMPY or kernel.target.name not in NUMPY:
        pytest.skip("NumPy lacks the dtype")
    method, arrays = kernel.method, [raw.view(NUMPY[kernel.source.name]) for raw in data.inputs]
    out, params = data.out.view(NUMPY[kernel.target.name]), method.bind(len(arrays), {})

    def evaluate() -> None:
        with np.errstate(over="ignore"):
            out[...] = method.body(*(array.astype(np.float32, copy=False) for array in arrays), **params)

    return evaluate


def _torch(data: Data) -> Callable[[], Any]:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch

    kernel, method = data.kernel, data.kernel.method
    tensors = [torch.from_numpy(raw).view(getattr(torch, TORCH[kernel.source.name])) for raw in data.inputs]
    out, params = (
        torch.from_numpy(data.out).view(getattr(torch, TORCH[kernel.target.name])),
        method.bind(len(tensors), {}),
    )
    return lambda: out.copy_(method.body(*(tensor.float() for tensor in tensors), **params))


def _work(contender: str, data: Data) -> Callable[[], Any]:
    if contender.startswith("ours"):
        return _ours(data, 1 if contender.endswith("1 thread") else 0)
    return {"memcpy": _memcpy, "numpy": _numpy, "torch": _torch}[contender](data)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("kernel", _kernels(), ids=lambda kernel: kernel.name)
@pytest.mark.benchmark(max_time=0.3, min_rounds=3, warmup=True, warmup_iterations=1)
def test_kernel(benchmark: Any, record: Any, pytestconfig: pytest.Config, kernel: Kernel, contender: str) -> None:
    data = _data(kernel, pytestconfig.getoption("--kernel-mib"))
    work = _work(contender, data)
    benchmark.group = kernel.name
    benchmark(work)
    if benchmark.stats is None:  # run with --benchmark-disable
        return
    rate = data.nbytes / benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(rate / 1e9, 3)
    benchmark.extra_info["cpu_target"] = _native.check_target(os.environ.get("SDS_CPU", ""))
    record(kernel.name, contender, rate)
