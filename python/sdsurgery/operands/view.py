"""A tensor that is not contiguous, as numbers of a Plan."""

from __future__ import annotations

from typing import NamedTuple


class View(NamedTuple):
    """How such a tensor lies in its storage: strides in elements. ``start`` elements are skipped."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0
