"""Modifiers: what is done to any method's ratio before, or to its result after.

A modified method is a method of its own, whose name says how it is made: ``smoothstep:slerp``,
``clamp(A,B):add-diff``. So recipes hold it, and blocks, rules and sweeps apply to its numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, printable
from .order import clamped
from .parameters import Param
from .registry import Method, get, named_by, require_free
from .sums import CURVES
from .written import letter

STIFFNESS = Param(
    0.0, "of clamp: 0 between the smallest and the largest bound; 1 between those next to their mean", "[0, 1]"
)


@dataclass(frozen=True, eq=False)
class Curved:
    """A body whose ratio α is a curve of the given one."""

    method: Method
    curve: str

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{self.method.summary.rstrip('.')}; α by {self.curve}."

    def __call__(self, *inputs: Any, alpha: Any, **numbers: float | Sequence[float] | None) -> Any:
        if alpha is None:
            text = (
                f"{self.curve} shapes alpha, in whose place {self.method.name} has a list here; leave out one of them"
            )
            raise UsageError(text, code="conflict")
        return self.method.body(*inputs, alpha=CURVES[self.curve](alpha), **numbers)


@dataclass(frozen=True, eq=False)
class Clamped:
    """A body whose result stays between some of its inputs."""

    method: Method
    bounds: tuple[int, ...]

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        names = ", ".join(letter(bound) for bound in self.bounds)
        return f"{self.method.summary.rstrip('.')}; clamped between {names}."

    def __call__(self, *inputs: Any, stiffness: Any, **numbers: float | Sequence[float] | None) -> Any:
        if max(self.bounds) >= len(inputs):
            raise _no_input(self.method, max(self.bounds), len(inputs))
        bounds = [inputs[bound] for bound in self.bounds]
        return clamped(self.method.body(*inputs, **numbers), bounds, stiffness)


@named_by("smoothstep:")
@named_by("inverse-smoothstep:")
@functools.lru_cache(maxsize=64)
def curved(name: str) -> Method:
    """The method behind the colon with α shaped by the curve before it. UsageError for one without α."""
    curve, _, rest = name.partition(":")
    method = get(rest)
    if not isinstance(method.params.get("alpha"), Param):
        raise UsageError(f"{method.name} has no ratio alpha that a curve could shape", code="conflict")
    return dataclasses.replace(method, name=f"{curve}:{method.name}", body=Curved(method, curve))


@named_by("clamp(")
@functools.lru_cache(maxsize=64)
def clamp_of(name: str) -> Method:
    """The method behind the colon with its result between the inputs in the brackets. UsageError for other names."""
    words, found, rest = name.removeprefix("clamp(").partition("):")
    words = words.replace(" ", "").upper()
    bounds = tuple(ord(word) - ord("A") for word in words.split(",") if len(word) == 1 and "A" <= word <= "Z")
    if not found or len(bounds) < len(words.split(",")) or len(set(bounds)) < 2:
        raise UsageError(f"clamp needs two or more inputs, as in A,B; not '{printable(words)}'", code="bad_value")
    method = get(rest)
    if max(bounds) >= len(method.inputs) and not method.variadic:
        raise _no_input(method, max(bounds), len(method.inputs))
    require_free("clamp", method, ("stiffness",))
    params = {**method.params, "stiffness": STIFFNESS}
    body = Clamped(method, bounds)
    return dataclasses.replace(method, name=f"clamp({words}):{method.name}", body=body, params=params)


def _no_input(method: Method, number: int, count: int) -> UsageError:
    text = f"clamp: there is no input {letter(number)} of {method.name}, whose last one is {letter(count - 1)}"
    return UsageError(text, code="bad_value")


def modified(method: Method, curve: str | None = None, bounds: str | None = None, adjust: bool = False) -> Method:
    """The method with a curve for its α, bounds (``A,B``) for its result, and the numbers of ``adjust``, if asked."""
    name = f"{curve}:{method.name}" if curve else method.name
    name = f"clamp({bounds}):{name}" if bounds is not None else name
    return get(f"adjust:{name}" if adjust else name) if curve or bounds is not None or adjust else method
