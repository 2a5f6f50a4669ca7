"""The CUDA kernels (kernels/elementwise.cu): from file to file, and on torch tensors. Needs neither torch nor NumPy
for files."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..dtypes import DType
from ..errors import DeviceFailed
from ..gpu.stream import StreamRun, Work, describe, devices_of, require_supported
from ..gpu.tiles import CHUNK
from ..plan import Plan
from ..program import OPERATIONS, Formula, Program
from . import Backend, Options
from .cpu import OVERFLOW

if TYPE_CHECKING:
    from .._native import Sink, Source
    from ..gpu.reductions import Chunk, Row
    from ..gpu.tensors import Batch

_MODULE = "sdsurgery.kernels._cuda"
_PART, _TERM = 80, 32  # bytes of a chunk's reduction, and of what is multiplied (kernels/launch.h)


def module() -> ModuleType:
    """The extension; ImportError where it was not built."""
    return sys.modules.get(_MODULE) or importlib.import_module(_MODULE)


def available() -> str | None:
    try:
        cuda = module()
    except ImportError:
        return "this installation was built without nvcc"
    reason: str = cuda.unavailable()
    if reason:
        return reason
    found = cuda.devices()
    if any(built_for(row["capability"], cuda.architectures) for row in found):
        return None
    names = ", ".join(f"{row['name']} ({row['capability']})" for row in found)
    return f"this installation was built for compute capability {cuda.architectures}, and this machine has {names}"


def built_for(capability: str, architectures: str) -> bool:
    """Whether a device like "8.6" can run what CMake compiled for architectures like "75-real;90": code of its own
    major version (``real``), or an intermediate form that its driver translates (``virtual``). Both without suffix."""
    major, minor = (int(part) for part in capability.split("."))
    for item in re.split(r"[ ;]+", architectures):
        number = re.fullmatch(r"(\d+)(\d)(-real|-virtual)?", item)
        if number is None:
            return True  # "all", "native", or a special one: unknown here
        own = (int(number[1]), int(number[2]))
        if number[3] != "-virtual" and own[0] == major and own[1] <= minor:
            return True
        if number[3] != "-real" and own <= (major, minor):
            return True
    return False


def devices() -> list[dict[str, Any]]:
    """The devices that this build has code for."""
    if available():
        return []
    cuda = module()
    return [row for row in cuda.devices() if built_for(row["capability"], cuda.architectures)]


@contextmanager
def device_errors(name: str = "") -> Iterator[None]:
    """Turn the extension's errors into DeviceFailed, with what to do."""
    cuda = module()
    try:
        yield
    except cuda.Error as error:
        where = f"{name}: " if name else ""
        if error.code == "no_memory":
            raise DeviceFailed(f'{where}out of GPU memory (try a smaller gpu_memory=, or fallback="cpu")') from None
        if error.code == "lost":
            raise DeviceFailed(f'{where}the GPU failed: {error} (fallback="cpu" continues without it)') from None
        raise DeviceFailed(f"{where}CUDA: {error}") from None


@functools.lru_cache(maxsize=256)
def _program(cuda: ModuleType, program: Program, wide: bool) -> Any:
    steps = [(OPERATIONS[op], args, to) for op, args, to in program.steps]
    return cuda.Program(program.inputs, program.constants, steps, program.result, wide, generated=program.generated)


def supports(program: Program, dtypes: Sequence[DType], dtype: DType, wide: bool) -> str | None:
    codes = [kind.native for kind in dtypes]
    cuda = module()
    with device_errors():
        reason: str = cuda.unsupported(_program(cuda, program, wide), codes, dtype.native)
    return reason or None


class _Staging:
    def __init__(self, device: int, name: str, in_bytes: int, out_bytes: int) -> None:
        self._cuda, self._device, self._name = module(), device, name
        self._held: list[Any] = []
        self._rooms: dict[str, tuple[int, Any]] = {}
        try:
            with device_errors(name):
                self._stream = self._cuda.Stream(device)
                self._in, self._out = self._hold("Memory", in_bytes), self._hold("Memory", out_bytes)
                self._pinned_in, self._pinned_out = self._hold("Pinned", in_bytes), self._hold("Pinned", out_bytes)
        except BaseException:
            self.close()
            raise
        self.input, self.output = memoryview(self._pinned_in), memoryview(self._pinned_out)

    def _hold(self, kind: str, nbytes: int) -> Any:
        place = (self._device,) if kind == "Memory" else ()
        try:
            item = getattr(self._cuda, kind)(*place, max(nbytes, 1))
        except self._cuda.Error as error:
            if kind == "Pinned" and error.code == "no_memory":
                raise DeviceFailed('cannot pin host memory (try a smaller gpu_memory=, or fallback="cpu")') from None
            raise
        self._held.append(item)
        return item

    def run(self, in_bytes: int, works: Sequence[Work], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        with device_errors(self._name):
            total = sum(len(work.rows) for work in works)
            counts = self._room("counts", "Memory", 16 * total)  # two numbers a row
            pinned_counts = self._room("pinned counts", "Pinned", 16 * total)
            self._stream.copy(self._in.address, self._pinned_in.address, in_bytes)
            self._stream.clear(counts.address, 16 * total)
            at = counts.address
            for work in works:
                words = array("Q")
                for out, count, ins in work.rows:
                    words.extend((self._out.address + out, count, *(self._in.address + place for place in ins)))
                evaluate(self._device, self._stream.handle, work, words, at)
                at += 16 * len(work.rows)
            for offset, nbytes in spans:
                self._stream.copy(self._pinned_out.address + offset, self._out.address + offset, nbytes)
            self._stream.copy(pinned_counts.address, counts.address, 16 * total)
            self._stream.synchronize()
        found = memoryview(pinned_counts)[: 16 * total].cast("Q")
        return [(found[2 * row], found[2 * row + 1]) for row in range(total)]

    def reduce(self, in_bytes: int, rows: Sequence[Row]) -> list[list[Chunk]]:
        if rows[0].products:
            return self._multiply(in_bytes, rows)
        import struct

        sizes = [(row.count + CHUNK - 1) // CHUNK for row in rows]
        with device_errors(self._name):
            scratch = self._room("scratch", "Memory", max(self._cuda.reduce_scratch_bytes(row.count) for row in rows))
            found = self._room("parts", "Memory", _PART * sum(sizes))
            pinned = self._room("pinned parts", "Pinned", _PART * sum(sizes))
            self._stream.copy(self._in.address, self._pinned_in.address, in_bytes)
            at = found.address
            for row, size in zip(rows, sizes, strict=True):
                a, b = (
                    (self._in.address + place, kind.native) for place, kind in zip(row.ins, row.dtypes, strict=True)
                )
                self._cuda.reduce(self._device, self._stream.handle, a, b, row.count, scratch.address, at)
                at += _PART * size
            self._stream.copy(pinned.address, found.address, _PART * sum(sizes))
            self._stream.synchronize()
        parts = struct.iter_unpack("7d3Q", memoryview(pinned)[: _PART * sum(sizes)])
        chunks = iter([(part[:4], part[4:7], part[7:]) for part in parts])
        return [[next(chunks) for _ in range(size)] for size in sizes]

    def _multiply(self, in_bytes: int, rows: Sequence[Row]) -> list[list[Chunk]]:
        sizes = [(row.count + CHUNK - 1) // CHUNK for row in rows]
        words = array("Q", [word for row in rows for word in self._terms(row)])
        total = 8 * sum(len(row.products) * size for row, size in zip(rows, sizes, strict=True))
        with device_errors(self._name):
            most = max(self._cuda.product_scratch_bytes(len(row.products), row.count) for row in rows)
            scratch, found = self._room("scratch", "Memory", most), self._room("parts", "Memory", total)
            terms, pinned = self._room("terms", "Memory", 8 * len(words)), self._room("pinned parts", "Pinned", total)
            pinned_terms = self._room("pinned terms", "Pinned", 8 * len(words))
            memoryview(pinned_terms)[: 8 * len(words)] = words.tobytes()
            self._stream.copy(terms.address, pinned_terms.address, 8 * len(words))
            self._stream.copy(self._in.address, self._pinned_in.address, in_bytes)
            at, term = found.address, terms.address
            for row, size in zip(rows, sizes, strict=True):
                count = len(row.products)
                self._cuda.products(self._device, self._stream.handle, term, count, row.count, scratch.address, at)
                at, term = at + 8 * count * size, term + 2 * _TERM * count
            self._stream.copy(pinned.address, found.address, total)
            self._stream.synchronize()
        sums = iter(memoryview(pinned)[:total].cast("d"))
        chunks: list[list[Chunk]] = []
        for row, size in zip(rows, sizes, strict=True):
            of_each = [[next(sums) for _ in range(size)] for _ in row.products]
            chunks.append([(of_chunk, (), ()) for of_chunk in zip(*of_each, strict=True)])
        return chunks

    def _terms(self, row: Row) -> Iterator[int]:
        """Of each product two terms (kernels/launch.h), as words."""
        for product in row.products:
            for term in product:
                there = [number >= 0 for number in term]
                yield from (self._in.address + row.ins[n] if known else 0 for n, known in zip(term, there, strict=True))
                yield from (row.dtypes[n].native or 0 if known else 0 for n, known in zip(term, there, strict=True))

    def _room(self, name: str, kind: str, nbytes: int) -> Any:
        """Memory of at least that size, kept for the next tile."""
        size, item = self._rooms.get(name, (-1, None))
        if size < nbytes:
            if item is not None:
                item.free()
                self._held.remove(item)
            size = nbytes * 5 // 4
            item = self._hold(kind, size)
            self._rooms[name] = (size, item)
        return item

    def close(self) -> None:
        self.input = self.output = memoryview(b"")
        for item in self._held:
            item.free()


def evaluate(device: int, stream: int, work: Any, words: array[int], counts: int) -> None:
    """Enqueue one formula over rows: for each the output's address, the elements and the inputs' addresses."""
    cuda = module()
    codes = [kind.native for kind in work.dtypes]
    program, numbers = work.formula
    native = _program(cuda, program, work.wide)
    cuda.evaluate(device, stream, native, numbers, codes, work.dtype.native, OVERFLOW[work.overflow], counts, words)


def prepare(plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options) -> StreamRun:
    require_supported(plan, "cuda", supports, options.wide, reduces=True)
    with device_errors():
        found = devices_of(devices(), _Staging)
    return StreamRun(plan, sources, sink, options, found)


def on_tensors(batch: Batch) -> None:
    words = array("Q")
    for out, inputs in batch.rows:
        words.extend((out.data_ptr(), out.numel(), *(item.data_ptr() for item in inputs)))
    counts = 0 if batch.counts is None else batch.counts.data_ptr()
    with device_errors():
        evaluate(batch.device, batch.stream, batch, words, counts)


class _PlainRows:
    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.left: Sequence[int] = rows.left

    def evaluate(self, formula: Formula, *, overflow: str, wide: bool) -> None:
        import torch

        if self._rows.device < 0:
            return
        stream = torch.cuda.current_stream(self._rows.device).cuda_stream if torch.cuda.is_initialized() else 0
        with device_errors():
            self._rows.evaluate(_program(module(), formula.program, wide), formula.numbers, OVERFLOW[overflow], stream)


def plain_rows(tensors: Sequence[Any], width: int) -> _PlainRows | None:
    """Of ``out, inputs, out, inputs, …`` (``width`` for each row) what the kernels take unchanged; None where torch has
    no DLPack exchange in C (2.13 has)."""
    import torch

    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if exchange is None:
        return None
    with device_errors():
        return _PlainRows(module().TensorRows(exchange, [torch.Tensor, torch.nn.Parameter], tensors, width))


BACKEND = Backend("cuda", available, prepare, describe, supports, on_tensors, plain_rows, devices, values=True)
