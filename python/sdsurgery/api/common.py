"""What the verbs share: the kinds of inputs, and signatures that show every setting."""

from __future__ import annotations

import inspect as _signatures
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Union

from ..errors import UsageError, printable
from ..settings import (
    DEFAULTS,
)

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

Path = str | os.PathLike[str]
Input = Union[Path, "Checkpoint", Mapping[str, Any]]
"""A file, one that is opened already (and stays open), or tensors by name."""
Verb = TypeVar("Verb", bound=Callable[..., Any])


def spelled_out(keywords: Any) -> Callable[[Verb], Verb]:
    """``help()`` and editors that ask at run time see every setting, not ``**settings``."""

    def decorate(function: Verb) -> Verb:
        found = _signatures.signature(function)
        named = [item for item in found.parameters.values() if item.kind is not item.VAR_KEYWORD]
        for name, kind in keywords.__annotations__.items():
            text = getattr(kind, "__forward_arg__", kind)
            only = _signatures.Parameter.KEYWORD_ONLY
            named.append(_signatures.Parameter(name, only, default=DEFAULTS[name], annotation=text))
        function.__signature__ = found.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return decorate


def listed(inputs: Iterable[Any]) -> list[Any]:
    if isinstance(inputs, str | bytes | os.PathLike):
        raise UsageError(f"inputs must be a list of files, not one file ('{printable(inputs)}')", code="wrong_inputs")
    if hasattr(inputs, "items"):
        raise UsageError("inputs must be a list: [a, b], not one checkpoint or dictionary", code="wrong_inputs")
    return list(inputs)
