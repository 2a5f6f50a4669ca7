"""What stands for tensors, parameters and reduced values while a body is traced, and the Tracer that collects them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import ALL, EACH

MAY_USE = (
    "a method's body may use + - * /, comparisons, abs, and the functions of sdsurgery.functions: minimum, maximum, "
    "clip, where, sqrt, sign, copysign, floor, exp, log, pow and fma of tensors; sum, dot, norm, mean, variance, "
    "count, minimum, maximum, kth_largest and quantile over a tensor; sin, cos and acos of what these give "
    "(docs/methods.md has the list)"
)


class LooksAtNumbers(Exception):
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
            return bool(self.args[0] == TENSOR_NAME)
        return any(isinstance(arg, Scalar) and arg.names_tensor for arg in self.args)

    def _looked_at(self, *_: Any) -> Any:
        raise LooksAtNumbers

    __bool__ = __float__ = __int__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _looked_at
    __hash__ = object.__hash__


TENSOR_NAME = "tensor's name"  # among the parameters; no parameter can be called that
TENSOR = Scalar(None, TENSOR_NAME, None)


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
        lifted = tuple(arg if isinstance(arg, Value) else self._number(arg) for arg in args)
        along = {arg.along for arg in args if isinstance(arg, Value)} - {ALL}
        if len(along) > 1:
            raise TypeError("a method's body combines values of rows with values of columns or channels")
        kind = along.pop() if along else ALL
        return self._once((op, *map(id, lifted)), lambda: Value(self, op, kind, lifted))

    def sum_values(self, value: Value) -> Value:
        """The sum of the numbers of all rows, columns or channels."""
        if value.along == ALL:
            return value
        return self._once(("sum_values", id(value)), lambda: Value(self, "sum_values", ALL, (value,)))

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

    def _number(self, item: Any) -> int:
        """A constant beside values: a parameter that is used in every step of an iteration is one."""
        if isinstance(item, Scalar):
            number: int = self._once(("parameter", id(item)), lambda: self._new_constant(item))
            return number
        return self._constant(item)

    def _new_constant(self, item: Scalar | float) -> int:
        self.constants.append(item)
        return len(self.constants) - 1
