"""What a file is made of as text: a formula for each generation, block weights as a row of bars."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import printable

if TYPE_CHECKING:
    from ..surgery.ancestry import Generation

_BARS = "▁▂▃▄▅▆▇█"


def lines(generations: Sequence[Generation]) -> Iterator[str]:
    """``mix = 0.7·A + 0.3·B`` for each, the youngest first, and what differs between merge blocks below it."""
    for each in generations:
        by = "" if each.tool == "sdsurgery" else f"  ({each.tool})"
        yield f"{each.name} = {each.formula}{by}"
        for ratio, weights in each.blocks.items():
            others = each.parameters.get(ratio)
            rest = f", others {others:g}" if isinstance(others, float | int) and "BASE" not in weights else ""
            yield f"    {printable(ratio, 40)}  {bars(weights)}{rest}"


def bars(weights: Mapping[str, float]) -> str:
    """``BASE ▄  IN ▁▂▃  M ▄  OUT ▇█  (0 to 0.9)``: a bar for each block, from the least number, at most 0, to the
    largest, at least 1."""
    low, high = min(0.0, *weights.values()), max(1.0, *weights.values())
    groups: dict[str, str] = {}
    for block, number in weights.items():
        level = round((number - low) / (high - low) * (len(_BARS) - 1))
        name = re.sub("[0-9]+$", "", block)
        groups[name] = groups.get(name, "") + _BARS[level]
    shown = "  ".join(f"{printable(name, 20)} {row}" for name, row in groups.items())
    return f"{shown}  ({min(weights.values()):g} to {max(weights.values()):g})"
