"""Numbers of merge blocks as a row of bars."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import printable

_BARS = "▁▂▃▄▅▆▇█"


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
