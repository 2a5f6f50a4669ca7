"""The oracle: the method's own Python body over NumPy arrays, and roundings written for clarity instead of speed.

Shares nothing with the native kernels but the Plan: widening and rounding are spelled out here a second time, with
NumPy's conversions where it has the dtype and from the definition of the format where it hasn't.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..definitions import draws, scalars, small_floats
from ..definitions.decoding import decoded, e8m0
from ..definitions.fused import fma
from ..definitions.reductions import (
    CHUNK,
    called,
    kth_and_last,
    length,
    line_numbers,
    lines_of,
    on_arrays,
    ordered_sum,
    places,
    reduced_rows,
)
from ..dtypes import BY_NAME, COMPUTABLE, F64, NUMPY, U8, DType
from ..errors import Interrupted, RunFailed
from ..operands.encoding import Companion
from ..plan import Fill, Job, Operand, Plan, Reduction
from ..program import (
    ALL,
    CONSTANT,
    EACH,
    INPUT,
    MADE,
    SCALAR_FUNCTIONS,
    TEMP,
    VALUE,
    Formula,
    Program,
    Ref,
    Step,
)
from . import Backend, Options, Reduced, damaged_of, refuse_values, sums_of

if TYPE_CHECKING:
    from .._native import Sink, Source


_STORAGE: dict[DType, Any] = {
    dtype: np.dtype(NUMPY.get(dtype.name, f"u{dtype.itemsize}")).type
    for dtype in BY_NAME.values()
    if dtype.native is not None
}
_STORAGE[BY_NAME["BOOL"]] = np.uint8
_SMALL = tuple(dtype for dtype in COMPUTABLE if dtype.name not in NUMPY)
"""What NumPy lacks."""


def widen(stored: np.ndarray, dtype: DType, wide: bool) -> np.ndarray:
    """Stored values (in the dtype's storage type) as float32, or float64 when ``wide``. Exact."""
    if dtype in _SMALL:
        stored = small_floats.values(dtype.format)[stored]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return stored.astype(np.float64 if wide else np.float32)


def _fits(magnitude: np.ndarray, dtype: DType) -> np.ndarray:
    """Whether a magnitude rounds to a finite value of the format: it does up to halfway past the largest (the tie
    itself goes to the even neighbour, which is the overflow where the format has an Inf)."""
    largest = dtype.format.largest
    if dtype is F64:
        return magnitude <= largest
    half = 2.0 ** (np.frexp(largest)[1] - 2 - dtype.format.mantissa_bits)
    with np.errstate(invalid="ignore"):
        wide = magnitude.astype(np.float64)
        return wide < largest + half if dtype.format.has_inf else wide <= largest + half


def store(values: np.ndarray, inputs_finite: np.ndarray, dtype: DType, overflow: str) -> tuple[np.ndarray, int]:
    """Round to the stored dtype: (stored values, number of overflows). Policies as in docs/numerics.md."""
    finite_fit = _fits(np.abs(values), dtype) & np.isfinite(values)
    safe = np.where(finite_fit, values, 0)
    out = (small_floats.codes(safe, dtype.format) if dtype in _SMALL else safe).astype(_STORAGE[dtype])
    if finite_fit.all():
        return out, 0
    bits = out.view(f"u{out.itemsize}")
    sign_bit = 1 << (8 * out.itemsize - 1)
    sign = np.signbit(values).astype(bits.dtype) * bits.dtype.type(sign_bit)
    nan = np.isnan(values)
    carried = np.isinf(values) & ~inputs_finite
    over = ~finite_fit & ~nan & ~carried
    form = dtype.format
    infinity = bits.dtype.type(form.inf_code) | sign if form.has_inf else np.full_like(bits, form.nan_code)
    saturates = overflow == "saturate" or (overflow in ("default", "error") and dtype.bits == 8)
    largest_bits = bits.dtype.type(form.inf_code - 1)
    bits[...] = np.where(carried, infinity, bits)
    bits[...] = np.where(over, (largest_bits | sign) if saturates else infinity, bits)
    bits[...] = np.where(nan, bits.dtype.type(form.nan_code), bits)
    return out, int(over.sum() + (nan & inputs_finite).sum())


def _chosen(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(truth, a, b))


def _where(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return _chosen(a != 0, b, c)


def _sign(a: np.ndarray) -> np.ndarray:
    return np.where(a > 0, a.dtype.type(1), np.where(a < 0, a.dtype.type(-1), np.where(a == 0, a.dtype.type(0), a)))


_BY_DEFINITION = ("exp", "log", "pow")
_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    # NumPy's own minimum leaves open which zero it gives.
    "minimum": lambda a, b: _chosen((a < b) | np.isnan(a), a, b),
    "maximum": lambda a, b: _chosen((a > b) | np.isnan(a), a, b),
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "sign": _sign, "where": _where, "fma": fma,
    "copysign": np.copysign, "floor": np.floor,
    **{name: functools.partial(on_arrays, name) for name in _BY_DEFINITION},
}  # fmt: skip


class Value(NamedTuple):
    """What a stage found: one number, or one of each of the lines that it runs along."""

    numbers: np.ndarray  # float64, flat
    along: int


class Beside:
    """What elements of a tensor meet besides its inputs: the values of its stages, and generated operands. Those from
    element ``first`` on, ``count`` of them."""

    def __init__(
        self, formula: Formula, shape: tuple[int, ...], values: Sequence[Value], first: int, count: int
    ) -> None:
        self.formula, self.shape, self.values = formula, shape, values
        self.first, self.count = first, count

    def value(self, number: int) -> np.ndarray:
        found = self.values[number]
        if found.along == ALL:
            return found.numbers[0]
        return found.numbers[line_numbers(self.shape, found.along, self._index())]

    def made(self, number: int) -> np.ndarray:
        op, along, refs = self.formula.program.made[number]
        args = [self.formula.numbers[i] if kind == CONSTANT else float(self.value(i)) for kind, i in refs]
        if op == "index":
            return places(self.shape, along, self._index())
        if op == "within":
            return self._index() <= args[0]
        drawn: np.ndarray = getattr(draws, op)((args[0], args[1]), args[2], self.first, self.count)
        return drawn

    def _index(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.count)


def run_steps(formula: Formula, inputs: Sequence[np.ndarray], beside: Beside | None = None) -> np.ndarray:
    """The formula's last steps on arrays of one float type; what lies beside the inputs meets them as that type."""
    program, numbers = formula
    with np.errstate(all="ignore"):
        result = _looked_up(program.steps, numbers, inputs, beside)(program.result)
        return result if np.ndim(result) else np.full_like(inputs[0], result)  # of constants only


def _looked_up(
    steps: Sequence[Step], numbers: Sequence[float], inputs: Sequence[np.ndarray], beside: Beside | None
) -> Callable[[Ref], Any]:
    """Evaluates the steps; the result says what a reference refers to then."""
    temps: dict[int, np.ndarray] = {}
    kind = inputs[0].dtype.type

    def look_up(ref: Ref) -> Any:
        place, index = ref
        if place in (INPUT, TEMP):
            return inputs[index] if place == INPUT else temps[index]
        if place == CONSTANT:
            return kind(numbers[index])
        assert beside is not None
        return np.asarray(beside.made(index) if place == MADE else beside.value(index)).astype(kind)

    for op, args, to in steps:
        temps[to] = np.asarray(_OPERATIONS[op](*(look_up(ref) for ref in args))).astype(kind, copy=False)
    return look_up


Mix = Callable[[int, np.ndarray], np.ndarray]
"""(number of a job's mixing, a whole tensor, flat) -> the tensor, mixed."""


def stage_values(
    formula: Formula, inputs: Sequence[np.ndarray], shape: tuple[int, ...], mix: Mix | None = None
) -> list[Value]:
    """What the stages find in a whole tensor: ``inputs`` are its elements, widened and flat."""
    program, numbers = formula
    values: list[Value] = []
    count = inputs[0].size
    if count == 0:  # nothing meets them
        return [Value(np.zeros(1), ALL)] * program.values
    for stage in program.stages:
        with np.errstate(all="ignore"):
            look_up = _looked_up(stage.steps, numbers, inputs, Beside(formula, shape, tuple(values), 0, count))
            for op, along, refs in stage.reductions:
                if op == "length":
                    values.append(Value(length(np.empty(shape), along).values.reshape(1), ALL))
                    continue
                if op == "mix":
                    assert mix is not None
                    values.append(Value(mix(along, np.asarray(look_up(refs[0]))).astype(np.float64), EACH))
                    continue
                if op == "whole":
                    arrays, function = program.functions[along]
                    tensors = [np.broadcast_to(look_up(ref), (count,)).reshape(shape) for ref in refs[:arrays]]
                    given = [
                        numbers[i] if kind == CONSTANT else float(values[i].numbers[0]) for kind, i in refs[arrays:]
                    ]
                    values.append(Value(called(function, tensors, given).reshape(-1).astype(np.float64), EACH))
                    continue
                wide = [refs[0]] if op in ("kth", "top") else refs or ((INPUT, 0),)
                operands = [np.broadcast_to(look_up(ref), (count,)).astype(np.float64) for ref in wide]
                if op in ("kth", "top"):
                    kind, index = refs[1]
                    k = numbers[index] if kind == CONSTANT else values[index].numbers[0]
                    least, last = kth_and_last(operands[0], float(k))
                    values += [Value(np.array([each]), ALL) for each in ((least, last) if op == "top" else (least,))]
                    continue
                lines = [lines_of(operand.reshape(shape), along) for operand in operands]
                values.append(Value(reduced_rows(op, *lines), along))
            for op, refs in stage.scalars:
                values.append(_scalar(op, [values[i] if kind == VALUE else numbers[i] for kind, i in refs]))
    return values


def _scalar(op: str, args: Sequence[Value | float]) -> Value:
    arrays = np.broadcast_arrays(*(arg.numbers if isinstance(arg, Value) else np.array([arg]) for arg in args))
    along = max(arg.along for arg in args if isinstance(arg, Value))
    if op in SCALAR_FUNCTIONS or op == "sqrt":  # which NumPy has, but with a NaN of its own
        function = getattr(scalars, op)
        each = zip(*(array.tolist() for array in arrays), strict=True)
        return Value(np.array([function(*numbers) for numbers in each]), along)
    return Value(np.asarray(_OPERATIONS[op](*arrays)).astype(np.float64), along)


def evaluate(
    formula: Formula,
    inputs: Sequence[tuple[np.ndarray, DType]],
    dtype: DType,
    overflow: str,
    wide: bool,
    *,
    beside: Beside | None = None,
) -> tuple[np.ndarray, int, int]:
    """Stored inputs to stored output: (values, elements with a non-finite input, overflows)."""
    wide = wide or any(kind is F64 for _, kind in inputs)
    widened = [widen(stored, kind, wide) for stored, kind in inputs]
    finite = np.isfinite(widened[0])
    for each in widened[1:]:
        finite &= np.isfinite(each)
    out, overflows = store(run_steps(formula, widened, beside), finite, dtype, overflow)
    return out, int((~finite).sum()), overflows


def evaluate_tensor(
    formula: Formula, inputs: Sequence[tuple[np.ndarray, DType]], dtype: DType, overflow: str, wide: bool
) -> tuple[np.ndarray, int, int]:
    """``evaluate`` for a whole tensor of any shape, its stages included."""
    shape = inputs[0][0].shape
    flat = [(stored.reshape(-1), kind) for stored, kind in inputs]
    wider = wide or any(kind is F64 for _, kind in inputs)
    widened = [widen(stored, kind, wider) for stored, kind in flat]
    return evaluate(formula, flat, dtype, overflow, wide, beside=beside_of(formula, widened, shape))


def beside_of(formula: Formula, inputs: Sequence[np.ndarray], shape: tuple[int, ...], first: int = 0) -> Beside:
    """What elements of a tensor meet besides ``inputs``, which are some of its elements from ``first`` on, flat; all of
    them for a formula with stages."""
    return Beside(formula, shape, stage_values(formula, inputs, shape), first, inputs[0].size)


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
        stored = np.frombuffer(data, _STORAGE[companion.dtype])
        return stored if companion.dtype is U8 else widen(stored, companion.dtype, False)

    def stored(self, operand: Operand, first: int, count: int) -> tuple[np.ndarray, DType]:
        if operand.computed:
            return self._computed(operand, first, count), operand.dtype
        return np.frombuffer(self._elements(operand, first, count), _STORAGE[operand.dtype]), operand.dtype

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
