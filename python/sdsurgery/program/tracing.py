"""Traces a method's body into a program: the form in which the engine takes a formula.

Tracing calls the body with symbols in the place of tensors and of parameters. What meets a tensor becomes a step of the
program; an expression of only parameters becomes a constant; a reduction cuts the body into stages. A body is traced
once for any numbers, unless it looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SdsError, UsageError, printable
from . import ALL, CONSTANT, FIRST, INPUT, MADE, TEMP, VALUE, Formula, Made, Program, Ref, Stage, Step
from .symbols import MAY_USE, TENSOR_NAME, LooksAtNumbers, Scalar, Symbol, Tracer, Value

if TYPE_CHECKING:
    from ..methods.registry import Method


class UntraceableBody(UsageError, TypeError):
    """A method's body that cannot be traced: one line that says what was found, and what a body may use."""

    code = "bad_value"


def _untraceable(name: str, body: Callable[..., Any], error: Exception) -> UntraceableBody:
    """The error of a body that raises ``error`` when it is called with symbols."""
    import re
    import traceback

    file = getattr(getattr(body, "__code__", None), "co_filename", None)
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == file]
    at = f", line {lines[-1]} of {printable(file)}" if lines else ""
    kind = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
    text = printable(error, 1000)
    if "Symbol" in text:  # Python's or NumPy's own words
        text = re.sub(r"'Symbol' object|'?\bSymbol\b'?", "a tensor", text) + f"; {MAY_USE}"
    return UntraceableBody(f"{name}{at}: {kind}{text}")


class Body(NamedTuple):
    """A method traced for a number of inputs and for which of its parameters are given.

    ``whole`` are the values of the parameters that are the same for all tensors, where the body looks at them.
    ``program`` is None for a body that looks at others: such a one is traced anew for each set of numbers.
    """

    method: Method
    inputs: int
    program: Program | None
    constants: tuple[Scalar | float, ...]
    whole: Mapping[str, Any]

    def draws(self, params: Mapping[str, Any]) -> bool:
        """Whether it draws random numbers: then its numbers depend on the tensor's name."""
        constants = self.constants if self.program is not None else _traced(self.method, self.inputs, params)[1]
        return any(isinstance(c, Scalar) and c.names_tensor for c in constants)

    def formula(self, params: Mapping[str, Any], tensor: str = "") -> Formula:
        """The program with its numbers, for bound parameters and a tensor's name. UsageError when an expression of them
        has no value."""
        program, constants = self.program, self.constants
        try:
            if program is None or any(params[name] != value for name, value in self.whole.items()):
                program, constants = _traced(self.method, self.inputs, params)
            given = {**params, TENSOR_NAME: tensor}
            numbers = [_real(c.value(given)) if isinstance(c, Scalar) else c for c in constants]
        except (ArithmeticError, ValueError) as error:  # a division by zero, say
            numbers_given = ", ".join(
                f"{name} {' '.join(f'{each:g}' for each in (value if isinstance(value, tuple) else (value,)))}"
                for name, value in params.items()
                if value is not None and not isinstance(value, bool)
            )
            text = f"{self.method.name} cannot be computed with {numbers_given}: {error.args[-1]}"
            raise UsageError(text, code="bad_value") from None
        except SdsError:
            raise
        except Exception as error:
            raise _untraceable(self.method.name, self.method.body, error) from error
        return Formula(program, tuple(numbers))


def _real(value: Any) -> float:
    if isinstance(value, complex):  # what Python gives for a root of a negative number
        raise ValueError(f"{value} is not a real number")
    return float(value)


def body_of(method: Method, count: int, params: Mapping[str, Any]) -> Body:
    """``method`` traced for ``count`` inputs. Of the bound ``params`` only their structure counts (which are None, how
    long the lists are), unless the body looks at one that is the same for all tensors, a number of steps, say.
    UntraceableBody for a body that cannot be traced."""
    symbols = {
        name: value if value is None or isinstance(value, str | bool)
        else tuple(Scalar(None, name, index) for index in range(len(value))) if isinstance(value, tuple)
        else Scalar(None, name, None)
        for name, value in params.items()
    }  # fmt: skip
    whole = {name: params[name] for name, symbol in symbols.items()
             if isinstance(symbol, Scalar) and name not in method.ratios}  # fmt: skip
    known: dict[str, Any]
    for known in ({}, whole):
        try:
            return Body(method, count, *_traced(method, count, {**symbols, **known}), known)
        except LooksAtNumbers:
            continue
        except SdsError:
            raise
        except Exception as error:
            if known:
                break  # perhaps for these numbers: ``Body.formula`` says what is wrong
            raise _untraceable(method.name, method.body, error) from error
    return Body(method, count, None, (), {})


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
        raise TypeError(f"a method's body must return a combination of its inputs, not {found}; {MAY_USE}")
    return linearised(result, count, tracer), tuple(tracer.constants)


def reduced(body: Callable[..., Any], inputs: int) -> tuple[Formula, int]:
    """A body that gives a value: a formula whose elements are the values in their order, and what the value runs along.
    UntraceableBody for one that is neither one number nor one of each column."""
    tracer = Tracer()
    try:
        value = body(*(Symbol(tracer, "input", (index,)) for index in range(inputs)))
    except Exception as error:
        raise _untraceable("statistic", body, error) from error
    if not isinstance(value, Value) or value.along not in (ALL, FIRST):
        raise UntraceableBody("a statistic of whole models must be one number of each tensor, or one of each column")
    program = linearised(tracer.lift(value), inputs, tracer)
    return Formula(program, tuple(float(constant) for constant in tracer.constants)), value.along


def linearised(result: Symbol, inputs: int, tracer: Tracer) -> Program:
    """The graph in stages: each value in the first stage in which all that it depends on is known."""
    known: dict[int, tuple[Value, ...]] = {}
    found = _values_below((result,), known)
    constants = len(tracer.constants)
    if not found:
        steps, (last,) = _ordered((result,), {})
        return Program(inputs, constants, steps, last, (), _made(tracer, {}), functions=tuple(tracer.functions))
    level: dict[int, int] = {}
    for value in found:
        below = max((level[id(item)] for item in _values_of(value, known)), default=-1)
        level[id(value)] = below + 1 if _reduces(value) else below
    at_level: list[list[Value]] = [[] for _ in range(max(level.values()) + 1)]
    for value in found:
        at_level[level[id(value)]].append(value)
    numbers: dict[int, int] = {}
    next_number = 0
    stages = []
    for here in at_level:
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


def _values_of(item: Symbol | Value, known: dict[int, tuple[Value, ...]]) -> tuple[Value, ...]:
    """The values that an expression is made of directly, or by way of elementwise operations, each once; ``known`` are
    those of symbols that were asked for before."""
    stack: list[Symbol | Value] = [item]
    while stack:
        part = stack[-1]
        if id(part) in known:
            stack.pop()
            continue
        waiting = [arg for arg in part.args if isinstance(arg, Symbol) and id(arg) not in known]
        if waiting:
            stack.extend(waiting)
            continue
        below = [known[id(arg)] if isinstance(arg, Symbol) else (arg,) for arg in part.args
                 if isinstance(arg, Symbol | Value)]  # fmt: skip
        some = [values for values in below if values]
        known[id(part)] = some[0] if len(some) == 1 else tuple({id(v): v for values in some for v in values}.values())
        stack.pop()
    return known[id(item)]


def _values_below(results: Sequence[Symbol], known: dict[int, tuple[Value, ...]]) -> list[Value]:
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
            stack.extend((part, False) for part in reversed(_values_of(item, known)))
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
