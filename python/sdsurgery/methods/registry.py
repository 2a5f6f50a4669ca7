"""The registry of the merge methods: what a method is, and all of them by name."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..discovery import module_names
from ..errors import UsageError


@dataclass(frozen=True)
class Param:
    """A number of a method, with its default; ``help`` is its line in ``--help`` and the docs."""

    default: float
    help: str


@dataclass(frozen=True)
class PerInput:
    """A list of numbers, one for each input. Given, it also decides how many inputs the method takes, and the
    parameter that it stands in for (``instead_of``) has no value. ``weights``: the numbers weigh the inputs of a sum,
    so inputs whose weights cancel enter as differences."""

    help: str
    instead_of: str
    default: None = None
    weights: bool = False


@dataclass(frozen=True)
class Method:
    """One method of ``merge`` and ``apply``. ``inputs`` are the inputs' names in order; ``differences`` are those that
    enter only through the difference between them: where they agree, they change nothing."""

    name: str
    inputs: tuple[str, ...]
    params: Mapping[str, Param | PerInput]
    body: Callable[..., Any]
    differences: frozenset[str] = frozenset()

    @property
    def summary(self) -> str:
        """First line of the docstring: the formula in words and symbols."""
        return (self.body.__doc__ or "").strip().partition("\n")[0]

    @property
    def variadic(self) -> bool:
        """Whether any number of inputs is taken (with a list of numbers, one each)."""
        return any(isinstance(param, PerInput) for param in self.params.values())

    @property
    def ratios(self) -> tuple[str, ...]:
        """Names of the parameters that are one number: those that can differ from tensor to tensor."""
        return tuple(name for name, param in self.params.items() if isinstance(param, Param))

    def bind(self, count: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Complete parameters for ``count`` inputs: defaults filled in, numbers as float64, lists as tuples, None for
        what has no value.

        Raises UsageError for an unknown parameter, a value that is not a finite number, two parameters that exclude
        each other, or a wrong number of inputs.
        """
        from ..suggest import did_you_mean

        for name in given:
            if name not in self.params:
                raise UsageError(
                    f"{self.name} has no parameter '{name}'{did_you_mean(name, self.params)}", code="unknown_name"
                )
        values: dict[str, Any] = {}
        for name, param in self.params.items():
            value = given.get(name, param.default)
            convert = _numbers if isinstance(param, PerInput) else _number
            values[name] = None if value is None else convert(self.name, name, value)
        lists = {name: param for name, param in self.params.items() if isinstance(param, PerInput) and values[name]}
        for name, param in lists.items():
            if given.get(param.instead_of) is not None:
                raise UsageError(f"{self.name}: give {param.instead_of} or {name}, not both", code="conflict")
            values[param.instead_of] = None
            if count != len(values[name]):
                raise UsageError(
                    f"{self.name}: {name} has {len(values[name])} numbers for {count} inputs; give one for each",
                    code="wrong_inputs",
                )
        if count != len(self.inputs) and not lists:
            hint = "; for more inputs give weights=" if self.variadic else ""
            raise UsageError(
                f"{self.name} takes {len(self.inputs)} inputs ({' '.join(self.inputs)}), {count} given{hint}",
                code="wrong_inputs",
            )
        return values


def _number(method: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        several = "; sweep(…) makes an output for each of several" if isinstance(value, list | tuple) else ""
        raise UsageError(f"{method}: {name} must be a number, not {value!r}{several}", code="bad_value") from None
    if not math.isfinite(number):
        raise UsageError(f"{method}: {name} must be finite, not {number}", code="bad_value")
    return number


def _numbers(method: str, name: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError(f"{method}: {name} must be a list of numbers, not {value!r}", code="bad_value")
    numbers = tuple(_number(method, name, item) for item in value)
    if not numbers:
        raise UsageError(f"{method}: {name} is empty; give one number for each input", code="bad_value")
    return numbers


_METHODS: dict[str, Method] = {}


def method(
    name: str, *, inputs: str, differences: str = "", **params: Param | PerInput
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the method ``name``. ``inputs`` are the positional arguments' names, blank-separated;
    ``differences`` are those of them that enter only through the difference between them (B and C of ``A + α·(B − C)``)
    and so may have more channels than A. ValueError for a name that is none of the inputs."""

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        if name in _METHODS:
            raise ValueError(f"the method {name} is registered twice")
        if not set(differences.split()) <= set(inputs.split()):
            raise ValueError(f"the method {name} has no input {differences}")
        _METHODS[name] = Method(name, tuple(inputs.split()), params, body, frozenset(differences.split()))
        return body

    return decorate


@functools.cache
def _import_modules() -> None:
    """Import this package's modules, which register their methods (even where a method from elsewhere came first)."""
    for name in module_names([os.path.dirname(__file__)]):
        import_module(f"{__package__}.{name}")


def registered() -> dict[str, Method]:
    """All methods by name."""
    _import_modules()
    return dict(_METHODS)


def get(name: str) -> Method:
    """The method of that name; UsageError with close matches for an unknown name."""
    known_names = registered()
    found = known_names.get(name) or known_names.get(name.replace("_", "-"))  # weighted_sum, as Python writes it
    if found is None:
        from ..errors import printable
        from ..suggest import did_you_mean

        hint = did_you_mean(name, known_names) or f"; known: {', '.join(known_names)}"
        raise UsageError(f"unknown method '{printable(name)}'{hint}", code="unknown_name")
    return found
