"""The Program: the shape of a formula, as the engine takes it; ``tracing.py`` makes it of a method's body.

An expression of only parameters is a constant, which is evaluated in float64 for each set of numbers. So a Program is
only the shape of a formula; its numbers belong to the jobs. The order of the steps is the order of evaluation.

A reduction (a sum over the tensor, say) cuts a program into stages: what it reduces must be known for the whole tensor
before anything that uses the result begins. An expression of reduced values is evaluated in float64 between the stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

# Names and codes of the operations; csrc/program.h has the same list.
_NAMES = "add sub mul div minimum maximum lt le gt ge eq ne copysign pow neg abs sqrt sign floor exp log where fma"
OPERATIONS = {name: code for code, name in enumerate(_NAMES.split())}
# What an expression of reduced values may use besides; csrc/program.h has the same list.
_FUNCTIONS = ("sin", "cos", "acos", "sum_values")
SCALAR_FUNCTIONS = {name: len(OPERATIONS) + code for code, name in enumerate(_FUNCTIONS)}
REDUCTIONS = {
    "sum": 0,
    "dot": 1,
    "minimum": 2,
    "maximum": 3,
    "count": 4,
    "kth": 5,
    "top": 6,
    "length": 7,
    "whole": 8,
    "mix": 9,
}
GENERATED = {"index": 0, "within": 1, "uniform": 2, "normal": 3}
INPUT, CONSTANT, TEMP, VALUE, MADE = 0, 1, 2, 3, 4
# What a reduction runs along: the whole tensor, its first axis, its last, all but the first, all but the second. An
# index runs along the first, the last or the second.
ALL, FIRST, LAST, CHANNEL, INPUTS = 0, 1, 2, 3, 4
SECOND = CHANNEL
EACH = 5  # one value for each element: what a function of whole tensors gives

Ref = tuple[int, int]
Step = tuple[str, tuple[Ref, ...], int]
Reduced = tuple[str, int, tuple[Ref, ...]]
"""A reduction of a stage: its name, what it runs along, the expressions that it reduces (of a selection also k). Of
``whole`` the second is the number of the program's function, and numbers follow the expressions; of ``mix`` it is the
number of the job's mixing."""

Made = tuple[str, int, tuple[Ref, ...]]
"""An operand that no file holds (``csrc/generated.h``): its name, the axis of an index, constants and values."""


class Stage(NamedTuple):
    """What must be known of whole tensors before the next stage begins.

    ``steps`` are elementwise, as a Program's. Each of ``reductions`` gives a value, and after them each of ``scalars``
    (operation, arguments: constants and values), evaluated in float64. Values are numbered through all stages; ``top``
    gives two.
    """

    steps: tuple[Step, ...]
    reductions: tuple[Reduced, ...]
    scalars: tuple[tuple[str, tuple[Ref, ...]], ...]


class Program(NamedTuple):
    """The shape of a formula. ``constants`` is how many numbers a job brings.

    ``steps`` are (operation, arguments, temp): an argument refers to an input, a constant, an earlier temp or a value
    of the stages, as (kind, index). They are the last stage, the one that writes. ``generated`` is how many inputs, the
    last ones, the host generates for a device (``without_stages``). ``functions`` are those of whole tensors, each with
    the number of arrays that it takes.
    """

    inputs: int
    constants: int
    steps: tuple[Step, ...]
    result: Ref
    stages: tuple[Stage, ...] = ()
    made: tuple[Made, ...] = ()
    generated: int = 0
    functions: tuple[tuple[int, Callable[..., Any]], ...] = ()

    @property
    def whole_arrays(self) -> int:
        """How many whole tensors are in memory, at most: the arguments and results of functions, and what is mixed."""
        mixed = sum(op == "mix" for stage in self.stages for op, *_ in stage.reductions)
        return mixed + sum(arrays + 1 for arrays, _ in self.functions)

    def working(self, shape: tuple[int, ...]) -> int:
        """The bytes that functions of whole tensors work in, one after the other, for a tensor of that shape."""
        if not self.functions:
            return 0
        from ..definitions.memory import working

        return max(working(function, shape) for _, function in self.functions)

    @property
    def in_stages(self) -> bool:
        """Whether it is evaluated a tensor at a time."""
        return bool(self.stages or self.made)

    @property
    def values(self) -> int:
        """How many values the stages find."""
        return sum(len(_values_made(stage)) for stage in self.stages)

    def vectors(self) -> frozenset[int]:
        """The numbers of the values that differ by row or column."""
        found: set[int] = set()
        number = 0
        for stage in self.stages:
            for op, along, _ in stage.reductions:
                found |= {number} if op in ("whole", "mix") or (along != ALL and op != "length") else set()
                number += 2 if op == "top" else 1
            for _, args in stage.scalars:
                found |= {number} if any(kind == VALUE and index in found for kind, index in args) else set()
                number += 1
        return frozenset(found)

    def without_stages(self) -> Program:
        """The last stage by itself: what it takes from the others are further constants and inputs."""
        further = self.further()

        def known(ref: Ref) -> Ref:
            if ref in further:
                return (INPUT, self.inputs + further.index(ref))
            return (CONSTANT, self.constants + ref[1]) if ref[0] == VALUE else ref

        steps = tuple((op, tuple(map(known, args)), to) for op, args, to in self.steps)
        return Program(
            self.inputs + len(further), self.constants + self.values, steps, known(self.result),
            generated=len(further),
        )  # fmt: skip

    def further(self) -> tuple[Ref, ...]:
        """What the last stage takes that differs from element to element, and no file holds."""
        vectors = self.vectors() if self.stages else frozenset()
        used = [ref for _, args, _ in self.steps for ref in args] + [self.result]
        return tuple(dict.fromkeys(ref for ref in used if ref[0] == MADE or (ref[0] == VALUE and ref[1] in vectors)))


def _values_made(stage: Stage) -> list[str]:
    """The operations of a stage's values, in their order."""
    return [name for op, *_ in stage.reductions for name in ([op, op] if op == "top" else [op])] + [
        op for op, _ in stage.scalars
    ]


class Formula(NamedTuple):
    """A program and the numbers of one job: float64, rounded once where they meet a float32 tensor."""

    program: Program
    numbers: tuple[float, ...]


def scaled(factor: float) -> Formula:
    """A formula that gives its only input times a number."""
    return Formula(Program(1, 1, (("mul", ((INPUT, 0), (CONSTANT, 0)), 0),), (TEMP, 0)), (factor,))


@functools.cache
def identity() -> Formula:
    """A formula that gives its only input: what a cast evaluates."""
    return Formula(Program(1, 0, (), (INPUT, 0)), ())
