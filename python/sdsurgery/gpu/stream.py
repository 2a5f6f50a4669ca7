"""File to file through devices: disk → pinned buffer → device → kernel → pinned buffer → positioned write.

A few workers for each device, each with its own stream and buffers, take tiles from one queue. Reading, transfers,
kernels and writing overlap because the workers are at different points, and several devices share the bytes because
whichever is free takes the next tile. The same Plan and Sink as on the CPU, so the same output.

What is asked of a device is ``Staging`` below; the tests run this pipeline with devices that need no GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..backends import Options, damaged_of, refuse_values, sums_of
from ..dtypes import F32, F64, DType
from ..errors import Interrupted, UsageError, of_job
from ..plan import Job, Jobs, Operand, Plan, Reduction
from ..program import Formula, Program
from .reductions import Chunk, Gathered, Row, products_of
from .tiles import ALIGNMENT, CHUNK, Part, Tile, is_reduced, ratio, tiles

if TYPE_CHECKING:
    from .._native import Sink, Source
    from ..backends.cpu import LastStage

MEMORY = 256 << 20  # of buffers on each device, unless --gpu-memory says otherwise
LEAST_MEMORY = 4 << 20
_LEAST_REDUCED = 8 << 20  # its larger part holds a chunk of two F64 tensors
_SUM = 72 / 1024  # bytes that a device needs for each sum of an element: eight lanes of a block, and the block
_WORKERS = (4, 8)  # for each device: at least, and at most where there are twice as many processors
_TILE = 32 << 20  # of output, at most: longer stretches gain nothing


@dataclass(frozen=True)
class Work:
    """One formula over rows of equal dtypes in a tile's buffers: (output offset, elements, input offsets)."""

    formula: Formula
    wide: bool
    dtypes: tuple[DType, ...]
    dtype: DType
    overflow: str
    rows: list[tuple[int, int, tuple[int, ...]]]


class Staging(Protocol):
    """One worker's buffers on one device. ``input`` and ``output`` are host memory that the device can reach."""

    input: memoryview
    output: memoryview

    def run(self, in_bytes: int, works: Sequence[Work], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Bring the first ``in_bytes`` of the input to the device, evaluate, bring the ``spans`` (offset, bytes) of
        the output back, wait. Returns (non-finite, overflow) of every row, in order. DeviceFailed when that fails."""

    def reduce(self, in_bytes: int, rows: Sequence[Row]) -> list[list[Chunk]]:
        """Bring the input to the device and reduce the rows; the chunks of each, in order. All have products, or none
        has."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Device:
    """A device that workers get their buffers on: ``make`` is called with its number, its name and the sizes."""

    number: int
    name: str
    make: Callable[[int, str, int, int], Staging]

    def staging(self, in_bytes: int, out_bytes: int) -> Staging:
        return self.make(self.number, self.name, in_bytes, out_bytes)


def devices_of(rows: Sequence[dict[str, Any]], make: Callable[[int, str, int, int], Staging]) -> list[Device]:
    """The devices of a backend, from what ``Backend.devices`` gives."""
    return [Device(row["number"], row["name"], make) for row in rows]


def _workers() -> int:
    from .. import _native

    least, most = _WORKERS
    return min(most, max(least, _native.usable_cpus() // 2))


class StreamRun:
    """A run of a Plan on devices; see ``backends.RunHandle``."""

    def __init__(
        self, plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options, devices: Sequence[Device]
    ) -> None:
        self.plan, self.sources, self.sink, self.options = _with_generated(plan, options.wide), sources, sink, options
        plan = self.plan
        self.devices = list(devices)
        self.bytes_done = 0
        self.workers = options.threads or _workers()
        self.memory = options.gpu_memory or MEMORY
        self._reduces = any(is_reduced(job, plan) for job in plan.jobs)  # then all are
        least, share_in = _least_reduced(plan) if self._reduces else (LEAST_MEMORY, 1.0)
        if self.memory < least:
            raise UsageError(f"gpu_memory= must be at least {least >> 20} MiB here", code="bad_value")
        if self._reduces:
            self.workers = min(self.workers, self.memory // least)
            self._share = (self.memory // self.workers) - ALIGNMENT
            self._in_bytes, self._out_bytes = int(self._share * share_in), ALIGNMENT
        else:
            share = self.memory // self.workers
            self._out_bytes = max(ALIGNMENT, min(_TILE, int(share / (1 + ratio(plan))) // ALIGNMENT * ALIGNMENT))
            most = max((len(job.operands) for job in plan.jobs), default=0)
            self._in_bytes = int(self._out_bytes * ratio(plan)) + ALIGNMENT * (most + 1)
        self._reductions = Gathered()
        self._tiles = enumerate(tiles(plan, self._out_bytes - ALIGNMENT, self._in_bytes))
        self._last_stages: dict[int, LastStage] = {}  # of jobs whose program is in stages
        self._reading = threading.Lock()
        self._finished: dict[int, int] = {}  # number of a finished tile: where it ends
        self._next = 0  # the first tile that is not finished
        self._tallies: dict[int, list[int]] = {}
        self._damaged: list[int] = []
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._running = 0
        self._stop = self._cancelled = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    @property
    def buffer_bytes(self) -> int:
        """On each device; as many again are pinned on the host. A reduction needs a part for itself."""
        return self.workers * ((self._share if self._reduces else self._in_bytes) + self._out_bytes)

    # ---- RunHandle

    def start(self) -> None:
        for device in self.devices:
            for _ in range(self.workers):
                self._threads.append(threading.Thread(target=self._work, args=(device,), daemon=True))
        if self.plan.checks:
            self._threads.append(threading.Thread(target=self._check, daemon=True))
        self._running = len(self._threads)
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        with self._lock:
            return self._ended.wait_for(lambda: self._running == 0, seconds)

    def cancel(self) -> None:
        self._stop = self._cancelled = True

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise Interrupted("interrupted; nothing was written")
        for source in self.sources:
            source.check_unchanged()

    def tallies(self, output: int = 0) -> list[tuple[int, int, int]]:
        return [(job, counts[0], counts[1]) for job, counts in sorted(self._tallies.items())]

    def reductions(self) -> list[tuple[Any, ...]]:
        return self._reductions.totals()

    def values(self) -> list[tuple[int, list[float]]]:
        return self._reductions.values()

    def sums(self) -> list[int]:
        return sums_of(self.plan, self.sink) if self.sink is not None else []

    def damaged(self) -> list[int]:
        return self._damaged

    # ---- a worker

    def _work(self, device: Device) -> None:
        staging: Staging | None = None
        try:
            for number, tile in self._queue():
                if staging is None:
                    staging = device.staging(self._in_bytes, self._out_bytes)
                self._do(tile, staging)
                self._tile_done(number, tile)
        except BaseException as error:
            self._failed(error)
        finally:
            if staging is not None:
                staging.close()
            self._ends()

    def _check(self) -> None:
        """Compare the inputs with their CRC-32, beside the workers; the page cache has what both read."""
        try:
            self._damaged = damaged_of(self.plan, self.sources, self.options)
        except BaseException as error:
            self._failed(error)
        finally:
            self._ends()

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._stop = True

    def _ends(self) -> None:
        with self._lock:
            self._running -= 1
            self._ended.notify_all()

    def _queue(self) -> Iterator[tuple[int, Tile]]:
        while not self._stop:
            with self._lock:
                item = next(self._tiles, None)
            if item is None:
                return
            yield item

    def _do(self, tile: Tile, staging: Staging) -> None:
        end = tile.start
        for part in tile.parts:
            job = self.plan.jobs[part.job]
            gap = part.out + tile.base - end
            if gap and self.sink is not None:
                staging.output[part.out - gap : part.out] = bytes(gap)
            end = part.out + tile.base + part.count * (1 if job.program is None else job.dtype.itemsize)
            self._read(part, job, staging)
        self._reduce(tile, staging)
        works, parts = self._works(tile)
        if works:
            counts = staging.run(tile.in_bytes, works, self._spans(tile))
            for part, (nonfinite, overflow) in zip(parts, counts, strict=True):
                if nonfinite or overflow:
                    self._count(part.job, nonfinite, overflow)
        if self.sink is not None:
            self.sink.write(tile.start, staging.output[tile.start - tile.base : tile.end - tile.base])

    def _read(self, part: Part, job: Job, staging: Staging) -> None:
        from .. import _native
        from ..backends.cpu import compute_into

        if job.program is None:
            wanted = [(job.operands[0], 1, staging.output, part.out)]
        else:
            operands = zip(job.operands, part.ins, strict=True)
            wanted = [(operand, operand.dtype.itemsize, staging.input, at) for operand, at in operands]
        for operand, size, buffer, at in wanted:
            place, view = buffer[at : at + part.count * size], operand.view
            try:
                if operand.source == _GENERATED:
                    self._last_stage(part.job).generate(operand.offset, part.first, place, operand.dtype)
                    continue
                source = self.sources[operand.source]
                if operand.computed:
                    compute_into(operand, self.sources, part.first, place)
                elif view is None:
                    source.read_into(operand.offset + part.first * size, place)
                else:
                    shape = (operand.dtype.itemsize, view.shape, view.strides, view.start)
                    source.gather_into(operand.offset, shape, part.first * size, place)
            except _native.Error as error:
                error.job = part.job
                raise

    def _reduce(self, tile: Tile, staging: Staging) -> None:
        rows, parts = [], []
        for part in tile.parts:
            job = self.plan.jobs[part.job]
            if job.program is not None and is_reduced(job, self.plan):
                program = self.plan.programs[job.program]
                products = products_of(program) if isinstance(program, Program) else ()
                rows.append(Row(tuple(each.dtype for each in job.operands), part.ins, part.count, products or ()))
                parts.append(part)
        if not rows:
            return
        for part, chunks in zip(parts, staging.reduce(tile.in_bytes, rows), strict=True):
            with self._lock:
                self._reductions.add(part.job, part.first, chunks)

    def _works(self, tile: Tile) -> tuple[list[Work], list[Part]]:
        """The tile's evaluations, gathered by formula and dtypes, and its parts in the order of their rows."""
        gathered: dict[Any, tuple[Work, list[Part]]] = {}
        for part in tile.parts:
            job = self.plan.jobs[part.job]
            program = None if job.program is None else self.plan.programs[job.program]
            if not isinstance(program, Program) or is_reduced(job, self.plan):
                continue
            dtypes = tuple(operand.dtype for operand in job.operands)
            formula = self._last_stage(part.job).formula if program.in_stages else Formula(program, job.numbers)
            key = (job.program if not program.in_stages else part.job, formula.numbers, dtypes, job.dtype)
            if key not in gathered:
                work = Work(formula, self.options.wide, dtypes, job.dtype, self.options.overflow, [])
                gathered[key] = (work, [])
            gathered[key][0].rows.append((part.out, part.count, part.ins))
            gathered[key][1].append(part)
        return [work for work, _ in gathered.values()], [part for _, parts in gathered.values() for part in parts]

    def _last_stage(self, number: int) -> LastStage:
        """What the host's stages leave to the device. The host has the bytes, and the page cache has them for the
        tiles that follow."""
        from ..backends.cpu import last_stage

        with self._reading:  # one tensor after the other: the next tile is mostly of the same
            if number not in self._last_stages:
                job = self.plan.jobs[number]
                program = self.plan.programs[job.program or 0]
                assert isinstance(program, Program)
                own = job._replace(operands=job.operands[: program.inputs])
                self._last_stages[number] = last_stage(own, program, self.sources, self.options.wide)
            return self._last_stages[number]

    def _spans(self, tile: Tile) -> list[tuple[int, int]]:
        """What the device wrote, neighbours joined: (offset, bytes) in the output buffer."""
        spans: list[tuple[int, int]] = []
        for part in tile.parts:
            job = self.plan.jobs[part.job]
            if job.program is None or not isinstance(self.plan.programs[job.program], Program):
                continue
            if spans and sum(spans[-1]) == part.out:
                spans[-1] = (spans[-1][0], spans[-1][1] + part.count * job.dtype.itemsize)
            else:
                spans.append((part.out, part.count * job.dtype.itemsize))
        return spans

    def _count(self, job: int, nonfinite: int, overflow: int) -> None:
        with self._lock:
            counts = self._tallies.setdefault(job, [0, 0])
            counts[0] += nonfinite
            counts[1] += overflow
        refuse_values(job, nonfinite, overflow, self.options)

    def _tile_done(self, number: int, tile: Tile) -> None:
        with self._lock:
            self.bytes_done += tile.end - tile.start
            self._finished[number] = tile.end
            while self._next in self._finished:
                end = self._finished.pop(self._next)
                if self.sink is not None:
                    self.sink.watermark = end
                self._next += 1


def _least_reduced(plan: Plan) -> tuple[int, float]:
    """The least memory for a plan of reductions, and the share of memory that its input may have: a tile holds a chunk
    at least, and a device needs room for its sums."""
    least, share = _LEAST_REDUCED, 2 / 3
    for job in plan.jobs:
        program = plan.programs[job.program or 0]
        products = products_of(program) if isinstance(program, Program) else None
        if products:
            size, further = sum(operand.dtype.itemsize for operand in job.operands), _SUM * len(products)
            share = min(share, size / (size + further) * 0.9)
            room = min(job.elements, CHUNK) * size + ALIGNMENT * (len(job.operands) + 1)
            least = max(least, int(room / share) + (1 << 20) >> 20 << 20)
    return least, share


def require_supported(plan: Plan, name: str, supports: Any, wide: bool, *, reduces: bool) -> None:
    """UsageError when the backend cannot do one of the plan's jobs: before the first output byte. ``reduces``: whether
    it has the reductions."""
    seen = set()
    for index, job in enumerate(plan.jobs):
        if job.program is None:
            continue
        program = plan.programs[job.program]
        if isinstance(program, Reduction):
            if reduces:
                continue
            raise UsageError(f'the backend {name} has no reductions; use backend="cpu" or "cuda"', code="backend")
        if not isinstance(program, Program):
            raise UsageError(f'the backend {name} evaluates formulas only; use backend="cpu"', code="backend")
        if is_reduced(job, plan):
            narrow = not wide and all(operand.dtype is not F64 for operand in job.operands)
            if reduces and narrow and products_of(program) is not None:
                continue
            raise UsageError(f'the backend {name} does not find these values; use backend="cpu"', code="backend")
        dtypes = tuple(operand.dtype for operand in _with_further(job, program, wide).operands)
        if (job.program, dtypes, job.dtype) in seen:
            continue
        seen.add((job.program, dtypes, job.dtype))
        reason = supports(program.without_stages(), dtypes, job.dtype, wide)
        if reason is not None:
            raise of_job(
                index, UsageError(f'the backend {name} cannot do this: {reason}; use backend="cpu"', code="backend")
            )


_GENERATED = -1  # the source of an operand that the host generates; its offset is its number


def _with_generated(plan: Plan, wide: bool) -> Plan:
    """The plan with an operand more for each that the last stages take and no file holds: values of rows, random
    numbers. The host generates them where it reads the others."""
    jobs = []
    for job in plan.jobs:
        program = None if job.program is None else plan.programs[job.program]
        jobs.append(_with_further(job, program, wide) if isinstance(program, Program) else job)
    return plan._replace(jobs=Jobs(jobs))


def _with_further(job: Job, program: Program, wide: bool) -> Job:
    further = program.further() if program.in_stages else ()
    if not further:
        return job
    kind = F64 if wide or any(operand.dtype is F64 for operand in job.operands) else F32
    generated = tuple(Operand(_GENERATED, kind, number) for number in range(len(further)))
    return job._replace(operands=job.operands + generated)


def describe(run: StreamRun) -> dict[str, Any]:
    return {
        "devices": [device.name for device in run.devices],
        "threads": run.workers * len(run.devices),
        "io": ["pread"] * len(run.sources),
        "buffer_bytes": run.buffer_bytes,
    }
