"""Sweeps: one method with several values of its parameters, one output for each, from one reading of the inputs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..adapters.lora import Lora
from ..errors import UsageError, printable
from ..methods.registry import Method, Param

_MOST = 256  # outputs of one sweep: each is an open file


class Variant(NamedTuple):
    """One output of a sweep; ``out`` is None when none was given."""

    out: str | None
    parameters: dict[str, Any]


def values(text: str) -> list[float]:
    """``0.3``, ``0.1,0.2``, ``0.1:0.5:0.1`` (from, to, step; the end belongs to it), or these with commas between.

    ValueError for anything else. Steps are decimal: 0.1:0.3:0.1 is 0.1, 0.2, 0.3.
    """
    from decimal import Decimal, InvalidOperation

    found: list[float] = []
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) == 1:
            found.append(float(part))
            continue
        try:
            first, last, step = map(Decimal, ends)
        except InvalidOperation:
            raise ValueError(part) from None
        if not (first.is_finite() and last.is_finite() and step.is_finite()) or step == 0:
            raise ValueError(part)
        count = int((last - first) / step) + 1
        if not 1 <= count <= _MOST:
            raise ValueError(part)
        found += [float(first + number * step) for number in range(count)]
    return found


def variants(method: Method, parameters: Mapping[str, Any], out: str | os.PathLike[str] | None) -> list[Variant]:
    """The outputs of a merge: the product of the lists among ``parameters``, the last one changing fastest; a merge
    without lists has one.

    UsageError for an output name that doesn't tell them apart, and for a parameter that takes no list.
    """
    parameters = method.named(parameters)
    swept = [name for name, value in parameters.items() if is_list(method, name, value)]
    text = "" if out is None else os.fspath(out)
    named = _fields(text, parameters)
    lists = {name: list(parameters[name]) for name in swept}
    for name in swept:
        if not lists[name]:
            raise UsageError(f"{method.name}: {name} is empty; give at least one number", code="bad_value")
        if name not in named:
            example = os.path.splitext(text or "mix.safetensors")
            whole = len(lists[name]) == 2 and all(float(value).is_integer() for value in lists[name])
            meant = f" (a decimal is written {lists[name][0]:g}.{lists[name][1]:g})" if whole else ""
            raise UsageError(
                f"{name} has {len(lists[name])} values{meant}, and the output's name does not say which: "
                f"name it like {printable(example[0])}-{{{name}}}{printable(example[1]) or '.safetensors'}",
                code="bad_output",
            )
    found: list[Variant] = []
    for chosen in itertools.product(*lists.values()):
        each = {**parameters, **dict(zip(lists, chosen, strict=True))}
        found.append(Variant(None if out is None else named_out(text, method, each), each))
    _require_apart([variant.out for variant in found])
    return found


def _require_apart(outs: Sequence[str | None]) -> None:
    if len({os.path.realpath(out or "") for out in outs}) < len(outs):
        raise UsageError(f"several outputs would be named {printable(outs[0])}", code="bad_output")
    if len(outs) > _MOST:
        raise UsageError(f"{len(outs)} outputs are too many for one run; the limit is {_MOST}", code="bad_value")


def by_strength(
    loras: Sequence[Sequence[Lora]], out: str | os.PathLike[str] | None
) -> list[tuple[str | None, tuple[Lora, ...]]]:
    """The outputs of adapters of which each has one or several strengths, and the adapters of each output. The output's
    name has ``{lora1}``, ``{lora2}``, … for those that have several, or ``{lora}`` where it is one. UsageError for a
    name that doesn't tell them apart."""
    text = "" if out is None else os.fspath(out)
    several = [number for number, each in enumerate(loras) if len(each) > 1]
    found: list[tuple[str | None, tuple[Lora, ...]]] = []
    for chosen in itertools.product(*loras):
        numbers = {f"lora{number}": lora.strength for number, lora in enumerate(chosen, 1)}
        if len(several) == 1 or len(loras) == 1:
            numbers["lora"] = chosen[several[0] if several else 0].strength
        named = _fields(text, numbers)
        for number in several:
            if f"lora{number + 1}" not in named and not ("lora" in named and len(several) == 1):
                stem, suffix = os.path.splitext(text or "model.safetensors")
                field = "lora" if len(several) == 1 else f"lora{number + 1}"
                raise UsageError(
                    f"{printable(loras[number][0].name)} has {len(loras[number])} strengths, and the output's name "
                    f"does not say which: name it like {printable(stem)}-{{{field}}}{printable(suffix)}",
                    code="bad_output",
                )
        found.append((None if out is None else _filled(text, numbers), chosen))
    _require_apart([name for name, _ in found])
    return found


def is_list(method: Method, name: str, value: Any) -> bool:
    """Whether a parameter that is one number has several values."""
    return isinstance(method.params.get(name), Param) and isinstance(value, Sequence) and not isinstance(value, str)


def named_out(out: str, method: Method, parameters: Mapping[str, Any]) -> str:
    """The output's name with its placeholders filled in: ``mix-{alpha}.safetensors``, ``{alpha:.2f}`` too. A name with
    other braces stays as it is."""
    numbers = {
        name: parameters.get(name, param.default) for name, param in method.params.items() if isinstance(param, Param)
    }
    return _filled(out, numbers)


def _filled(out: str, numbers: Mapping[str, Any]) -> str:
    if not _fields(out, numbers):
        return out
    import string

    parts = []
    for literal, field, spec, _ in string.Formatter().parse(out):
        parts.append(literal)
        if field is not None:
            try:
                parts.append(format(float(numbers[field]), spec) if spec else _short(numbers[field]))
            except (ValueError, TypeError):
                text = f"'{printable(out)}': '{printable(spec)}' does not format a number"
                raise UsageError(text, code="bad_output") from None
    return "".join(parts)


def _short(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _fields(out: str, known: Mapping[str, Any]) -> set[str]:
    """The parameters that stand in the name as placeholders; none when anything else is in braces."""

    if "{" not in out:
        return set()
    import string

    def found() -> Iterator[str]:
        for _, field, _, conversion in string.Formatter().parse(out):
            if field is not None:
                yield field if conversion is None else ""

    try:
        fields = set(found())
    except ValueError:  # a single brace
        return set()
    return fields if fields <= set(known) else set()
