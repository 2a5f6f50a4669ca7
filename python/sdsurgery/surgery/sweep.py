"""Sweeps: one method with several values of its parameters, one output for each, from one reading of the inputs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ..adapters.lora import Lora
from ..errors import UsageError, number_of, printable
from ..methods.registry import Method, Param, Whole
from .placeholders import numbers_of, require_filled, strengths_of, template

_MOST = 256  # outputs of one sweep: each is an open file


class Variant(NamedTuple):
    """One output of a sweep; ``out`` is None when none was given."""

    out: str | None
    parameters: dict[str, Any]
    loras: tuple[Lora, ...] = ()


class WrongRange(ValueError):
    """A range that cannot be: the text says why."""


def values(text: str) -> list[float]:
    """``0.3``, ``0.1,0.2``, ``0.1:0.5:0.1`` (from, to, step; the end belongs to it), or these with commas between.

    ValueError for anything else, WrongRange for a range that has no end or too many numbers. Steps are decimal:
    0.1:0.3:0.1 is 0.1, 0.2, 0.3.
    """
    found: list[float] = []
    for part in text.split(","):
        found += _from_to(part) if ":" in part else [float(part)]
    return found


def _from_to(text: str) -> list[float]:
    from decimal import Decimal

    try:
        first, last, step = map(Decimal, text.split(":"))
        steps = (last - first) / step if step else Decimal(-1)
    except ArithmeticError:
        raise ValueError(text) from None
    if not (first.is_finite() and last.is_finite() and step.is_finite()):
        raise ValueError(text)
    if steps < 0:
        raise WrongRange(f"steps of {step} do not lead from {first} to {last}")
    if steps >= _MOST:
        raise WrongRange(f"more than {_MOST} numbers, which is the limit of one run")
    count = int(steps) + 1
    return [float(first + number * step) for number in range(count)]


def variants(
    method: Method | None,
    parameters: Mapping[str, Any],
    out: str | os.PathLike[str] | None,
    loras: Sequence[Sequence[Lora]] = (),
) -> list[Variant]:
    """The outputs of a merge, or (``method`` None) of a bake: the product of the lists among ``parameters`` and of the
    adapters' strengths, the last one changing fastest; one output without lists.

    The output's name has ``{alpha}`` for a list of alphas (or another name of it, ``{ratio}``), ``{lora1}``,
    ``{lora2}``, … for adapters of several strengths, or ``{lora}`` where that is one. UsageError for a name that
    doesn't tell the outputs apart or has a placeholder that nothing fills, and for a parameter that takes no list.
    """
    parameters = parameters if method is None else method.named(parameters)
    lists = {
        name: list(value) for name, value in parameters.items() if method is not None and is_list(method, name, value)
    }
    _require_numbers(method, parameters)
    if not all(loras):
        raise UsageError("an adapter has no strength; give at least one number", code="bad_value")
    several = [number for number, each in enumerate(loras, 1) if len(each) > 1]
    only = several[0] if len(several) == 1 else 1 if len(loras) == 1 else 0  # whose strength {lora} is
    name = template(out)
    text, named = name.folder + name.rest, name.words()
    known = {**numbers_of(method, parameters), **strengths_of([each[0] for each in loras], only)}
    require_filled(name, known, method, parameters, len(loras))
    for param, given in lists.items():
        if not given:
            raise UsageError(f"{method and method.name}: {param} is empty; give at least one number", code="bad_value")
        if not named.intersection((param, *(method.also(param) if method is not None else ()))):
            whole = len(given) == 2 and all(float(value).is_integer() for value in given)
            meant = f" (a decimal is written {given[0]:g}.{given[1]:g})" if whole else ""
            _refuse_name(text or "mix.safetensors", f"{param} has {number_of(len(given), 'value')}{meant}", param)
    for number in several:
        if f"lora{number}" not in named and not ("lora" in named and only == number):
            what = f"{printable(loras[number - 1][0].name)} has {number_of(len(loras[number - 1]), 'strength')}"
            _refuse_name(text or "model.safetensors", what, "lora" if only else f"lora{number}")
    found: list[Variant] = []
    for chosen in itertools.product(*lists.values(), *loras):
        each = {**parameters, **dict(zip(lists, chosen, strict=False))}
        own = chosen[len(lists) :]
        numbers = {**numbers_of(method, each), **strengths_of(own, only)}
        found.append(Variant(None if out is None else name.filled(numbers), each, own))
    _require_apart([variant.out for variant in found])
    return found


def _require_numbers(method: Method | None, parameters: Mapping[str, Any]) -> None:
    """UsageError for what is no number, before it is written into an output's name."""
    for name, value in parameters.items() if method is not None else ():
        param = method.params[name] if method is not None else None
        if method is None or not isinstance(param, Param | Whole) or value is None:
            continue
        for each in value if is_list(method, name, value) else [value]:
            param.bound(method.name, name, each, 0)


def _refuse_name(out: str, what: str, field: str) -> NoReturn:
    stem, suffix = os.path.splitext(out)
    example = f"{printable(stem)}-{{{field}}}{printable(suffix) or '.safetensors'}"
    raise UsageError(f"{what}, and the output's name does not say which: name it like {example}", code="bad_output")


def _require_apart(outs: Sequence[str | None]) -> None:
    if len({os.path.realpath(out or "") for out in outs}) < len(outs):
        raise UsageError(f"several outputs would be named {printable(outs[0])}", code="bad_output")
    if len(outs) > _MOST:
        raise UsageError(f"{len(outs)} outputs are too many for one run; the limit is {_MOST}", code="bad_value")


def is_list(method: Method, name: str, value: Any) -> bool:
    """Whether a parameter that is one number has several values."""
    one = isinstance(method.params.get(name), Param | Whole)
    return one and isinstance(value, Sequence) and not isinstance(value, str | bytes)
