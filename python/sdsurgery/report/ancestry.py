"""What a file is made of as text: a formula for each generation, block weights as a row of bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import printable
from .bars import bars
from .command import runnable

if TYPE_CHECKING:
    from ..surgery.ancestry import Generation


def lines(generations: Sequence[Generation]) -> Iterator[str]:
    """``mix = 0.7·A + 0.3·B`` for each, the youngest first, and what differs between merge blocks below it;
    at the end the command that makes the youngest again."""
    for each in generations:
        by = "" if each.tool == "sdsurgery" else f"  ({each.tool})"
        yield f"{each.name} = {each.formula}{by}"
        for ratio, weights in each.blocks.items():
            others = each.parameters.get(ratio)
            rest = f", others {others:g}" if isinstance(others, float | int) and "BASE" not in weights else ""
            yield f"    {printable(ratio, 40)}  {bars(weights)}{rest}"
    if generations and generations[0].command:
        yield f"again: {runnable(generations[0].command)}"
