"""Reductions whose chunks come from devices in any order: the sums are added in the order of csrc/reduce.h."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..backends import Reduced
from ..dtypes import DType
from .tiles import CHUNK

Chunk = tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]
"""Of one chunk: dot, aa, bb, dd; the maxima of |a|, |b|, |a − b|; non-finite in a, in b, equal."""


@dataclass(frozen=True)
class Row:
    """Two operands in a tile's input buffer: their dtypes, byte offsets, and elements (whole chunks, or to the end)."""

    dtypes: tuple[DType, DType]
    ins: tuple[int, int]
    count: int


class Gathered:
    """What is known of every job's chunks."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[int, Chunk]] = {}

    def add(self, job: int, first: int, chunks: list[Chunk]) -> None:
        """The chunks of a job from its element ``first`` on."""
        for number, chunk in enumerate(chunks):
            self._chunks.setdefault(job, {})[first // CHUNK + number] = chunk

    def totals(self) -> list[tuple[Any, ...]]:
        r"""(job, \*Reduced) of every job."""
        found = []
        for job, chunks in sorted(self._chunks.items()):
            sums, peaks, counts = [0.0] * 4, [0.0] * 3, [0] * 3
            for number in sorted(chunks):
                new_sums, new_peaks, new_counts = chunks[number]
                sums = [before + now for before, now in zip(sums, new_sums, strict=True)]
                peaks = [max(before, now) for before, now in zip(peaks, new_peaks, strict=True)]
                counts = [before + now for before, now in zip(counts, new_counts, strict=True)]
            sums = [math.nan if math.isnan(value) else value for value in sums]  # the canonical one
            found.append((job, *Reduced._make([*sums, *peaks, *counts])))
        return found
