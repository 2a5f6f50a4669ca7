"""The native engine on the CPU: a thin translation of a Plan into its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _native
from ..dtypes import DType
from ..operands import low_rank, mixing
from ..operands.encoding import CODINGS, Companion, Encoding
from ..operands.low_rank import LowRank, Matrix
from ..operands.mixing import Mixing
from ..operands.view import View
from ..plan import Common, Fill, Job, Jobs, Operand, Plan, Reduction
from ..program import GENERATED, OPERATIONS, REDUCTIONS, SCALAR_FUNCTIONS, Formula, Program, Stage, Step
from . import Backend, Options

if TYPE_CHECKING:
    from .. import _native as native
    from .._native import Run, Sink, Source

IO_MODES = ("auto", "pread", "mmap", "direct")
OVERFLOW = {"default": 0, "inf": 1, "saturate": 2, "error": 0}
COMPANIONS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "U8", "F64", "F8_E5M2", "I16", "I32", "I64")
_COPY, _EVALUATE, _FILL, _REDUCE = 0, 1, 2, 3


@functools.lru_cache(maxsize=256)
def native_program(program: Program, wide: bool) -> native.Program:
    """A traced program as the native engine takes it."""
    stages = [_native_stage(stage) for stage in program.stages]
    made = [(GENERATED[op], along, args) for op, along, args in program.made]
    return _native.Program(
        program.inputs, program.constants, _native_steps(program.steps), program.result, wide, stages, made,
        program.generated, [(arrays, _on_buffers(function)) for arrays, function in program.functions],
    )  # fmt: skip


def _on_buffers(function: Callable[..., Any]) -> Callable[..., None]:
    from ..definitions.reductions import on_buffers  # which needs NumPy

    return on_buffers(function)


def _native_steps(steps: Sequence[Step]) -> list[tuple[Any, ...]]:
    return [(OPERATIONS[op], args, to) for op, args, to in steps]


def _native_stage(stage: Stage) -> tuple[Any, ...]:
    codes = OPERATIONS | SCALAR_FUNCTIONS
    reductions = [(REDUCTIONS[op], along, args) for op, along, args in stage.reductions]
    return _native_steps(stage.steps), reductions, [(codes[op], args) for op, args in stage.scalars]


def prepare(
    plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options, further: Sequence[Sink] = ()
) -> Run:
    programs: list[native.Program] = []
    fills: list[tuple[int, float, float]] = []
    place: list[tuple[int, int]] = []
    for program in plan.programs:
        if isinstance(program, Fill):
            place.append((_FILL, len(fills)))
            fills.append((program.seed, program.mean, program.deviation))
        elif isinstance(program, Reduction):
            place.append((_REDUCE, 0))
        else:
            place.append((_EVALUATE, len(programs)))
            programs.append(native_program(program, options.wide))
    return _native.Run(
        sources=list(sources),
        programs=programs,
        fills=fills,
        jobs=_NativeJobs(plan.jobs, place),
        checks=[(c.source, c.offset, c.nbytes, c.crc32, c.parts) for c in plan.checks],
        sums=plan.sums,
        sink=sink,
        threads=options.threads or (options.busy and _workers_beside(options.busy, plan)),
        tile_bytes=options.tile_bytes,
        io=IO_MODES.index(options.io),
        overflow=OVERFLOW[options.overflow],
        refuse_overflow=options.overflow == "error",
        refuse_nonfinite=options.on_nonfinite == "error",
        refuse_damaged=options.refuse_damaged,
        start_flushing=options.flush,
        target=options.cpu,
        further=[
            (each, version.data_start - plan.data_start, version.numbers)
            for each, version in zip(further, plan.further, strict=True)
        ],
    )


_HEAVY = frozenset({"pow", "exp", "log"})


def _workers_beside(busy: int, plan: Plan) -> int:
    """Of a run beside hashing on ``busy`` processors: a worker for each other processor, which copies and sums as fast
    as they hash; for more work one for each processor, since it goes on when the hashing has ended."""
    light = all(
        isinstance(each, Fill | Reduction) or not (each.in_stages or _HEAVY.intersection(op for op, *_ in each.steps))
        for each in plan.programs
    )
    processors: int = _native.usable_cpus()
    return max(1, processors - busy) if light else processors


class _NativeJobs:
    """The jobs as the native engine takes them, one at a time."""

    def __init__(self, jobs: Jobs, place: Sequence[tuple[int, int]]) -> None:
        self.jobs, self.place = jobs, place

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        last: Common | None = None
        for job in self.jobs.plainly():
            if isinstance(job, Job):
                yield _native_job(job, self.place)
                continue
            common, offset, count, places = job
            if common is not last:
                last = common
                program, dtype, numbers, parts = common
                kind, index = (_COPY, 0) if program is None else self.place[program]
                out = code_of(dtype) if kind in (_EVALUATE, _FILL) else 0
                codes = [(source, 0 if kind == _COPY else code_of(each)) for source, each in parts]
            operands = tuple([(*part, at) for part, at in zip(codes, places, strict=True)])
            yield kind, index, out, offset, (dtype.nbytes(count) if kind == _COPY else count), operands, numbers, ()


def _native_job(job: Job, place: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    number, dtype, offset, count, operands, _, numbers, shape = job[:8]
    if number is None:
        parts = tuple([_native_operand(0, operand) for operand in operands])
        return (_COPY, 0, 0, offset, job.nbytes, parts, (), shape, 0)
    kind, index = place[number]
    parts = tuple([_native_operand(code_of(operand.dtype), operand) for operand in operands])
    mixings = tuple(map(_native_mixing, job.mixings))
    out = 0 if kind == _REDUCE else code_of(dtype)
    return (kind, index, out, offset, count, parts, numbers, shape, job.read, mixings)


def _native_operand(code: int, operand: Operand) -> tuple[Any, ...]:
    source, dtype, offset, view, encoding, made = operand
    if encoding is not None:
        return (source, code, offset, None, (0, _native_encoding(encoding)))
    if made is not None:
        return (source, code, offset, None, (1, _native_low_rank(made)))
    if view is None:
        return (source, code, offset)
    return (source, code, offset, _native_view(view, dtype))


def _native_view(view: View | None, dtype: DType) -> tuple[Any, ...] | None:
    return None if view is None else (dtype.itemsize, view.shape, view.strides, view.start)


def _native_numbers(part: Companion | None) -> tuple[Any, ...] | None:
    if part is None:
        return None
    kind = COMPANIONS.index(part.dtype.name)
    return (kind, part.source, part.offset, part.count, _native_view(part.view, part.dtype))


def _native_encoding(encoding: Encoding) -> tuple[Any, ...]:
    return (
        CODINGS.index(encoding.coding), encoding.low_first, encoding.rows, encoding.columns, encoding.stored_columns,
        encoding.start, *encoding.block, _native_numbers(encoding.scales), encoding.tiled,
        _native_numbers(encoding.map), _native_numbers(encoding.times), encoding.per, encoding.plus, encoding.factor,
        encoding.group, encoding.inner, _native_numbers(encoding.by_column),
    )  # fmt: skip


def _native_low_rank(made: LowRank) -> tuple[Any, ...]:
    kind = low_rank.KINDS.index(made.kind)
    return (
        kind,
        made.rows,
        made.columns,
        made.place,
        made.start,
        _native_matrix(made.left),
        _native_matrix(made.right),
    )


def _native_matrix(given: Matrix | None) -> tuple[Any, ...] | None:
    if given is None:
        return None
    parts = tuple(_native_numbers(part) for part in given.parts)
    form = low_rank.FORMS.index(given.form)
    return (form, given.rows, given.columns, given.rank, given.inner, parts, given.turned)


def _native_mixing(made: Mixing) -> tuple[Any, ...]:
    return (
        mixing.KINDS.index(made.kind), made.rows, made.columns, made.place, made.turned, made.size, made.limit,
        _native_matrix(made.left), _native_matrix(made.right),
    )  # fmt: skip


def compute_into(operand: Operand, sources: Sequence[Source], first: int, buffer: Any) -> None:
    """Float32 of a computed operand's elements from ``first`` on, as many as the buffer has room for: for the backends
    of devices."""
    _native.compute_into(list(sources), _native_operand(code_of(operand.dtype), operand), first, buffer)


class LastStage(NamedTuple):
    """What is left to evaluate of a job's program once its stages have read the tensor: for the backends of devices,
    which see a tile at a time. The inputs behind the job's own are generated (``Program.without_stages``)."""

    formula: Formula
    native: native.LastStage

    def generate(self, operand: int, first: int, buffer: Any, dtype: DType) -> None:
        """Elements of the generated input from ``first`` on, F32 or F64; of one that isn't used, zeros."""
        if operand < self.native.generated:
            self.native.generate(operand, first, buffer, code_of(dtype))
        else:
            memoryview(buffer)[:] = bytes(len(buffer))


def last_stage(job: Job, program: Program, sources: Sequence[Source], wide: bool) -> LastStage:
    """Run a job's stages in the native engine."""
    operands = [_native_operand(code_of(operand.dtype), operand) for operand in job.operands]
    mixings = [_native_mixing(each) for each in job.mixings]
    found = _native.last_stage(native_program(program, wide), job.numbers, list(sources), operands, job.shape, mixings)
    names = list(OPERATIONS)
    steps = tuple((names[op], args, to) for op, args, to in found.steps)
    further, constants = len(program.further()), tuple(found.constants)
    left = Program(program.inputs + further, len(constants), steps, found.result, generated=further)
    return LastStage(Formula(left, constants), found)


def code_of(dtype: DType) -> int:
    """The native engine's number of a dtype that it knows."""
    if dtype.native is None:
        raise ValueError(f"{dtype.name} cannot be computed with")
    return dtype.native


def describe(run: Run) -> dict[str, Any]:
    return {
        "cpu": run.target,
        "threads": run.workers,
        "io": [IO_MODES[code] for code in run.io],
        "buffer_bytes": run.buffer_bytes,
    }


BACKEND = Backend("cpu", lambda: None, prepare, describe, versions=True, values=True)
