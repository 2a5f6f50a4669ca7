"""The Triton kernel (kernels/elementwise.py): from file to file, and on torch tensors. Needs torch and triton; with
``TRITON_INTERPRET=1`` it runs on the processor, slowly, which is how it is tested without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..dtypes import F64, DType
from ..errors import DeviceFailed
from ..gpu.stream import StreamRun, Work, describe, devices_of, require_supported
from ..plan import Plan
from ..program import Program
from . import Backend, Options

if TYPE_CHECKING:
    from .._native import Sink, Source
    from ..gpu.reductions import Chunk, Row
    from ..gpu.tensors import Batch

_launching = threading.Lock()  # Triton compiles at the first launch, and its interpreter has global state


def interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def available() -> str | None:
    import importlib.util
    import os

    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    driver = any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")) or os.name == "nt"
    if not driver and "TRITON_INTERPRET" not in os.environ:
        return "there is no NVIDIA driver"  # found without importing torch
    import torch

    if interpreted() or torch.cuda.is_available():
        return None
    return "torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA"


def devices() -> list[dict[str, Any]]:
    if available():
        return []
    import torch

    if interpreted():
        return [{"number": 0, "name": "Triton's interpreter"}]
    rows = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"{properties.major}.{properties.minor}"
        memory = properties.total_memory
        rows.append({"number": number, "name": properties.name, "capability": capability, "memory": memory})
    return rows


def supports(program: Program, dtypes: Sequence[DType], dtype: DType, wide: bool) -> str | None:
    from ..kernels import elementwise

    reason: str | None = elementwise.unsupported(program, wide or any(kind is F64 for kind in dtypes))
    return reason


@contextmanager
def device_errors(name: str = "") -> Iterator[None]:
    import torch
    from triton.errors import TritonError

    where = f"{name}: " if name else ""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise DeviceFailed(f'{where}out of GPU memory (try a smaller gpu_memory=, or fallback="cpu")') from None
    except TritonError as error:
        text = str(error).strip().partition("\n")[0]
        raise DeviceFailed(
            f'{where}Triton: {text or type(error).__name__} (fallback="cpu" continues without it)'
        ) from None
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        raise DeviceFailed(f'{where}the GPU failed: {text} (fallback="cpu" continues without it)') from None


class _Staging:
    def __init__(self, number: int, name: str, in_bytes: int, out_bytes: int) -> None:
        import torch

        self._name = name
        self._gpu = not interpreted()
        self._device = torch.device("cuda", number) if self._gpu else torch.device("cpu")
        with device_errors(name):
            new_stream: Any = torch.cuda.Stream
            self._stream = new_stream(self._device) if self._gpu else None
            sizes = (in_bytes, out_bytes)
            self._host = [torch.empty(max(1, size), dtype=torch.uint8, pin_memory=self._gpu) for size in sizes]
            self._there = [torch.empty(max(1, size), dtype=torch.uint8, device=self._device) for size in sizes]
        self.input, self.output = (item.numpy().data for item in self._host)

    def run(self, in_bytes: int, works: Sequence[Work], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        import contextlib

        import torch

        (host_in, host_out), (there_in, there_out) = self._host, self._there
        with device_errors(self._name), torch.cuda.stream(self._stream) if self._gpu else contextlib.nullcontext():
            there_in[:in_bytes].copy_(host_in[:in_bytes], non_blocking=True)
            total = sum(len(work.rows) for work in works)
            counts = torch.zeros(2 * total, dtype=torch.int64, device=self._device)
            row = 0
            for work in works:
                for out, count, ins in work.rows:
                    inputs = [
                        there_in[at : at + count * kind.itemsize] for at, kind in zip(ins, work.dtypes, strict=True)
                    ]
                    result = there_out[out : out + count * work.dtype.itemsize]
                    _launch(work, result, inputs, counts[2 * row : 2 * row + 2])
                    row += 1
            for offset, nbytes in spans:
                host_out[offset : offset + nbytes].copy_(there_out[offset : offset + nbytes], non_blocking=True)
            found = counts.tolist()  # waits
            if self._stream is not None:
                self._stream.synchronize()
        return [(found[2 * index], found[2 * index + 1]) for index in range(total)]

    def reduce(self, in_bytes: int, rows: Sequence[Row]) -> list[list[Chunk]]:
        raise NotImplementedError  # require_supported has refused such a plan

    def close(self) -> None:
        self.input = self.output = memoryview(b"")
        self._host = self._there = []


def _launch(work: Any, out: Any, inputs: Sequence[Any], counts: Any) -> None:
    from ..kernels import elementwise

    codes = [(elementwise.codes_of(item, dtype), dtype) for item, dtype in zip(inputs, work.dtypes, strict=True)]
    with _launching:
        elementwise.launch(
            work.formula, codes, elementwise.codes_of(out, work.dtype), work.dtype,
            overflow=work.overflow, wide=work.wide, counts=counts,
        )  # fmt: skip


def prepare(plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options) -> StreamRun:
    require_supported(plan, "triton", supports, options.wide, reduces=False)
    return StreamRun(plan, sources, sink, options, devices_of(devices(), _Staging))


def on_tensors(batch: Batch) -> None:
    for number, (out, inputs) in enumerate(batch.rows):
        counts = None if batch.counts is None else batch.counts[2 * number : 2 * number + 2]
        with device_errors():
            _launch(batch, out, inputs, counts)


BACKEND = Backend("triton", available, prepare, describe, supports, on_tensors, devices=devices)
