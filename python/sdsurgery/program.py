"""Traces a method's body into a program: the form in which the engine takes a formula.

Tracing calls the body with symbols in the place of tensors and of parameters. What meets a tensor becomes a step of the
program; an expression of only parameters becomes a constant, which is evaluated in float64 for each set of numbers. So
a Program is only the shape of a formula, and is traced once; its numbers belong to the jobs. The order of the steps is
the order of evaluation.

A reduction (a sum over the tensor, say) cuts the body into stages: what it reduces must be known for the whole tensor
before anything that uses the result begins. An expression of reduced values is evaluated in float64 between the stages.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .methods.registry import Method

# Names and codes of the operations; csrc/program.h has the same list.
_NAMES = "add sub mul div minimum maximum lt le gt ge eq ne copysign pow neg abs sqrt sign floor exp log where fma"
OPERATIONS = {name: code for code, name in enumerate(_NAMES.split())}
# What an expression of reduced values may use besides; csrc/program.h has the same list.
_FUNCTIONS = ("sin", "cos", "acos")
SCALAR_FUNCTIONS = {name: len(OPERATIONS) + code for code, name in enumerate(_FUNCTIONS)}
REDUCTIONS = {"sum": 0, "dot": 1, "minimum": 2, "maximum": 3, "count": 4}
INPUT, CONSTANT, TEMP, VALUE = 0, 1, 2, 3
ALL, FIRST, LAST = 0, 1, 2  # what a reduction runs along: the whole tensor, its first axis, its last

Ref = tuple[int, int]
Step = tuple[str, tuple[Ref, ...], int]
Reduced = tuple[str, int, tuple[Ref, ...]]
"""A reduction of a stage: its name, what it runs along, the expressions that it reduces."""

MAY_USE = (
    "a method's body may use + - * /, comparisons, abs, and the functions of sdsurgery.functions: minimum, maximum, "
    "clip, where, sqrt, sign, copysign, floor, exp, log, pow and fma of tensors; sum, dot, norm, mean, minimum and "
    "maximum over a tensor; sin, cos and acos of what these give (docs/methods.md has the list)"
)


@dataclass(frozen=True)
class Stage:
    """What must be known of whole tensors before the next stage begins.

    ``steps`` are elementwise, as a Program's. Each of ``reductions`` gives a value, and after them each of ``scalars``
    (operation, arguments: constants and values), evaluated in float64. Values are numbered through all stages.
    """

    steps: tuple[Step, ...]
    reductions: tuple[Reduced, ...]
    scalars: tuple[tuple[str, tuple[Ref, ...]], ...]


@dataclass(frozen=True)
class Program:
    """The shape of a formula. ``constants`` is how many numbers a job brings.

    ``steps`` are (operation, arguments, temp): an argument refers to an input, a constant, an earlier temp or a value
    of the stages, as (kind, index). They are the last stage, the one that writes.
    """

    inputs: int
    constants: int
    steps: tuple[Step, ...]
    result: Ref
    stages: tuple[Stage, ...] = ()

    @property
    def values(self) -> int:
        """How many values the stages find."""
        return sum(len(stage.reductions) + len(stage.scalars) for stage in self.stages)

    def vectors(self) -> frozenset[int]:
        """The numbers of the values that differ by row or column."""
        found: set[int] = set()
        number = 0
        for stage in self.stages:
            for _, along, _ in stage.reductions:
                found |= {number} if along != ALL else set()
                number += 1
            for _, args in stage.scalars:
                found |= {number} if any(kind == VALUE and index in found for kind, index in args) else set()
                number += 1
        return frozenset(found)

    def without_stages(self) -> Program:
        """The last stage by itself: what it takes from the others are further constants."""
        steps = tuple((op, tuple(self._as_constant(ref) for ref in args), to) for op, args, to in self.steps)
        return Program(self.inputs, self.constants + self.values, steps, self._as_constant(self.result))

    def _as_constant(self, ref: Ref) -> Ref:
        return (CONSTANT, self.constants + ref[1]) if ref[0] == VALUE else ref


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


class Value:
    """Stands for what a reduction gives, or an expression of such values, while a body is traced.

    ``along`` is ALL for one number, FIRST for one of each column, LAST for one of each row; ``op`` is a scalar
    operation of ``args`` (values and constants), or a reduction of Symbols.
    """

    __slots__ = ("along", "args", "op", "tracer")

    def __init__(self, tracer: Tracer, op: str, along: int, args: tuple[Any, ...]) -> None:
        self.tracer, self.op, self.along, self.args = tracer, op, along, args

    def __bool__(self) -> bool:
        raise TypeError(f"a method's body cannot branch on what it reduces (use where); {MAY_USE}")

    def __float__(self) -> float:
        raise TypeError(f"a method's body cannot use what it reduces as a Python number; {MAY_USE}")

    __int__ = __index__ = __float__
    __hash__ = object.__hash__


def _value_operator(op: str, reflected: bool = False) -> Callable[..., Any]:
    def apply(self: Value, *others: Any) -> Any:
        if any(isinstance(other, Symbol) for other in others):
            return NotImplemented  # the Symbol takes it from the other side
        return self.tracer.scalar(op, *reversed((self, *others)) if reflected else (self, *others))

    return apply


for _name, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow"}.items():
    setattr(Value, f"__{_name}__", _value_operator(_op))
    setattr(Value, f"__r{_name}__", _value_operator(_op, reflected=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs"):
    setattr(Value, f"__{_name}__", _value_operator(_name))


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
    """Collects the constants of one body, and makes its symbols and values. What is written twice is made once."""

    def __init__(self) -> None:
        self.constants: list[Scalar | float] = []
        self._made: dict[Any, Any] = {}

    def apply(self, op: str, *args: Any) -> Symbol:
        """An elementwise operation. TypeError for what is neither a tensor, a value nor a number."""
        lifted = tuple(self.lift(arg) for arg in args)
        return self._once((op, *map(id, lifted)), lambda: Symbol(self, op, lifted))

    def lift(self, item: Any) -> Symbol:
        if isinstance(item, Symbol):
            return item
        if isinstance(item, Value):
            return self._once(("value", id(item)), lambda: Symbol(self, "value", (item,)))
        return Symbol(self, "constant", (self._constant(item),))

    def reduce(self, op: str, along: int, *args: Symbol) -> Value:
        """A reduction of elementwise expressions."""
        return self._once((op, along, *map(id, args)), lambda: Value(self, op, along, args))

    def scalar(self, op: str, *args: Any) -> Value:
        """An operation on values, in float64."""
        lifted = tuple(arg if isinstance(arg, Value) else self._constant(arg) for arg in args)
        along = {arg.along for arg in args if isinstance(arg, Value)} - {ALL}
        if len(along) > 1:
            raise TypeError("a method's body combines values of rows with values of columns")
        kind = along.pop() if along else ALL
        return self._once((op, *map(id, lifted)), lambda: Value(self, op, kind, lifted))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _constant(self, item: Any) -> int:
        if isinstance(item, bool) or not isinstance(item, int | float | Scalar):
            raise TypeError(f"a method's body combines tensors with numbers, not with {type(item).__name__}")
        self.constants.append(item if isinstance(item, Scalar) else float(item))
        return len(self.constants) - 1


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
    """The graph in stages: each value in the first stage in which all that it depends on is known."""
    found = _values_below((result,))
    if not found:
        steps, (last,) = _ordered((result,), {})
        return Program(inputs, constants, steps, last)
    level: dict[int, int] = {}
    for value in found:
        below = max((level[id(item)] for item in _values_of(value)), default=-1)
        level[id(value)] = below + 1 if _reduces(value) else below
    numbers: dict[int, int] = {}
    stages = []
    for number in range(max(level.values()) + 1):
        here = [value for value in found if level[id(value)] == number]
        reduced = [value for value in here if _reduces(value)]
        steps, refs = _ordered([arg for value in reduced for arg in value.args], numbers)
        given = iter(refs)
        reductions = tuple((value.op, value.along, tuple(next(given) for _ in value.args)) for value in reduced)
        scalars = []
        for value in reduced:
            numbers[id(value)] = len(numbers)
        for value in here:
            if not _reduces(value):
                args = tuple(
                    (VALUE, numbers[id(arg)]) if isinstance(arg, Value) else (CONSTANT, arg) for arg in value.args
                )
                scalars.append((value.op, args))
                numbers[id(value)] = len(numbers)
        stages.append(Stage(steps, reductions, tuple(scalars)))
    steps, (last,) = _ordered((result,), numbers)
    return Program(inputs, constants, steps, last, tuple(stages))


def _reduces(value: Value) -> bool:
    return value.op == "count" or any(isinstance(arg, Symbol) for arg in value.args)


def _values_of(item: Symbol | Value) -> list[Value]:
    """The values that an expression is made of directly, or by way of elementwise operations."""
    found, stack = [], list(reversed(item.args))
    seen: set[int] = set()
    while stack:
        part = stack.pop()
        if isinstance(part, Value):
            found.append(part)
        elif isinstance(part, Symbol) and id(part) not in seen:
            seen.add(id(part))
            stack.extend(reversed(part.args))
    return found


def _values_below(results: Sequence[Symbol]) -> list[Value]:
    """All values that the results depend on, each after those that it depends on itself."""
    order: dict[int, Value] = {}
    stack: list[tuple[Symbol | Value, bool]] = [(result, False) for result in reversed(results)]
    while stack:
        item, ready = stack.pop()
        if ready:
            if isinstance(item, Value):
                order.setdefault(id(item), item)
        elif id(item) not in order:
            stack.append((item, True))
            stack.extend((part, False) for part in reversed(_values_of(item)))
    return list(order.values())


def _ordered(results: Sequence[Symbol], values: Mapping[int, int]) -> tuple[tuple[Step, ...], tuple[Ref, ...]]:
    """Steps that make the results, and where these are: the graph depth first, temps numbered, and a temp used again
    once its value is used up. ``values`` are the numbers of the values that are known."""
    order: list[Symbol] = []
    uses: dict[int, int] = {}
    stack = [(result, False) for result in reversed(results)]
    while stack:
        symbol, ready = stack.pop()
        if ready:
            order.append(symbol)
            continue
        uses[id(symbol)] = uses.get(id(symbol), 0) + 1
        if uses[id(symbol)] > 1 or symbol.op in _LEAVES:
            continue
        stack.append((symbol, True))
        stack.extend((arg, False) for arg in reversed(symbol.args))

    refs: dict[int, Ref] = {}
    free: list[int] = []
    temps = 0
    steps = []

    def ref(symbol: Symbol) -> Ref:
        if symbol.op == "value":
            return (VALUE, values[id(symbol.args[0])])
        if symbol.op in _LEAVES:
            return (INPUT if symbol.op == "input" else CONSTANT, symbol.args[0])
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
            if uses[id(arg)] == 0 and arg.op not in _LEAVES:
                free.append(refs[id(arg)][1])
    return tuple(steps), tuple(ref(result) for result in results)


_LEAVES = ("input", "constant", "value")


@functools.cache
def identity() -> Formula:
    """A formula that gives its only input: what a cast evaluates."""
    return Formula(Program(1, 0, (), (INPUT, 0)), ())
