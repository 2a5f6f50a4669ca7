"""An adapter as an input of a recipe: its file and how much of it is applied where."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from ..errors import UsageError, printable


@dataclass(frozen=True)
class Lora:
    """``strength`` is applied to the U-Net, ``te`` to the text encoders (None: as much). ``blocks``: weights by merge
    block, which multiply both; ``others``: the weight of blocks that a list of numbers doesn't name (None: refused)."""

    path: str
    strength: float = 1.0
    te: float | None = None
    blocks: str = ""
    others: float | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "te", "others"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and isfinite(value)):
                raise UsageError(f"{name}= must be a finite number, not '{printable(value)}'", code="bad_value")

    def __rmul__(self, factor: float) -> Lora:
        te = None if self.te is None else factor * self.te
        return replace(self, strength=factor * self.strength, te=te)

    __mul__ = __rmul__

    def __str__(self) -> str:
        te = "" if self.te is None else f", te={self.te:g}"
        return f"{self.name}={self.strength:g}{te}" + (f", blocks={self.blocks}" if self.blocks else "")

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return os.path.splitext(os.path.basename(os.path.normpath(self.path)))[0]

    def to_json(self, name: str | None = None) -> dict[str, Any]:
        """In JSON types; ``name`` stands for the path, where the path must not be known."""
        found: dict[str, Any] = {"lora": self.path} if name is None else {"name": name}
        found["strength"] = self.strength
        for key in ("te", "blocks", "others"):
            value = getattr(self, key)
            if value not in (None, ""):
                found[key] = value
        return found


RESULT = -1
"""The place of an adapter that changes the result of a formula, not one of its inputs."""

Placed = Mapping[int, Sequence[Lora]]
"""Adapters by the number of the input that they are applied to, or ``RESULT``."""


def from_json(value: Mapping[str, Any]) -> Lora:
    """The value of ``Lora.to_json``. KeyError, TypeError or UsageError when it isn't one."""
    others = {name: value[name] for name in value if name in ("strength", "te", "blocks", "others")}
    unknown = [name for name in value if name not in ("lora", *others)]
    if unknown:
        raise UsageError(f"not a recipe: unknown key '{printable(unknown[0])}' of an adapter", code="unknown_name")
    return Lora(str(value["lora"]), **others)


def lora(
    path: str | os.PathLike[str], strength: float = 1.0, *, te: float | None = None,
    blocks: str | Sequence[float] = "", others: float | None = None,
) -> Lora:  # fmt: skip
    """An adapter's file as an input of ``bake`` or a recipe: ``0.8 * lora("a.safetensors")``.

    ``strength`` is for the U-Net, ``te`` for the text encoders (None: the same); negative takes the adapter out again.
    ``blocks``: a list of 12, 17, 20 or 26 numbers as the block-weight extension takes them, one of its presets, or
    assignments (``IN04=0.3,OUT05-OUT08=0``); ``others``: the weight of the blocks that such a list doesn't name.
    UsageError for a number that isn't finite.
    """
    text = blocks if isinstance(blocks, str) else ",".join(f"{float(number)!r}" for number in blocks)
    return Lora(os.fspath(path), strength, te, text, others)


_GIVEN = r"(?P<path>.+?)(?:=(?P<strength>[^=]*?)|:(?P<after>-?[\d.]+))?(?:,te=(?P<te>[^=,]*))?"


def _one(text: str) -> list[float]:
    return [float(text)]


def parse(text: str, values: Callable[[str], Sequence[float]] = _one) -> list[Lora]:
    """``FILE``, ``FILE=0.8``, ``FILE:0.8`` or ``FILE=0.8,te=0.3``: the adapter at that strength, or at each of those
    that ``values`` finds in it. UsageError for a strength that is no number."""
    if os.path.exists(text):
        return [Lora(text)]
    found = re.fullmatch(_GIVEN, text)
    if found is None:
        raise UsageError(f"'{printable(text)}' is not FILE=STRENGTH or FILE=STRENGTH,te=STRENGTH", code="bad_value")
    numbers = []
    strength = found["after"] if found["strength"] is None else found["strength"]
    for given, read in ((strength, values), (found["te"], _one)):
        try:
            numbers.append(None if given is None else read(given))
        except ValueError:
            raise UsageError(
                f"'{printable(text)}': '{printable(given)}' is not a number; expected FILE=0.8,te=0.3",
                code="bad_value",
            ) from None
    strengths, te = numbers[0] or [1.0], None if numbers[1] is None else numbers[1][0]
    return [Lora(found["path"], strength, te) for strength in strengths]


Loras = Mapping[str, float] | Sequence[Lora | str | os.PathLike[str]]


def as_loras(given: Any) -> list[Lora]:
    """What ``bake`` takes as its adapters: values of ``lora``, files, or strengths by file. UsageError otherwise."""
    if isinstance(given, Lora | str | os.PathLike):
        given = [given]
    if isinstance(given, Mapping):
        return [Lora(os.fspath(path), strength) for path, strength in given.items()]
    return [item if isinstance(item, Lora) else Lora(os.fspath(item)) for item in given]


def swept_loras(given: Any) -> list[list[Lora]]:
    """What ``sweep`` takes as its adapters: those of ``as_loras``, each at one strength or at several."""
    if isinstance(given, Mapping):
        several = {path: value if isinstance(value, Sequence) else [value] for path, value in given.items()}
        return [[Lora(os.fspath(path), strength) for strength in own] for path, own in several.items()]
    listed = [given] if isinstance(given, Lora | str | os.PathLike) else given
    return [as_loras(item) if isinstance(item, list | tuple) else as_loras([item]) for item in listed]
