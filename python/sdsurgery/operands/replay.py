"""A traced formula as symbols again, so that more can be made of its operands and of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..program import CONSTANT, INPUT, MADE, TEMP, VALUE, Formula, Reduced, Ref, Step
from ..program.symbols import Scalar, Symbol, Tracer, Value


def replayed(formula: Formula, inputs: Sequence[Symbol], tracer: Tracer) -> Symbol:
    """The result of the formula on these inputs, in another body that is being traced."""
    return _Replay(formula, inputs, tracer).result()


class _Replay:
    def __init__(self, formula: Formula, inputs: Sequence[Symbol], tracer: Tracer) -> None:
        self.program, self.numbers = formula
        self.inputs, self.tracer = inputs, tracer
        self._constants: dict[int, Symbol] = {}
        self._values: list[Value] = []

    def result(self) -> Symbol:
        for stage in self.program.stages:
            temps = self._steps(stage.steps)
            for reduced in stage.reductions:
                self._values += self._reduced(reduced, temps)
            for op, args in stage.scalars:
                self._values.append(self.tracer.scalar(op, *map(self._number, args)))
        return self._symbol(self.program.result, self._steps(self.program.steps))

    def _steps(self, steps: Sequence[Step]) -> Mapping[int, Symbol]:
        temps: dict[int, Symbol] = {}
        for op, args, to in steps:
            temps[to] = self.tracer.apply(op, *(self._symbol(arg, temps) for arg in args))
        return temps

    def _symbol(self, ref: Ref, temps: Mapping[int, Symbol]) -> Symbol:
        kind, index = ref
        if kind == INPUT:
            return self.inputs[index]
        if kind == TEMP:
            return temps[index]
        if kind == VALUE:
            return self.tracer.lift(self._values[index])
        if kind == MADE:
            op, along, args = self.program.made[index]
            return self.tracer.make(op, along, *map(self._number, args))
        if index not in self._constants:
            self._constants[index] = self.tracer.lift(self._number(ref))
        return self._constants[index]

    def _number(self, ref: Ref) -> Any:
        """A value, or a constant of its own."""
        kind, index = ref
        if kind == VALUE:
            return self._values[index]
        assert kind == CONSTANT
        number = self.numbers[index]
        return Scalar(lambda: number)

    def _reduced(self, reduced: Reduced, temps: Mapping[int, Symbol]) -> list[Value]:
        op, along, refs = reduced
        if op == "whole":
            arrays, function = self.program.functions[along]
            symbols = [self._symbol(ref, temps) for ref in refs[:arrays]]
            made = self.tracer.whole(function, symbols, [self._number(ref) for ref in refs[arrays:]])
            return [made.args[0]]
        if op in ("kth", "top"):
            found = self.tracer.select(op, self._symbol(refs[0], temps), self._number(refs[1]))
            return [found, self.tracer.last_of(found)] if op == "top" else [found]
        return [self.tracer.reduce(op, along, *(self._symbol(ref, temps) for ref in refs))]
