"""The oracle: the method's own Python body over NumPy arrays, and roundings written for clarity instead of speed.

Shares nothing with the native kernels but the Plan: what they compute is spelled out in ``definitions/`` a second time.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..definitions.conversions import STORAGE, widen
from ..definitions.decoding import decoded, e8m0
from ..definitions.programs import Beside, Value, evaluate, stage_values
from ..definitions.reductions import (
    CHUNK,
    ordered_sum,
)
from ..dtypes import F64, U8, DType
from ..errors import Interrupted, RunFailed
from ..operands.encoding import Companion
from ..plan import Fill, Job, Operand, Plan, Reduction
from ..program import (
    ALL,
    Formula,
    Program,
)
from . import Backend, Options, Reduced, damaged_of, refuse_values, sums_of

if TYPE_CHECKING:
    from .._native import Sink, Source


# ---- reductions, in the order that csrc/reduce.h promises


def reduce_chunk(a: np.ndarray, a_dtype: DType, b: np.ndarray, b_dtype: DType) -> Reduced:
    """At most a chunk of stored elements."""
    x, y = widen(a, a_dtype, True), widen(b, b_dtype, True)
    with np.errstate(invalid="ignore", over="ignore"):
        if a_dtype is b_dtype:
            codes = f"u{a.itemsize}"
            equal = a.view(codes) == b.view(codes)
        else:
            equal = x == y
        a_finite, b_finite = np.isfinite(x), np.isfinite(y)
        both = a_finite & b_finite
        x, y = (np.where(both, values, 0.0) for values in (x, y))
        difference = x - y
        sums = ordered_sum(np.stack((x * y, x * x, y * y, difference * difference)))
        peaks = [float(np.abs(values).max(initial=0.0)) for values in (x, y, difference)]
        counts = [int(kind.sum()) for kind in (~a_finite, ~b_finite, equal)]
    return Reduced._make([*map(float, sums), *peaks, *counts])


def combine(total: Reduced, chunk: Reduced) -> Reduced:
    """The chunk added to those before it; sums that are NaN are the canonical NaN, as any of Python's."""
    sums = [before + now for before, now in zip(total[:4], chunk[:4], strict=True)]
    peaks = [max(before, now) for before, now in zip(total[4:7], chunk[4:7], strict=True)]
    counts = [before + now for before, now in zip(total[7:], chunk[7:], strict=True)]
    sums = [math.nan if math.isnan(value) else value for value in sums]
    return Reduced._make([*sums, *peaks, *counts])


class ReferenceRun:
    """Does the jobs one after the other inside wait()."""

    def __init__(self, plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options) -> None:
        self.plan, self.sources, self.sink, self.options = plan, sources, sink, options
        self._damaged: list[int] = []
        self.bytes_done = 0
        self._tallies: dict[int, list[int]] = {}
        self._reduced: dict[int, Reduced] = {}
        self._weights: dict[Operand, np.ndarray] = {}  # of the computed operand that was read last
        self._values: tuple[int, list[Value]] = (-1, [])  # a job, and what its stages found
        self._kept: dict[int, list[float]] = {}  # the whole-tensor values of each, of a run without a sink
        self._work = self._chunks()
        self._cancelled = False

    def start(self) -> None:
        self._damaged = damaged_of(self.plan, self.sources, self.options)

    def cancel(self) -> None:
        self._cancelled = True

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._cancelled and time.monotonic() < until:
            if next(self._work, None) is None:
                return True
        return self._cancelled

    def finish(self) -> None:
        if self._cancelled:
            raise Interrupted("cancelled")
        for source in self.sources:
            source.check_unchanged()

    def tallies(self, output: int = 0) -> list[tuple[int, int, int]]:
        return [(job, nonfinite, overflow) for job, (nonfinite, overflow) in self._tallies.items()]

    def reductions(self) -> list[tuple[Any, ...]]:
        return [(job, *reduced) for job, reduced in self._reduced.items()]

    def values(self) -> list[tuple[int, list[float]]]:
        return list(self._kept.items())

    def sums(self) -> list[int]:
        return sums_of(self.plan, self.sink) if self.sink is not None else []

    def damaged(self) -> list[int]:
        return self._damaged

    def _chunks(self) -> Any:
        for index, job in enumerate(self.plan.jobs):
            by_bytes = job.program is None and job.operands[0].view is None
            count = job.nbytes if by_bytes else job.count
            for first in range(0, count, CHUNK):
                data = self._chunk(index, job, first, min(CHUNK, count - first))
                at = job.offset + first * (1 if by_bytes else job.dtype.itemsize)
                if self.sink is not None:
                    self.sink.write(at, data)
                self.bytes_done += len(data)
                if self.sink is not None:
                    self.sink.watermark = at + len(data)
                yield True

    def _chunk(self, index: int, job: Job, first: int, count: int) -> bytes:
        if job.program is None and job.operands[0].view is None:
            return self.sources[job.operands[0].source].read(job.operands[0].offset + first, count)
        if job.program is None:
            return self._elements(job.operands[0], first, count)
        program = self.plan.programs[job.program]
        if isinstance(program, Fill):
            raise RunFailed("the reference backend generates no data")
        inputs = self.inputs(job, first, count)
        if isinstance(program, Reduction):
            found = reduce_chunk(*inputs[0], *inputs[1])
            self._reduced[index] = combine(self._reduced.get(index, Reduced()), found)
            return bytes(count * job.dtype.itemsize)
        out, nonfinite, overflow = evaluate(
            Formula(program, job.numbers), inputs, job.dtype, self.options.overflow, self.options.wide,
            beside=self.beside(index, job, program, first, count),
        )  # fmt: skip
        if nonfinite or overflow:
            counts = self._tallies.setdefault(index, [0, 0])
            counts[0] += nonfinite
            counts[1] += overflow
            refuse_values(index, nonfinite, overflow, self.options)
        return out.tobytes()

    def inputs(self, job: Job, first: int, count: int) -> list[tuple[np.ndarray, DType]]:
        """Some elements of a job's operands, as they are stored."""
        return [self.stored(operand, first, count) for operand in job.operands]

    def _computed(self, operand: Operand, first: int, count: int) -> np.ndarray:
        if operand not in self._weights:
            self._weights = {operand: self._all_of(operand)}  # of one tensor at a time
        made = operand.encoding or operand.low_rank
        assert made is not None
        return self._weights[operand][made.start + first :][:count]

    def _mixed(self, job: Job, number: int, tensor: np.ndarray) -> np.ndarray:
        from ..definitions.mixing import mixed

        return np.asarray(mixed(job.mixings[number], tensor, self._numbers))

    def _all_of(self, operand: Operand) -> np.ndarray:
        if operand.low_rank is not None:
            from ..definitions.products import computed

            return np.asarray(computed(operand.low_rank, self._numbers))
        assert operand.encoding is not None
        codes = self.sources[operand.source].read(operand.offset, operand.encoding.stored_bytes)
        return decoded(operand.encoding, codes, self._numbers)

    def _numbers(self, companion: Companion) -> np.ndarray:
        operand = Operand(companion.source, companion.dtype, companion.offset, companion.view)
        data = self._elements(operand, 0, companion.count)
        if companion.dtype.name == "F8_E8M0":
            return e8m0(np.frombuffer(data, np.uint8))
        stored = np.frombuffer(data, STORAGE[companion.dtype])
        return stored if companion.dtype is U8 else widen(stored, companion.dtype, False)

    def stored(self, operand: Operand, first: int, count: int) -> tuple[np.ndarray, DType]:
        if operand.computed:
            return self._computed(operand, first, count), operand.dtype
        return np.frombuffer(self._elements(operand, first, count), STORAGE[operand.dtype]), operand.dtype

    def beside(self, index: int, job: Job, program: Program, first: int, count: int) -> Beside | None:
        """What the job's elements meet besides its inputs."""
        if not program.in_stages:
            return None
        if self._values[0] != index:
            wide = self.options.wide or any(operand.dtype is F64 for operand in job.operands)
            inputs = [widen(stored, dtype, wide) for stored, dtype in self.inputs(job, 0, job.elements)]
            mix = functools.partial(self._mixed, job)
            self._values = (index, stage_values(Formula(program, job.numbers), inputs, job.shape, mix))
            if self.sink is None:
                self._kept[index] = [float(value.numbers[0]) for value in self._values[1] if value.along == ALL]
        return Beside(Formula(program, job.numbers), job.shape, self._values[1], first, count)

    def _elements(self, operand: Operand, first: int, count: int) -> bytes:
        """``count`` elements of an operand from element ``first`` on, row by row."""
        source, size, view = self.sources[operand.source], operand.dtype.itemsize, operand.view
        if view is None:
            return source.read(operand.offset + first * size, count * size)
        index = np.unravel_index(np.arange(view.start + first, view.start + first + count), view.shape)
        places = np.zeros(count, np.int64)
        for at, stride in zip(index, view.strides, strict=True):
            places += at * stride
        low = int(places.min())
        span = np.frombuffer(source.read(operand.offset + low * size, (int(places.max()) - low + 1) * size), f"V{size}")
        return span[places - low].tobytes()


BACKEND = Backend("reference", lambda: None, ReferenceRun, lambda run: {"numpy": np.__version__}, values=True)
