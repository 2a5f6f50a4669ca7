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

MAY_USE = (
    "a method's body may use + - * /, comparisons, abs, and the functions of sdsurgery.functions: minimum, maximum, "
    "clip, where, sqrt, sign, copysign, floor, exp, log, pow and fma of tensors; sum, dot, norm, mean, variance, "
    "count, minimum, maximum, kth_largest and quantile over a tensor; sin, cos and acos of what these give "
    "(docs/methods.md has the list)"
)


@dataclass(frozen=True)
class Stage:
    """What must be known of whole tensors before the next stage begins.

    ``steps`` are elementwise, as a Program's. Each of ``reductions`` gives a value, and after them each of ``scalars``
    (operation, arguments: constants and values), evaluated in float64. Values are numbered through all stages; ``top``
    gives two.
    """

    steps: tuple[Step, ...]
    reductions: tuple[Reduced, ...]
    scalars: tuple[tuple[str, tuple[Ref, ...]], ...]


@dataclass(frozen=True)
class Program:
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

    @property
    def names_tensor(self) -> bool:
        """Whether it depends on the tensor's name."""
        if self.function is None:
            return bool(self.args[0] == _TENSOR)
        return any(isinstance(arg, Scalar) and arg.names_tensor for arg in self.args)

    def _looked_at(self, *_: Any) -> Any:
        raise _LooksAtNumbers

    __bool__ = __float__ = __int__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _looked_at
    __hash__ = object.__hash__


_TENSOR = "tensor's name"  # among the parameters; no parameter can be called that
TENSOR = Scalar(None, _TENSOR, None)


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

    __slots__ = ("along", "args", "axis", "op", "tracer")

    def __init__(self, tracer: Tracer, op: str, along: int, args: tuple[Any, ...], axis: int = ALL) -> None:
        self.tracer, self.op, self.along, self.args, self.axis = tracer, op, along, args, axis

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
        self.made: list[tuple[str, int, tuple[Any, ...]]] = []
        self.functions: list[tuple[int, Callable[..., Any]]] = []
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
        kind = ALL if op == "length" else along
        return self._once((op, along, *map(id, args)), lambda: Value(self, op, kind, args, axis=along))

    def select(self, op: str, x: Symbol, k: Any) -> Value:
        """``kth`` or ``top``: the k-th largest element; ``last_of`` is the second value of ``top``."""
        number = self.number(k)
        return self._once((op, id(x), self._same(number)), lambda: Value(self, op, ALL, (x, number)))

    def _same(self, number: Any) -> Any:
        """What is equal for two equal numbers: of a constant its value, or the expression of parameters."""
        return number if isinstance(number, Value) else self.constants[number]

    def whole(self, function: Callable[..., Any], arrays: Sequence[Any], numbers: Sequence[Any]) -> Symbol:
        """A function of whole tensors, and numbers."""
        symbols, given = tuple(map(self.lift, arrays)), tuple(map(self.number, numbers))

        def new() -> Value:
            self.functions.append((len(symbols), function))
            return Value(self, "whole", EACH, (*symbols, *given), axis=len(self.functions) - 1)

        return self.lift(self._once(("whole", function, *map(id, symbols), *map(self._same, given)), new))

    def mix(self, item: Symbol, number: int) -> Symbol:
        """A whole tensor after the job's mixing of that number."""
        return self.lift(self._once(("mix", number), lambda: Value(self, "mix", EACH, (item,), axis=number)))

    def once(self, key: Any, item: Any) -> Any:
        """The first of several equal items."""
        return self._once(key, lambda: item)

    def last_of(self, top: Value) -> Value:
        return self._once(("last", id(top)), lambda: Value(self, "last", ALL, (top,)))

    def number(self, item: Any) -> Any:
        """A value that is one number, or a constant."""
        if isinstance(item, Symbol) or (isinstance(item, Value) and item.along != ALL):
            raise TypeError("a method's body gives several numbers where one is asked for")
        return item if isinstance(item, Value) else self._constant(item)

    def make(self, op: str, along: int, *args: Any) -> Symbol:
        """A generated operand of numbers."""
        given = tuple(self.number(arg) for arg in args)
        key = (op, along, *map(self._same, given))

        def new() -> Symbol:
            self.made.append((op, along, given))
            return Symbol(self, "made", (len(self.made) - 1, *(arg for arg in given if isinstance(arg, Value))))

        return self._once(key, new)

    def scalar(self, op: str, *args: Any) -> Value:
        """An operation on values, in float64."""
        lifted = tuple(arg if isinstance(arg, Value) else self._constant(arg) for arg in args)
        along = {arg.along for arg in args if isinstance(arg, Value)} - {ALL}
        if len(along) > 1:
            raise TypeError("a method's body combines values of rows with values of columns or channels")
        kind = along.pop() if along else ALL
        return self._once((op, *map(id, lifted)), lambda: Value(self, op, kind, lifted))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _constant(self, item: Any) -> int:
        if isinstance(item, bool) or not isinstance(item, int | float | Scalar):
            raise TypeError(f"a method's body combines tensors with numbers, not with {type(item).__name__}")
        if isinstance(item, Scalar):
            return self._new_constant(item)
        number: int = self._once(("number", repr(float(item))), lambda: self._new_constant(float(item)))
        return number

    def _new_constant(self, item: Scalar | float) -> int:
        self.constants.append(item)
        return len(self.constants) - 1


class Body(NamedTuple):
    """A method traced for a number of inputs and for which of its parameters are given.

    ``program`` is None for a body that looks at a parameter's value: such a one is traced anew for each set of numbers.
    """

    method: Method
    inputs: int
    program: Program | None
    constants: tuple[Scalar | float, ...]

    def draws(self, params: Mapping[str, Any]) -> bool:
        """Whether it draws random numbers: then its numbers depend on the tensor's name."""
        constants = self.constants if self.program is not None else _traced(self.method, self.inputs, params)[1]
        return any(isinstance(c, Scalar) and c.names_tensor for c in constants)

    def formula(self, params: Mapping[str, Any], tensor: str = "") -> Formula:
        """The program with its numbers, for bound parameters and a tensor's name. UsageError when an expression of them
        has no value."""
        program, constants = self.program, self.constants
        try:
            if program is None:
                program, constants = _traced(self.method, self.inputs, params)
            given = {**params, _TENSOR: tensor}
            numbers = [_real(c.value(given)) if isinstance(c, Scalar) else c for c in constants]
        except (ArithmeticError, ValueError) as error:  # a division by zero, say
            from .errors import UsageError

            text = ", ".join(f"{name}={value}" for name, value in params.items())
            raise UsageError(
                f"{self.method.name} has no value for {text}: {error.args[-1]}", code="bad_value"
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
    """The formula of ``method`` for ``count`` inputs and bound parameters; what it must know of whole models is left
    open, with some numbers in its place."""
    method = method.across.unknown(method) if method.across else method
    return body_of(method, count, params).formula(params)


def _traced(method: Method, count: int, params: Mapping[str, Any]) -> tuple[Program, tuple[Scalar | float, ...]]:
    tracer = Tracer()
    result = method.body(*(Symbol(tracer, "input", (index,)) for index in range(count)), **params)
    if not isinstance(result, Symbol):
        found = type(result).__name__
        raise TypeError(f"the body of {method.name} must return a combination of its inputs, not {found}; {MAY_USE}")
    return linearised(result, count, tracer), tuple(tracer.constants)


def reduced(body: Callable[..., Any], inputs: int) -> tuple[Formula, int]:
    """A body that gives a value: a formula whose elements are the values in their order, and what the value runs along.
    TypeError for one that is neither one number nor one of each column."""
    tracer = Tracer()
    value = body(*(Symbol(tracer, "input", (index,)) for index in range(inputs)))
    if not isinstance(value, Value) or value.along not in (ALL, FIRST):
        raise TypeError("a statistic of whole models is one number of each tensor, or one of each column")
    program = linearised(tracer.lift(value), inputs, tracer)
    return Formula(program, tuple(float(constant) for constant in tracer.constants)), value.along


def linearised(result: Symbol, inputs: int, tracer: Tracer) -> Program:
    """The graph in stages: each value in the first stage in which all that it depends on is known."""
    found = _values_below((result,))
    constants = len(tracer.constants)
    if not found:
        steps, (last,) = _ordered((result,), {})
        return Program(inputs, constants, steps, last, (), _made(tracer, {}), functions=tuple(tracer.functions))
    level: dict[int, int] = {}
    for value in found:
        below = max((level[id(item)] for item in _values_of(value)), default=-1)
        level[id(value)] = below + 1 if _reduces(value) else below
    numbers: dict[int, int] = {}
    next_number = 0
    stages = []
    for number in range(max(level.values()) + 1):
        here = [value for value in found if level[id(value)] == number]
        reduced = [value for value in here if _reduces(value)]
        steps, refs = _ordered([arg for value in reduced for arg in value.args if isinstance(arg, Symbol)], numbers)
        given = iter(refs)
        reductions = tuple(
            (
                value.op,
                value.axis,
                tuple(next(given) if isinstance(arg, Symbol) else _number_ref(arg, numbers) for arg in value.args),
            )
            for value in reduced
        )
        scalars = []
        for value in reduced:
            numbers[id(value)] = next_number
            next_number += 2 if value.op == "top" else 1
        for value in here:
            if value.op == "last":
                numbers[id(value)] = numbers[id(value.args[0])] + 1
            elif not _reduces(value):
                scalars.append((value.op, tuple(_number_ref(arg, numbers) for arg in value.args)))
                numbers[id(value)] = next_number
                next_number += 1
        stages.append(Stage(steps, reductions, tuple(scalars)))
    steps, (last,) = _ordered((result,), numbers)
    made = _made(tracer, numbers)
    return Program(inputs, constants, steps, last, tuple(stages), made, functions=tuple(tracer.functions))


def _made(tracer: Tracer, numbers: Mapping[int, int]) -> tuple[Made, ...]:
    unused: Made = ("index", FIRST, ())  # in the place of one that nothing uses
    return tuple(
        (op, along, tuple(_number_ref(arg, numbers) for arg in args))
        if all(id(arg) in numbers for arg in args if isinstance(arg, Value)) else unused
        for op, along, args in tracer.made
    )  # fmt: skip


def _number_ref(item: Any, numbers: Mapping[int, int]) -> Ref:
    return (VALUE, numbers[id(item)]) if isinstance(item, Value) else (CONSTANT, item)


def _reduces(value: Value) -> bool:
    return value.op in ("count", "length") or any(isinstance(arg, Symbol) for arg in value.args)


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
        if symbol.op == "made":
            return (MADE, symbol.args[0])
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


_LEAVES = ("input", "constant", "value", "made")


def scaled(factor: float) -> Formula:
    """A formula that gives its only input times a number."""
    return Formula(Program(1, 1, (("mul", ((INPUT, 0), (CONSTANT, 0)), 0),), (TEMP, 0)), (factor,))


@functools.cache
def identity() -> Formula:
    """A formula that gives its only input: what a cast evaluates."""
    return Formula(Program(1, 0, (), (INPUT, 0)), ())
