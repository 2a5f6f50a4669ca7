"""What a method must know of whole models before it can make one tensor, and of a tensor besides its elements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError, printable

if TYPE_CHECKING:
    from .registry import Method

APART = "apart"
"""The role of tensors that a method leaves out: they count in no statistic, and the body gives A's."""


class Across(NamedTuple):
    """Statistics of whole models, found in a pass of their own before the merge.

    ``statistic`` is a body of the method's inputs that gives what a reduction over a tensor gives: one number, or one
    of each column (``axis=0``). ``combined`` makes of those of all tensors, one float64 array, the numbers that the
    method's body takes as ``names``.
    """

    names: tuple[str, ...]
    statistic: Callable[..., Any]
    combined: Callable[[Any], Sequence[float]]

    def known(self, method: Method, found: Any) -> Method:
        """The method with its numbers, for the statistics of all tensors. UsageError where ``combined`` fails."""
        try:
            numbers = [float(number) for number in self.combined(found)]
        except Exception as error:
            text = f"{method.name}: its statistics of whole models: {type(error).__name__}: {printable(error)}"
            raise UsageError(text, code="bad_value") from error
        if len(numbers) != len(self.names):
            text = f"{method.name}: its statistics of whole models are {', '.join(self.names)}; {len(numbers)} given"
            raise UsageError(text, code="bad_value")
        return with_known(method, dict(zip(self.names, numbers, strict=True)))

    def unknown(self, method: Method) -> Method:
        """The method before they are found: the shape of its formula is the same."""
        return with_known(method, {name: float(number) for number, name in enumerate(self.names)})


@dataclass(frozen=True)
class Known:
    """A body for which some of its arguments are known."""

    body: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self.body.__doc__ or ""

    def __call__(self, *inputs: Any, **numbers: float | Sequence[float] | None) -> Any:
        return self.body(*inputs, **dict(self.arguments), **numbers)


def with_known(method: Method, arguments: dict[str, Any]) -> Method:
    return dataclasses.replace(method, across=None, body=Known(method.body, tuple(arguments.items())))


def in_role(method: Method, role: str) -> Method:
    """The method for tensors of a role."""
    return with_known(method, {"role": role}) if role else method


def role_of(method: Method, name: str, family: str) -> str:
    """The role of a tensor, empty for an ordinary one."""
    return method.roles(name, family) if method.roles else ""
