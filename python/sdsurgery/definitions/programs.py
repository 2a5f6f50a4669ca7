"""What a program gives, over NumPy arrays: its stages' values, then its last steps, element by element.

``evaluate`` and ``evaluate_tensor`` go from stored inputs to a stored output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import F64, DType
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
    Ref,
    Step,
)
from . import draws, scalars
from .conversions import store, widen
from .fused import fma
from .reductions import (
    called,
    kth_and_last,
    length,
    line_numbers,
    lines_of,
    on_arrays,
    places,
    reduced_rows,
)


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
    if op == "sum_values":
        return Value(reduced_rows("sum", np.asarray(args[0].numbers).reshape(1, -1)), ALL)  # type: ignore[union-attr]
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
