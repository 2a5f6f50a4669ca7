"""Traces a method's body into a small program: the form in which the native engine (and a compiler) takes a formula.

Tracing calls the body with symbols instead of tensors. Arithmetic on parameters alone happens in Python, in float64;
a number that meets a symbol becomes a constant of the program. The order of the steps is the order of evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping

from .methods import Method
from .records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Names and codes of the operations; csrc/program.h has the same list.
OPERATIONS = {"add": 0, "sub": 1, "mul": 2, "div": 3, "neg": 4, "abs": 5}
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
INPUT, CONSTANT, TEMP = 0, 1, 2
_LONGEST_TEXT = 2000  # characters; longer formulas have no hand-fused kernel anyway

Ref = tuple[int, int]


@dataclass(frozen=True)
class Formula:
    """A traced formula.

    ``steps`` are (operation, a, b, temp): ``a`` and ``b`` refer to an input, a constant or an earlier temp as
    (kind, index). ``text`` is the formula in infix form with the constants numbered, by which equal shapes are told.
    """

    inputs: int
    constants: tuple[float, ...] = field(compare=False)
    steps: tuple[tuple[str, Ref, Ref, int], ...]
    result: Ref
    text: str
    # The constants as they are compared: as numbers 0.0 and −0.0 are equal, but they give different results.
    exact: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exact", tuple(value.hex() for value in self.constants))


class Symbol:
    """Stands for a tensor while a body is traced."""

    __slots__ = ("args", "op", "tracer")

    def __init__(self, tracer: _Tracer, op: str, args: tuple[Any, ...]) -> None:
        self.tracer, self.op, self.args = tracer, op, args

    def __add__(self, other: Any) -> Symbol:
        return self.tracer.apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.tracer.apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.tracer.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.tracer.apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.tracer.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.tracer.apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.tracer.apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.tracer.apply("div", other, self)

    def __neg__(self) -> Symbol:
        return self.tracer.apply("neg", self)

    def __abs__(self) -> Symbol:
        return self.tracer.apply("abs", self)

    def __bool__(self) -> bool:
        raise TypeError("a method's body cannot branch on a tensor's values")


class _Tracer:
    def __init__(self) -> None:
        self.constants: list[float] = []

    def apply(self, op: str, *args: Any) -> Symbol:
        return Symbol(self, op, tuple(self.lift(arg) for arg in args))

    def lift(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"a method's body combines tensors with numbers, not with {type(value).__name__}")
        self.constants.append(float(value))
        return Symbol(self, "constant", (len(self.constants) - 1,))


def trace(method: Method, count: int, params: Mapping[str, Any]) -> Formula:
    """The program of ``method`` for ``count`` inputs and bound parameters."""
    tracer = _Tracer()
    symbols = [Symbol(tracer, "input", (index,)) for index in range(count)]
    result = method.body(*symbols, **params)
    if not isinstance(result, Symbol):
        raise TypeError(f"the body of {method.name} does not return a combination of its inputs")
    return _linearise(result, count, tracer.constants)


def _linearise(result: Symbol, count: int, constants: list[float]) -> Formula:
    """Order the graph depth first, number the temps and let a temp be used again once nobody needs its value."""
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
        args = [ref(arg) for arg in symbol.args]
        if free:
            to = free.pop()
        else:
            to, temps = temps, temps + 1
        refs[id(symbol)] = (TEMP, to)
        steps.append((symbol.op, args[0], args[-1], to))
        for arg in symbol.args:
            uses[id(arg)] -= 1
            if uses[id(arg)] == 0 and arg.op not in ("input", "constant"):
                free.append(refs[id(arg)][1])
    return Formula(count, tuple(constants), tuple(steps), ref(result), _infix(order, result))


def _infix(order: list[Symbol], result: Symbol) -> str:
    texts: dict[int, str] = {}

    def text(symbol: Symbol) -> str:
        if symbol.op == "input":
            return f"x{symbol.args[0]}"
        if symbol.op == "constant":
            return f"c{symbol.args[0]}"
        return texts[id(symbol)]

    for symbol in order:
        args = [text(arg) for arg in symbol.args]
        sign = _SIGNS.get(symbol.op)
        whole = f"({args[0]}{sign}{args[1]})" if sign else f"{symbol.op}({args[0]})"
        # A value that is used twice is written twice: without a limit, texts would double with every step.
        texts[id(symbol)] = whole if len(whole) <= _LONGEST_TEXT else f"(… {len(texts)} steps)"
    return text(result)
