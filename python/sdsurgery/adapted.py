"""Runs the jobs that go through adapters, over NumPy arrays, block of rows by block of rows.

Any backend does the other jobs of the plan. ``definitions/products.py`` says what is computed. In memory are a block
of rows and the factors of one layer; kinds that need the whole weight (``products.Effect.step``) have it whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .backends import Options, RunHandle, damaged_of, refuse_values, sums_of
from .backends.reference import ReferenceRun, beside_of, run_steps, store, widen
from .definitions.products import Effect
from .dtypes import F64
from .errors import Interrupted, SdsError
from .plan import Job, Module, Plan
from .program import Formula, Program

if TYPE_CHECKING:
    from ._native import Sink, Source

BLOCK = 1 << 17
"""Elements at a time: a float32 block of them stays in the second-level cache."""

Prepare = Callable[[Plan], RunHandle]


class AdaptedRun:
    """A run of a plan with such jobs, in the order of the output. ``prepare`` makes the run of a plan without them; it
    is asked for one run of every stretch between them."""

    def __init__(
        self, plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options, prepare: Prepare
    ) -> None:
        self.plan, self.sources, self.sink, self.options, self._prepare = plan, sources, sink, options, prepare
        self._reader = ReferenceRun(plan, sources, None, options)
        self._damaged: list[int] = []
        self._tallies: dict[int, tuple[int, int]] = {}
        self._done = 0
        self._stretches = [
            (adapted, list(indexes))
            for adapted, indexes in groupby(range(len(plan.jobs)), lambda index: bool(plan.jobs[index].modules))
        ]
        self._work = self._steps()
        self._current: RunHandle | None = None
        self._cancelled = False
        self.example = next((self._run_of(jobs) for adapted, jobs in self._stretches if not adapted), None)

    @property
    def bytes_done(self) -> int:
        return self._done + (self._current.bytes_done if self._current is not None else 0)

    def start(self) -> None:
        self._damaged = damaged_of(self.plan, self.sources, self.options)

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._cancelled and time.monotonic() < until:
            if next(self._work, None) is None:
                return True
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    def finish(self) -> None:
        if self._cancelled:
            if self._current is not None:
                self._current.finish()
            raise Interrupted("cancelled")
        for source in self.sources:
            source.check_unchanged()

    def tallies(self, output: int = 0) -> list[tuple[int, int, int]]:
        return [(job, *counts) for job, counts in self._tallies.items()]

    def reductions(self) -> list[tuple[Any, ...]]:
        return []

    def sums(self) -> list[int]:
        return sums_of(self.plan, self.sink) if self.sink is not None else []

    def damaged(self) -> list[int]:
        return self._damaged

    def _steps(self) -> Iterator[bool]:
        for adapted, jobs in self._stretches:
            yield from self._blocks(jobs) if adapted else self._others(jobs)

    def _run_of(self, jobs: Sequence[int]) -> RunHandle:
        return self._prepare(replace(self.plan, jobs=tuple(self.plan.jobs[i] for i in jobs), checks=(), sums=()))

    def _others(self, jobs: Sequence[int]) -> Iterator[bool]:
        """The backend's own run of jobs that go through no adapter."""
        run = self._current = self._run_of(jobs)
        with _in_numbers_of(jobs):
            run.start()
            while not run.wait(0.1):
                yield True
            run.finish()
        for job, nonfinite, overflow in run.tallies():
            self._tallies[jobs[job]] = (nonfinite, overflow)
        self._done += run.bytes_done
        self._current = None

    def _blocks(self, jobs: Sequence[int]) -> Iterator[bool]:
        for index in jobs:
            job = self.plan.jobs[index]
            nonfinite = overflow = 0
            for first, values, finite in self._rows(job):
                out, over = store(values, finite, job.dtype, self.options.overflow)
                nonfinite += int((~finite).sum())
                overflow += over
                refuse_values(index, nonfinite, overflow, self.options)
                data, at = out.tobytes(), job.offset + first * job.dtype.itemsize
                if self.sink is not None:
                    self.sink.write(at, data)
                    self.sink.watermark = at + len(data)
                self._done += len(data)
                yield True
            if nonfinite or overflow:
                self._tallies[index] = (nonfinite, overflow)

    def _rows(self, job: Job) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Blocks of a job's result: their first element, the values, and which of them were made of finite numbers."""
        reader = self._reader
        kinds = [operand.dtype for operand in (*job.operands, *(factor.operand for factor in job.factors))]
        wide = self.options.wide or F64 in kinds
        real = np.float64 if wide else np.float32
        factors = [widen(*reader.stored(factor.operand, 0, factor.elements), wide) for factor in job.factors]
        known = all(bool(np.isfinite(factor).all()) for factor in factors)
        effects = [
            (module, Effect(module, {name: factors[at].reshape(shape) for name, at, shape in module.factors}, real))
            for module in job.modules
        ]
        columns = math.prod(job.modules[0].shape[1:])
        rows = job.count // columns
        program = None if job.program is None else self.plan.programs[job.program]
        formula = Formula(program, job.numbers) if isinstance(program, Program) else None
        step = math.lcm(*(effect.step if module.shape[0] == rows else rows for module, effect in effects))
        if formula is not None and formula.program.stages:
            step = rows
        size = rows if step >= rows else max(step, BLOCK // columns // step * step)
        for row in range(0, rows, size):
            first, count = row * columns, min(size, rows - row) * columns
            inputs = [widen(*stored, wide) for stored in reader.inputs(job, first, count)]
            finite = np.logical_and.reduce([np.isfinite(each) for each in inputs]) & known
            for at, each in enumerate(inputs):
                chosen = [(module, effect) for module, effect in effects if module.input == at]
                inputs[at] = _through(chosen, each.reshape(-1, columns), row, rows).reshape(-1)
            values = inputs[0]
            if formula is not None:
                values = run_steps(formula, inputs, beside_of(formula, inputs, job.shape, first))
            chosen = [(module, effect) for module, effect in effects if module.input < 0]
            values = _through(chosen, values.reshape(-1, columns), row, rows)
            yield first, np.ascontiguousarray(values).reshape(-1), finite


def _through(effects: Sequence[tuple[Module, Effect]], values: np.ndarray, row: int, rows: int) -> np.ndarray:
    """Rows from ``row`` on of a tensor of ``rows``, after the modules. All of them where one changes only some."""
    with np.errstate(all="ignore"):
        for module, effect in effects:
            if module.shape[0] == rows:
                values = effect(values, row)
            else:
                values, part = values.copy(), slice(module.first, module.first + module.shape[0])
                values[part] = effect(values[part], 0)
    return values


@contextmanager
def _in_numbers_of(jobs: Sequence[int]) -> Iterator[None]:
    """An error of one of these jobs leaves with its number in the whole plan."""
    try:
        yield
    except (_native.Error, SdsError) as error:
        if error.job is not None and error.job >= 0:
            error.job = jobs[error.job]
        raise
