"""Methods written as text: ``A + k*where(abs(B - C) > quantile(abs(B - C), q), B - C, 0)``.

A parser of our own, which never evaluates Python. ``A``, ``B``, … are the inputs; the functions are those that a
method's body may use (docs/methods.md); every other name is a number of the formula, which a merge sets and block
weights and rules may change. ``^`` is a power. The method is called ``formula:`` and the text, so that recipes hold it.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ..errors import UsageError, printable
from .parameters import EXACT, Param
from .registry import Method, named_by

PREFIX = "formula:"
_LONGEST, _DEEPEST = 10_000, 100  # characters; brackets and signs within each other
_SHOWN = 60  # characters of a long formula on each side of a mistake
_SPELLED = {
    "−": "-", "–": "-", "·": "*", "×": "*", "⋅": "*", "∗": "*", "÷": "/", "≤": "<=", "≥": ">=", "≠": "!=",
}  # fmt: skip
_FRACTIONS = {"½": "0.5", "¼": "0.25", "¾": "0.75"}
_POWERS = {"²": "2", "³": "3"}
_KEYWORDS = {
    "method", "inputs", "parameters", "variant", "out", "add_missing", "use_ema", "blocks", "rules", "map", "loras",
    "vae",
}  # fmt: skip
"""Of ``merge``, beside the settings."""
_TOKEN = (
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[½¼¾])|(?P<name>[^\W\d½¼¾²³][^\W½¼¾²³]*)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<sign>\*\*|<=|>=|==|!=|[-+*/^<>(),=²³−–·×⋅∗÷≤≥≠])|(?P<space>\s+)|(?P<other>.)"
)
_ANY_NUMBER = 4  # inspect.CO_VARARGS
_INPUT = r"[A-Z]|A\d+"
_LEVELS = (("<", "<=", ">", ">=", "==", "!="), ("+", "-"), ("*", "/"))  # from the loosest
_NOT_HERE = {
    "of_numbers",
    "single",
    "rounded",
    "flag",
    "multiply_add",
    "whole",
    "unchanged",
}  # of no use without Python around them


class Node(NamedTuple):
    """A part of a formula: ``word`` is a number, a name, an operator or a function, at character ``at``; ``parts`` are
    the numbers of the parts that it combines, which stand before it."""

    at: int
    kind: str
    word: str
    parts: tuple[int, ...] = ()
    names: tuple[str, ...] = ()  # of the parts, empty for those without


@dataclass(frozen=True)
class Written:
    """The body of a method: a formula, evaluated with the functions and operators of all bodies."""

    text: str
    parts: tuple[Node, ...]  # the last is the whole

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.text

    def __call__(self, *inputs: Any, **numbers: float) -> Any:
        names = {letter(number): each for number, each in enumerate(inputs)} | numbers
        values: list[Any] = []
        for node in self.parts:
            values.append(self._value(node, [values[part] for part in node.parts], names))
        if not _is_of_elements(values[-1]):
            raise refusal(self.text, 0, "the formula gives one number, not a tensor")
        return values[-1]

    def _value(self, node: Node, parts: list[Any], names: dict[str, Any]) -> Any:
        if node.kind in ("number", "text"):
            return float(node.word) if node.kind == "number" else node.word
        if node.kind in ("input", "parameter"):
            return names[node.word]
        try:
            return _result(node, parts)
        except (ArithmeticError, ValueError):
            raise refusal(self.text, node.at, f"'{node.word}' has no value for these numbers") from None
        except (TypeError, KeyError) as error:
            raise refusal(self.text, node.at, f"{node.word}: {error.args[0] if error.args else error}") from None


def _result(node: Node, values: list[Any]) -> Any:
    if node.kind == "operator":
        return _OPERATORS[node.word](*values)
    given = dict(zip(node.names, values, strict=True))
    plain = [value for name, value in zip(node.names, values, strict=True) if not name]
    return _functions()[node.word](*plain, **{name: value for name, value in given.items() if name})


def _compared(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(x: Any, y: Any) -> Any:
        from ..functions import flag

        found = compare(x, y)
        array = next((item for item in (x, y) if hasattr(type(item), "dtype")), None)
        return found if array is None and not isinstance(found, bool) else flag(found, array)

    return apply


def _power(x: Any, y: Any) -> Any:
    from ..functions import pow

    return pow(x, y)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "+": lambda x, y=None: x if y is None else x + y, "-": lambda x, y=None: -x if y is None else x - y,
    "*": operator.mul, "/": operator.truediv, "^": _power, "**": _power,
    "<": _compared(operator.lt), "<=": _compared(operator.le), ">": _compared(operator.gt),
    ">=": _compared(operator.ge), "==": _compared(operator.eq), "!=": _compared(operator.ne),
}  # fmt: skip


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """What a formula may call."""
    from .. import functions

    found = {name: item for name, item in vars(functions).items() if name[0] != "_" and hasattr(item, "__code__")}
    own = {"abs": abs, "min": _least, "max": _most, "median": _middle}
    return {**own, **{name: item for name, item in found.items() if name not in _NOT_HERE}}


def _least(a: Any, *others: Any) -> Any:
    from ..functions import minimum

    return functools.reduce(minimum, others, a) if others else minimum(a)


def _most(a: Any, *others: Any) -> Any:
    from ..functions import maximum

    return functools.reduce(maximum, others, a) if others else maximum(a)


def _middle(a: Any, *others: Any) -> Any:
    from .order import median_of_models

    return median_of_models(a, *others)


def _is_of_elements(value: Any) -> bool:
    from ..program.symbols import Scalar, Value

    return not isinstance(value, Scalar | Value | int | float) and not hasattr(type(value), "beside")


def letter(number: int) -> str:
    """``A``, ``B``, … and ``A26`` after Z, as recipes name their inputs."""
    return chr(ord("A") + number) if number < 26 else f"A{number}"


def substituted(name: str, inputs: Sequence[str], numbers: Mapping[str, str]) -> str:
    """The formula of the method called ``name`` with texts in the place of its inputs and of some of its numbers."""
    text = name.removeprefix(PREFIX).strip()
    parts: list[str] = []
    for found in re.finditer(_TOKEN, text):
        word, rest = found[0], text[found.end() :].lstrip()
        free = found.lastgroup == "name" and not rest.startswith("(") and not re.match("=(?!=)", rest)
        if free and re.fullmatch(_INPUT, word):
            word = inputs[_number_of(word)]
        elif free:
            word = numbers.get(word, word)
        parts.append(word)
    return "".join(parts)


def refusal(text: str, at: int, why: str) -> UsageError:
    """The error of a formula, which points at a character."""
    before = text[max(0, at - _SHOWN) : at] if len(text) > 3 * _SHOWN else text[:at]
    after = text[at : at + _SHOWN] if len(text) > 3 * _SHOWN else text[at:]
    before = printable("…" * (len(before) < at) + before)
    if at >= len(text):
        return UsageError(f"formula: {why} at its end: {before}", code="bad_value")
    marked = f"{before}»{printable(after + '…' * (at + len(after) < len(text)))}"
    return UsageError(f"formula, character {at + 1}: {why}: {marked}", code="bad_value")


@named_by(PREFIX)
@functools.lru_cache(maxsize=64)
def method_of(name: str) -> Method:
    """The method called ``formula:`` and a text. UsageError that points at the character for what is no formula."""
    text = name.removeprefix(PREFIX).strip()
    parts = _Parser(text).whole()
    _require_free(text, parts)
    words = list(dict.fromkeys(node.word for node in parts if node.kind == "parameter"))
    used = [node.word for node in parts if node.kind == "input"]
    if not used:
        raise refusal(text, 0, "the formula has no input (A, B, …, in capitals)")
    count = max(_number_of(word) for word in used) + 1
    seeds = _seeds(text, parts)
    params = {word: Param(None, "a number of the formula", whole=word in seeds) for word in words}
    return Method(f"{PREFIX}{text}", tuple(map(letter, range(count))), params, Written(text, parts))


def _seeds(text: str, parts: Sequence[Node]) -> set[str]:
    """The formula's numbers that are seeds. UsageError for a seed in the text that float64 would round."""
    found = set()
    for node in parts:
        code = getattr(_functions().get(node.word), "__code__", None) if node.kind == "call" else None
        if code is None or "seed" not in code.co_varnames[: code.co_argcount]:
            continue
        place = node.names.index("seed") if "seed" in node.names else code.co_varnames.index("seed")
        seed = parts[node.parts[place]]
        if seed.kind == "number" and abs(float(seed.word)) >= EXACT:
            raise refusal(text, seed.at, f"a seed must be smaller than 2^53 ({EXACT})")
        if seed.kind == "parameter":
            found.add(seed.word)
    return found


def _require_free(text: str, parts: Sequence[Node]) -> None:
    """UsageError for a number that is called like another keyword of ``merge``, which could not be given beside it."""
    from ..settings import OPTIONS

    for node in parts:
        if node.kind == "parameter" and (node.word in OPTIONS or node.word in _KEYWORDS):
            raise refusal(text, node.at, f"a number cannot be called '{node.word}', which is an option of merge")


def _number_of(word: str) -> int:
    return ord(word) - ord("A") if len(word) == 1 else int(word[1:])


class _Parser:
    """From the text to its root: comparisons bind loosest, then sums, products, signs, powers."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise UsageError(f"formula: longer than {_LONGEST} characters", code="bad_value")
        self.tokens = [
            (found.lastgroup or "", _SPELLED.get(found[0], found[0]), found.start())
            for found in re.finditer(_TOKEN, text)
            if found.lastgroup != "space"
        ]
        self.next, self.depth = 0, 0
        self.made: list[Node] = []

    def whole(self) -> tuple[Node, ...]:
        self.level(0)
        if self.next < len(self.tokens):
            kind, word, _ = self.tokens[self.next]
            hint = (
                "; equal is =="
                if word == "="
                else "; write * to multiply"
                if kind in ("name", "number") or word == "("
                else ""
            )
            self.refuse(
                f"'{word}' has no meaning" if kind == "other" else f"an operator is expected before '{word}'{hint}"
            )
        return tuple(self.made)

    def make(self, at: int, kind: str, word: str, parts: tuple[int, ...] = (), names: tuple[str, ...] = ()) -> int:
        self.made.append(Node(at, kind, word, parts, names))
        return len(self.made) - 1

    def refuse(self, why: str, back: int = 0) -> NoReturn:
        at = self.next - back
        raise refusal(self.text, self.tokens[at][2] if at < len(self.tokens) else len(self.text), why)

    def sees(self, *words: str) -> bool:
        return (
            self.next < len(self.tokens) and self.tokens[self.next][0] == "sign" and self.tokens[self.next][1] in words
        )

    def take(self) -> tuple[str, str, int]:
        if self.next >= len(self.tokens):
            self.refuse("a value is missing")
        self.next += 1
        return self.tokens[self.next - 1]

    def expect(self, word: str, or_else: str = "") -> None:
        if not self.sees(word):
            at_end = self.next >= len(self.tokens)
            self.refuse(f"'{or_else if or_else and at_end else word}' is missing")
        self.next += 1

    def level(self, number: int) -> int:
        if number == len(_LEVELS):
            return self.signed()
        found = self.level(number + 1)
        while self.sees(*_LEVELS[number]):
            _, word, at = self.take()
            found = self.make(at, "operator", word, (found, self.level(number + 1)))
            if number == 0 and self.sees(*_LEVELS[0]):
                self.refuse("one comparison cannot follow another; write (A < B)*(B < C)")
        return found

    def signed(self) -> int:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.refuse(f"more than {_DEEPEST} brackets and signs within each other")
        if self.sees("-", "+"):
            _, word, at = self.take()
            found = self.make(at, "operator", word, (self.signed(),))
        else:
            found = self.single()
            if self.sees("^", "**"):
                _, word, at = self.take()
                found = self.make(at, "operator", word, (found, self.signed()))
            elif self.sees(*_POWERS):
                _, word, at = self.take()
                found = self.make(at, "operator", "^", (found, self.make(at, "number", _POWERS[word])))
        self.depth -= 1
        return found

    def single(self) -> int:
        kind, word, at = self.take()
        if kind == "number":
            word = _FRACTIONS.get(word, word)
            if float(word) == math.inf:
                self.refuse(f"{word} is too large a number", back=1)
            return self.make(at, "number", word)
        if kind == "name":
            if self.sees("("):
                return self.called(word, at)
            if word in _functions():
                self.refuse(f"'{word}' is a function; write {word}(…)", back=1)
            if re.fullmatch(_INPUT, word) and word != letter(_number_of(word)):
                self.refuse(f"the input '{word}' is written {letter(_number_of(word))}", back=1)
            return self.make(at, "input" if re.fullmatch(_INPUT, word) else "parameter", word)
        if word == "(":
            found = self.level(0)
            self.expect(")")
            return found
        self.refuse(f"a value is expected, not '{printable(word)}'", back=1)

    def called(self, word: str, at: int) -> int:
        if word not in _functions():
            from ..suggest import did_you_mean

            hint = did_you_mean(word, _functions()) or f"; known: {', '.join(sorted(_functions()))}"
            self.refuse(f"there is no function '{printable(word)}'{hint}", back=1)
        self.expect("(")
        parts: list[int] = []
        names: list[str] = []
        while not self.sees(")"):
            if parts:
                self.expect(",", or_else=")")
            names.append(self.keyword())
            if self.next < len(self.tokens) and self.tokens[self.next][0] == "text":
                _, text, place = self.take()
                parts.append(self.make(place, "text", text[1:-1]))
            else:
                parts.append(self.level(0))
        self.require_arguments(word, at, names)
        self.expect(")")
        return self.make(at, "call", word, tuple(parts), tuple(names))

    def keyword(self) -> str:
        """The name in ``axis=0``, empty without one."""
        here = self.tokens[self.next : self.next + 2]
        if len(here) == 2 and here[0][0] == "name" and here[1][1] == "=":
            self.next += 2
            return here[0][1]
        return ""

    def require_arguments(self, word: str, at: int, names: list[str]) -> None:
        code = getattr(_functions()[word], "__code__", None)
        known = ("x",) if code is None else code.co_varnames[: code.co_argcount]
        optional = 0 if code is None else len(_functions()[word].__defaults__ or ())
        if code is not None and code.co_flags & _ANY_NUMBER:
            if not names or any(names):
                raise refusal(self.text, at, f"{word} takes {', '.join(known)}, …; {len(names)} given")
            return
        given = [known[place] if not name and place < len(known) else name for place, name in enumerate(names)]
        wrong = [name for name in given if name not in known]
        missing = [name for name in known[: len(known) - optional] if name not in given]
        if wrong and wrong[0]:
            raise refusal(self.text, at, f"{word} has no argument '{wrong[0]}'; it takes {', '.join(known)}")
        if wrong or missing or len(set(given)) < len(given):
            raise refusal(self.text, at, f"{word} takes {', '.join(known)}; {len(names)} given")
