"""What a formula is that only adds and scales: how much of each input it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..program import CONSTANT, INPUT, TEMP, Formula

_Form = tuple[tuple[float, ...], float]  # the share of each input, and what is added


def shares(formula: Formula) -> tuple[float, ...] | None:
    """The share of each input in the formula's result; None for a formula that is not linear."""
    program = formula.program
    if program.in_stages or program.made:
        return None
    none = (0.0,) * program.inputs
    temps: dict[int, _Form] = {}
    for op, args, to in program.steps:
        forms = [
            temps[index] if kind == TEMP
            else (none, formula.numbers[index]) if kind == CONSTANT
            else (tuple(float(each == index) for each in range(program.inputs)), 0.0)
            for kind, index in args
        ]  # fmt: skip
        made = _RULES[op](*forms) if op in _RULES else None
        if made is None:
            return None
        temps[to] = made
    kind, index = program.result
    if kind == INPUT:
        return tuple(float(each == index) for each in range(program.inputs))
    found = temps.get(index) if kind == TEMP else None
    return found[0] if found is not None and found[1] == 0 else None


def _added(a: _Form, b: _Form, sign: float = 1.0) -> _Form:
    return tuple(x + sign * y for x, y in zip(a[0], b[0], strict=True)), a[1] + sign * b[1]


def _multiplied(a: _Form, b: _Form) -> _Form | None:
    if any(a[0]) and any(b[0]):
        return None
    many, one = (a, b) if any(a[0]) else (b, a)
    return tuple(one[1] * x for x in many[0]), one[1] * many[1]


def _divided(a: _Form, b: _Form) -> _Form | None:
    return None if any(b[0]) or b[1] == 0 else _multiplied(a, (b[0], 1 / b[1]))


_RULES: Mapping[str, Callable[..., _Form | None]] = {
    "add": _added,
    "sub": lambda a, b: _added(a, b, -1.0),
    "mul": _multiplied,
    "div": _divided,
    "neg": lambda a: _multiplied(((0.0,) * len(a[0]), -1.0), a),
}
