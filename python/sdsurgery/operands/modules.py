"""Adapters' modules as operands and steps of a job's formula, so that any backend computes them in its loop.

``W + n·Δ`` is two steps more, with Δ an operand that is computed from the factors (``low_rank.py``); the norms of DoRA
are a stage. The values are those of ``definitions/products.py``, operation by operation. What rotates, what changes
an input of the formula, and what changes some rows or columns only, stays a module, which ``adapted.py`` computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import NamedTuple

from ..definitions.products import NEAR_ZERO
from ..dtypes import BF16, F16, F32, F64
from ..plan import Check, Factor, Fill, Job, Module, Operand, Plan, Reduction
from ..program import CHANNEL, CONSTANT, FIRST, INPUT, TEMP, VALUE, Formula, Program, Ref, Stage, Step, identity
from .encoding import Companion
from .low_rank import LowRank, Matrix

_MOST_OPERANDS = 48  # of a job: the engine takes 512


class _Inexpressible(Exception):
    """A module that is more than operands and steps."""


class Expressed(NamedTuple):
    """A plan, and the checks of it that are about factors: nobody reads those from end to end any more."""

    plan: Plan
    checks: tuple[Check, ...]


def expressed(plan: Plan, wide: bool) -> Expressed:
    """The plan with its modules as operands where that can be. ``wide``: it is computed in float64."""
    programs: dict[Program | Fill | Reduction, int] = {program: at for at, program in enumerate(plan.programs)}
    jobs = []
    changed = set()
    for index, job in enumerate(plan.jobs):
        program = None if job.program is None else plan.programs[job.program]
        made = None if wide or not job.modules else _with_modules(job, program)
        if made is None:
            jobs.append(job)
            continue
        formula, operands = made
        number = programs.setdefault(formula.program, len(programs))
        shape = job.modules[0].shape if formula.program.in_stages else ()
        plain = job._replace(
            program=number, numbers=formula.numbers, operands=operands, shape=shape, modules=(), factors=()
        )
        jobs.append(plain)
        changed.add(index)
    apart = [check for check in plan.checks if any(index in changed for index, _ in check.parts)]
    kept = tuple(check for check in plan.checks if check not in apart)
    return Expressed(replace(plan, programs=tuple(programs), jobs=tuple(jobs), checks=kept), tuple(apart))


class _Formula:
    """A formula that grows: its operands, steps and numbers, and where its result is."""

    def __init__(self, formula: Formula, operands: tuple[Operand, ...]) -> None:
        self.steps: list[Step] = list(formula.program.steps)
        self.numbers = list(formula.numbers)
        self.operands = list(operands)
        self.result: Ref = formula.program.result
        self.stages, self._made = list(formula.program.stages), formula.program.made
        self._functions = formula.program.functions
        self._values = formula.program.values
        self._free = 1 + max((to for _, _, to in self.steps), default=-1)
        self._spare = 0

    def operand(self, operand: Operand) -> Ref:
        self.operands.append(operand)
        if len(self.operands) > _MOST_OPERANDS:
            raise _Inexpressible
        return INPUT, len(self.operands) - 1

    def step(self, op: str, a: Ref, b: Ref) -> Ref:
        """An operation, into one of a few places that are used in turn: its result outlives the next ten."""
        to = self._free + self._spare
        self._spare = (self._spare + 1) % 12
        self.steps.append((op, (a, b), to))
        return TEMP, to

    def add(self, number: float, delta: Ref) -> None:
        """``result + number · delta``"""
        self.result = self.step("add", self.result, self.step("mul", self.constant(number), delta))

    def constant(self, number: float) -> Ref:
        self.numbers.append(number)
        return CONSTANT, len(self.numbers) - 1

    def length(self, of: Ref, along: int) -> Ref:
        """The Euclidean norm of each row or column, plus what keeps it from zero: a stage of its own."""
        first, near_zero = self._values, self.constant(NEAR_ZERO)
        scalars = (("sqrt", ((VALUE, first),)), ("add", ((VALUE, first + 1), near_zero)))
        self.stages.append(Stage(tuple(self.steps), (("dot", along, (of, of)),), scalars))
        self._values += 3
        return VALUE, first + 2

    def made(self) -> Formula:
        program = Program(
            len(self.operands), len(self.numbers), tuple(self.steps), self.result, tuple(self.stages), self._made,
            functions=self._functions,
        )  # fmt: skip
        return Formula(program, tuple(self.numbers))


def _with_modules(
    job: Job, program: Program | Fill | Reduction | None
) -> tuple[Formula, tuple[Operand, ...]] | None:  # fmt: skip
    """The job's formula and operands with its modules; None where one of them is more than that."""
    if not isinstance(program, Program | None) or any(part.dtype is F64 for part in _parts(job)):
        return None
    growing = _Formula(identity() if program is None else Formula(program, job.numbers), job.operands)
    try:
        for module in job.modules:
            make = _KINDS.get(module.kind)
            parts = {name: _Part(job.factors[at], shape) for name, at, shape in module.factors}
            if module.input >= 0 or module.first or prod(module.shape) != job.count:
                return None  # it changes one of the inputs, or some rows
            if make is None or module.transposed or module.channels or parts.keys() & _LEFT_TO_MODULES:
                return None
            _change(growing, module, make(growing, module, parts), parts)
    except _Inexpressible:
        return None
    return growing.made(), tuple(growing.operands)


def _parts(job: Job) -> list[Operand]:
    return [*job.operands, *(factor.operand for factor in job.factors)]


_LEFT_TO_MODULES = {"bias_indices"}


class _Part(NamedTuple):
    """A factor and its shape."""

    factor: Factor
    shape: tuple[int, ...]

    def numbers(self) -> Companion:
        operand = self.factor.operand
        if operand.dtype not in (F32, F16, BF16) or operand.view is not None or operand.computed:
            raise _Inexpressible
        return Companion(operand.source, operand.dtype, operand.offset, self.factor.elements)

    def whole(self, module: Module) -> Operand:
        """A factor that has the shape of the weight."""
        if self.factor.elements != prod(module.shape):
            raise _Inexpressible
        return self.factor.operand

    def matrix(self) -> Matrix:
        return Matrix("stored", self.shape[0], self.factor.elements // max(1, self.shape[0]), (self.numbers(),))

    def turned(self) -> Matrix:
        return Matrix("transposed", prod(self.shape[1:]), self.shape[0], (self.numbers(),))


def _change(formula: _Formula, module: Module, delta: Ref, parts: dict[str, _Part]) -> None:
    """What a module makes of the result so far, from its Δ (of ``set``: from the weight that it gives)."""
    if module.kind == "set":
        formula.result = delta
    elif not parts.keys() & {"dora_in", "dora_out"}:
        formula.add(module.strength * module.scale, delta)
    else:
        weight = formula.result
        formula.add(module.scale, delta)
        made = formula.step("mul", formula.result, _of_trained_length(formula, module, parts))
        change = formula.step("sub", made, weight)
        formula.result = formula.step("add", weight, formula.step("mul", formula.constant(module.strength), change))


def _of_trained_length(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    """By what DoRA multiplies rows or columns of the result."""
    rows, columns = module.shape[0], prod(module.shape[1:])
    if "dora_out" in parts:
        along, scale = CHANNEL, _computed("by_row", module, Matrix("stored", rows, 1, (parts["dora_out"].numbers(),)))
    else:
        if columns != module.shape[1]:  # the inputs of a kernel are no axis that stages know
            raise _Inexpressible
        along = FIRST
        scale = _computed("by_column", module, Matrix("stored", 1, columns, (parts["dora_in"].numbers(),)))
    return formula.step("div", formula.operand(scale), formula.length(formula.result, along))


def _with_kernel(core: _Part, right: _Part) -> Matrix:
    rank, inner = core.shape[:2]
    columns = prod(core.shape[2:]) * (right.factor.elements // max(1, right.shape[0]))
    return Matrix("with_kernel", rank, columns, (core.numbers(), right.numbers()), inner=inner)


def _computed(kind: str, module: Module, left: Matrix, right: Matrix | None = None) -> Operand:
    made = LowRank(kind, module.shape[0], prod(module.shape[1:]), left, right)
    return Operand(0, F32, 0, low_rank=made)


def _lora(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    right = _with_kernel(parts["mid"], parts["down"]) if "mid" in parts else parts["down"].matrix()
    delta = formula.operand(_computed("product", module, parts["up"].matrix(), right))
    if "bias" in parts:
        delta = formula.step("add", delta, formula.operand(parts["bias"].whole(module)))
    return delta


def _loha(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    pair = []
    for number in (1, 2):
        left, right = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        factors = (left.matrix(), right.matrix()) if core is None else (left.turned(), _with_kernel(core, right))
        pair.append(formula.operand(_computed("product", module, *factors)))
    return formula.step("mul", *pair)


def _kronecker_factor(parts: dict[str, _Part], name: str) -> Matrix:
    if name in parts:
        return parts[name].matrix()
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    core = parts.get("lokr_t2") if name == "lokr_w2" else None
    if core is None:
        rank = right.shape[0]
        columns = right.factor.elements // max(1, rank)
        return Matrix("product", left.shape[0], columns, (left.numbers(), right.numbers()), rank=rank)
    rank, inner = core.shape[:2]
    columns = _with_kernel(core, right).columns
    stored = (left.numbers(), core.numbers(), right.numbers())
    return Matrix("turned_product", prod(left.shape[1:]), columns, stored, rank=rank, inner=inner)


def _lokr(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    outer, inner = (_kronecker_factor(parts, name) for name in ("lokr_w1", "lokr_w2"))
    return formula.operand(_computed("kronecker", module, outer, inner))


def _full(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    return formula.operand(parts["diff"].whole(module))


def _ia3(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    vector = parts["weight"]
    count = vector.factor.elements
    if module.on_input:
        left, kind = Matrix("stored", 1, count, (vector.numbers(),)), "by_column"
    else:
        left, kind = Matrix("stored", count, 1, (vector.numbers(),)), "by_row"
    each = formula.operand(_computed(kind, module, left))
    return formula.step("mul", formula.result, each)


def _set(formula: _Formula, module: Module, parts: dict[str, _Part]) -> Ref:
    return formula.operand(parts["set_weight"].whole(module))


_KINDS: dict[str, Callable[[_Formula, Module, dict[str, _Part]], Ref]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "ia3": _ia3,
    "set": _set,
}
