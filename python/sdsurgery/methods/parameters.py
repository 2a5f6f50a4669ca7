"""The parameters of a method: what kinds there are, and how a given value becomes one that a body takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from ..errors import UsageError, number_of, printable

EXACT = 2**53
"""Numbers are float64, which holds every whole number below this, and of the larger ones only some."""


class Param(NamedTuple):
    """A number of a method, with its default; ``help`` is its line in ``--help`` and the docs. Without a default it
    must be given. ``within`` is its range, as in ``(0, 1]``; a number outside is refused. ``also``: other names that
    tools give it. ``whole``: it is a whole number that, unlike a ``Whole``, blocks and rules may change."""

    default: float | None
    help: str
    within: str = ""
    also: str = ""
    whole: bool = False

    def bound(self, method: str, name: str, value: Any, count: int) -> Any:
        """The value as a body takes it, for ``count`` inputs. UsageError for one that it can't be."""
        number = _number(method, name, value)
        require_fitting(method, name, number, self)
        return number


class Whole(NamedTuple):
    """A whole number: a seed, a rank, a number of steps. It is the same for all tensors."""

    default: int
    help: str
    within: str = ""
    also: str = ""

    def bound(self, method: str, name: str, value: Any, count: int) -> Any:
        """As of ``Param``."""
        number = _number(method, name, value)
        require_fitting(method, name, number, self)
        return number


class Flag(NamedTuple):
    """Yes or no."""

    default: bool
    help: str
    also: str = ""

    def bound(self, method: str, name: str, value: Any, count: int) -> Any:
        """As of ``Param``."""
        if value not in (0, 1):
            raise UsageError(f"{method}: {name} must be True or False, not {value!r}", code="bad_value")
        return bool(value)


class PerInput(NamedTuple):
    """A list of numbers, one for each input but the first ``after``.

    ``instead_of``: the parameter that it stands in for, which then has no value; the list also decides how many inputs
    the method takes. Without it, one number given stands for all, and ``default`` is the number of each. ``weights``:
    the numbers weigh the inputs of a sum, so inputs whose weights cancel enter as differences."""

    help: str
    instead_of: str = ""
    default: float | None = None
    weights: bool = False
    after: int = 0
    within: str = ""
    also: str = ""

    def bound(self, method: str, name: str, value: Any, count: int) -> Any:
        """As of ``Param``."""
        wanted = count - self.after
        if not self.instead_of and isinstance(value, int | float):
            value = (value,) * wanted
        numbers = _numbers(method, name, value)
        for number in numbers:
            require_fitting(method, name, number, self)
        if not self.instead_of and len(numbers) == 1:
            numbers *= wanted
        if len(numbers) != wanted:
            but = f" after the first {self.after}" if self.after > 1 else " after the first" if self.after else ""
            raise UsageError(
                f"{method}: {name} has {number_of(len(numbers), 'number')} for {number_of(wanted, 'input')}{but}; "
                "give one for each",
                code="wrong_inputs",
            )
        return numbers


Parameter = Param | Whole | Flag | PerInput


def is_required(param: Parameter) -> bool:
    """Whether it has no default, so that it must be given."""
    return isinstance(param, Param) and param.default is None


def require_sound(method: str, name: str, param: Parameter) -> None:
    """What is declared in a stranger's method is looked at here, or it would fail where all methods are listed:
    TypeError for a default that is no number, ValueError for a range that is not written like ``(0, 1]``."""
    if not isinstance(param.default, int | float | None):
        raise TypeError(f"the method {method}: the default of {name} is {param.default!r}, which is not a number")
    if range_of(param) and not _RANGE.fullmatch(range_of(param)):
        raise ValueError(f"the method {method}: the range of {name} is {range_of(param)!r}; write it like '(0, 1]'")


_END = r"\s*[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|inf)\s*"
_RANGE = re.compile(rf"[\[(]{_END},{_END}[\])]")


def is_whole(param: Parameter) -> bool:
    """Whether it is a whole number."""
    return isinstance(param, Whole) or (isinstance(param, Param) and param.whole)


def range_of(param: Parameter) -> str:
    """The range of a parameter's numbers, empty for any."""
    return "" if isinstance(param, Flag) else param.within


def described(param: Parameter) -> str:
    """The help of a parameter with its kind, its range and its default."""
    facts: list[str] = ["whole"] if is_whole(param) else []
    if range_of(param):
        facts.append(f"in {range_of(param)}")
    if param.default is not None:
        yes = param.default if isinstance(param, Flag) else None
        facts.append(f"default {param.default:g}" if yes is None else f"default {'yes' if yes else 'no'}")
    return param.help + (f" ({'; '.join(facts)})" if facts else "")


def require_fitting(method: str, name: str, number: float, param: Parameter) -> None:
    """UsageError for a number that the parameter cannot be: outside its range, or not whole where it must be."""
    if is_whole(param):
        if not number.is_integer():
            raise UsageError(f"{method}: {name} must be a whole number, not {_shown(number)}", code="bad_value")
        if abs(number) >= EXACT:
            text = f"must lie between -2^53 and 2^53 ({EXACT}); larger whole numbers are rounded, some to the same"
            raise UsageError(f"{method}: {name} {text}", code="bad_value")
    within = range_of(param)
    if not within:
        return
    low, high = (float(end) for end in re.findall(r"[-+.\w]+", within))
    above = number > low if within[0] == "(" else number >= low
    below = number < high if within[-1] == ")" else number <= high
    if not (above and below):
        raise UsageError(f"{method}: {name} must be in {within}, not {_shown(number)}", code="bad_value")


def _shown(number: float) -> str:
    """The number in full: rounded, one just outside a range would look as if it were inside."""
    return repr(float(number)).removesuffix(".0")


def _number(method: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        several = "; sweep(…) makes an output for each of several" if isinstance(value, list | tuple) else ""
        raise UsageError(
            f"{method}: {name} must be a number, not {printable(repr(value))}{several}", code="bad_value"
        ) from None
    if not math.isfinite(number):
        raise UsageError(f"{method}: {name} must be finite, not {number}", code="bad_value")
    return number


def _numbers(method: str, name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str | bytes | Set | Mapping) or not isinstance(value, Iterable):  # a set has no order
        raise UsageError(f"{method}: {name} must be a list of numbers, not {printable(repr(value))}", code="bad_value")
    numbers = tuple(_number(method, name, item) for item in value)
    if not numbers:
        raise UsageError(f"{method}: {name} is empty; give one number for each input", code="bad_value")
    return numbers
