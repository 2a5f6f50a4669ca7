"""Traces a method's body into a program: the form in which the engine takes a formula.

Tracing calls the body with symbols in the place of tensors and of parameters. What meets a tensor becomes a step of the
program; an expression of parameters alone becomes a constant, which is evaluated in float64 for each set of numbers. So
a Program is only the shape of a formula, and is traced once; its numbers belong to the jobs. The order of the steps is
the order of evaluation.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .methods.registry import Method

# Names and codes of the operations; csrc/program.h has the same list.
_NAMES = "add sub mul div minimum maximum lt le gt ge eq ne neg abs sqrt sign where"
OPERATIONS = {name: code for code, name in enumerate(_NAMES.split())}
INPUT, CONSTANT, TEMP = 0, 1, 2

Ref = tuple[int, int]
Step = tuple[str, tuple[Ref, ...], int]

MAY_USE = (
    "a method's body may use + - * /, comparisons, abs, and minimum, maximum, clip, sqrt, sign and where of "
    "sdsurgery.functions"
)


@dataclass(frozen=True)
class Program:
    """The shape of a formula. ``constants`` is how many numbers a job brings.

    ``steps`` are (operation, arguments, temp): an argument refers to an input, a constant or an earlier temp as
    (kind, index).
    """

    inputs: int
    constants: int
    steps: tuple[Step, ...]
    result: Ref


class Formula(NamedTuple):
    """A program and the numbers of one job: float64, rounded once where they meet a float32 tensor."""

    program: Program
    numbers: tuple[float, ...]


class _LooksAtNumbers(Exception):
    """The body asks for a parameter's value: to branch on it, or for a function of the math module."""


class Scalar:
    """Stands for an expression of parameters while a body is traced."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., float] | None, *args: Any) -> None:
        self.function, self.args = function, args  # without a function: (parameter, index or None)

    def value(self, params: Mapping[str, Any]) -> Any:
        """The expression in float64, with these parameters."""
        if self.function is None:
            name, index = self.args
            return params[name] if index is None else params[name][index]
        return self.function(*(arg.value(params) if isinstance(arg, Scalar) else arg for arg in self.args))

    def _looked_at(self, *_: Any) -> Any:
        raise _LooksAtNumbers

    __bool__ = __float__ = __int__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _looked_at
    __hash__ = object.__hash__


def _scalar_operator(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def apply(self: Scalar, *others: Any) -> Any:
        if others and not isinstance(others[0], Scalar | int | float):
            return NotImplemented  # a Symbol takes it from the other side
        return Scalar(function, *reversed((self, *others)) if reflected else (self, *others))

    return apply


for _name, _function in {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv, "pow": operator.pow,
}.items():  # fmt: skip
    setattr(Scalar, f"__{_name}__", _scalar_operator(_function))
    setattr(Scalar, f"__r{_name}__", _scalar_operator(_function, reflected=True))
setattr(Scalar, "__neg__", _scalar_operator(operator.neg))  # noqa: B010
setattr(Scalar, "__abs__", _scalar_operator(abs))  # noqa: B010


class Symbol:
    """Stands for a tensor while a body is traced."""

    __slots__ = ("args", "op", "tracer")

    def __init__(self, tracer: Tracer, op: str, args: tuple[Any, ...]) -> None:
        self.tracer, self.op, self.args = tracer, op, args

    def __bool__(self) -> bool:
        raise TypeError(f"a method's body cannot branch on a tensor's values (use where); {MAY_USE}")

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what NumPy and copy ask for
        raise TypeError(f"a method's body uses '.{name}' of a tensor; {MAY_USE}")


def _symbol_operator(op: str, reflected: bool = False) -> Callable[..., Symbol]:
    def apply(self: Symbol, *others: Any) -> Symbol:
        return self.tracer.apply(op, *reversed((self, *others)) if reflected else (self, *others))

    return apply


for _name, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div"}.items():
    setattr(Symbol, f"__{_name}__", _symbol_operator(_op))
    setattr(Symbol, f"__r{_name}__", _symbol_operator(_op, reflected=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs"):
    setattr(Symbol, f"__{_name}__", _symbol_operator(_name))


class Tracer:
    """Collects the constants of one body, and makes its symbols."""

    def __init__(self) -> None:
        self.constants: list[Scalar | float] = []

    def apply(self, op: str, *args: Any) -> Symbol:
        return Symbol(self, op, tuple(self.lift(arg) for arg in args))

    def lift(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | Scalar):
            raise TypeError(f"a method's body combines tensors with numbers, not with {type(value).__name__}")
        self.constants.append(value if isinstance(value, Scalar) else float(value))
        return Symbol(self, "constant", (len(self.constants) - 1,))


class Body(NamedTuple):
    """A method traced for a number of inputs and for which of its parameters are given.

    ``program`` is None for a body that looks at a parameter's value: such a one is traced anew for each set of numbers.
    """

    method: Method
    inputs: int
    program: Program | None
    constants: tuple[Scalar | float, ...]

    def formula(self, params: Mapping[str, Any]) -> Formula:
        """The program with its numbers, for bound parameters. UsageError when an expression of them has no value."""
        program, constants = self.program, self.constants
        try:
            if program is None:
                program, constants = _traced(self.method, self.inputs, params)
            numbers = [_real(c.value(params)) if isinstance(c, Scalar) else c for c in constants]
        except (ArithmeticError, ValueError) as error:  # a division by zero, say
            from .errors import UsageError

            given = ", ".join(f"{name}={value}" for name, value in params.items())
            raise UsageError(
                f"{self.method.name} has no value for {given}: {error.args[-1]}", code="bad_value"
            ) from None
        return Formula(program, tuple(numbers))


def _real(value: Any) -> float:
    if isinstance(value, complex):  # what Python gives for a root of a negative number
        raise ValueError(f"{value} is not a real number")
    return float(value)


def body_of(method: Method, count: int, params: Mapping[str, Any]) -> Body:
    """``method`` traced for ``count`` inputs. Of the bound ``params`` only their structure counts: which are None, and
    how long the lists are. TypeError with one line for a body that cannot be traced."""
    symbols = {
        name: value if value is None or isinstance(value, str | bool)
        else tuple(Scalar(None, name, index) for index in range(len(value))) if isinstance(value, tuple)
        else Scalar(None, name, None)
        for name, value in params.items()
    }  # fmt: skip
    try:
        return Body(method, count, *_traced(method, count, symbols))
    except _LooksAtNumbers:
        return Body(method, count, None, ())


def trace(method: Method, count: int, params: Mapping[str, Any]) -> Formula:
    """The formula of ``method`` for ``count`` inputs and bound parameters."""
    return body_of(method, count, params).formula(params)


def _traced(method: Method, count: int, params: Mapping[str, Any]) -> tuple[Program, tuple[Scalar | float, ...]]:
    tracer = Tracer()
    result = method.body(*(Symbol(tracer, "input", (index,)) for index in range(count)), **params)
    if not isinstance(result, Symbol):
        found = type(result).__name__
        raise TypeError(f"the body of {method.name} must return a combination of its inputs, not {found}; {MAY_USE}")
    return linearised(result, count, len(tracer.constants)), tuple(tracer.constants)


def linearised(result: Symbol, inputs: int, constants: int) -> Program:
    """Order the graph depth first, number the temps, and use a temp again once its value is used up."""
    order: list[Symbol] = []
    uses: dict[int, int] = {}
    stack = [(result, False)]
    while stack:
        symbol, ready = stack.pop()
        if ready:
            order.append(symbol)
            continue
        uses[id(symbol)] = uses.get(id(symbol), 0) + 1
        if uses[id(symbol)] > 1 or symbol.op in ("input", "constant"):
            continue
        stack.append((symbol, True))
        stack.extend((arg, False) for arg in reversed(symbol.args))

    refs: dict[int, Ref] = {}
    free: list[int] = []
    temps = 0
    steps = []

    def ref(symbol: Symbol) -> Ref:
        if symbol.op == "input":
            return (INPUT, symbol.args[0])
        if symbol.op == "constant":
            return (CONSTANT, symbol.args[0])
        return refs[id(symbol)]

    for symbol in order:
        args = tuple(ref(arg) for arg in symbol.args)
        if free:
            to = free.pop()
        else:
            to, temps = temps, temps + 1
        refs[id(symbol)] = (TEMP, to)
        steps.append((symbol.op, args, to))
        for arg in symbol.args:
            uses[id(arg)] -= 1
            if uses[id(arg)] == 0 and arg.op not in ("input", "constant"):
                free.append(refs[id(arg)][1])
    return Program(inputs, constants, tuple(steps), ref(result))


@functools.cache
def identity() -> Formula:
    """A formula that gives its only input: what a cast evaluates."""
    return Formula(Program(1, 0, (), (INPUT, 0)), ())
