"""Reductions whose chunks come from devices in any order: the sums are added in the order of csrc/reduce.h."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..backends import Reduced
from ..dtypes import DType
from ..program import ALL, INPUT, TEMP, Program, Ref
from .tiles import CHUNK

Chunk = tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]
"""Of one chunk: dot, aa, bb, dd; the maxima of |a|, |b|, |a − b|; non-finite in a, in b, equal. Of products only the
first, each product's sum."""

Term = tuple[int, int]
"""An input, and the one that is subtracted from it, −1: none. Without both: ones."""
_ONES: Term = (-1, -1)


class Product(NamedTuple):
    """Σ x·y over a whole tensor."""

    x: Term
    y: Term


@lru_cache(maxsize=256)
def products_of(program: Program) -> tuple[Product, ...] | None:
    """What a program's only stage finds, where that is sums and products of inputs and of differences of two."""
    if len(program.stages) != 1 or program.stages[0].scalars:
        return None
    (stage,) = program.stages
    terms: dict[Ref, Term] = {(INPUT, number): (number, -1) for number in range(program.inputs)}
    for op, args, to in stage.steps:
        if op != "sub" or any(kind != INPUT for kind, _ in args):
            return None
        terms[TEMP, to] = (args[0][1], args[1][1])
    found = []
    for name, along, args in stage.reductions:
        if name not in ("sum", "dot") or along != ALL or not all(ref in terms for ref in args):
            return None
        found.append(Product(terms[args[0]], terms[args[1]] if name == "dot" else _ONES))
    return tuple(found)


@dataclass(frozen=True)
class Row:
    """Operands in a tile's input buffer: their dtypes, byte offsets, and elements (whole chunks, or to the end). Of two
    it is found how alike they are, unless there are ``products``."""

    dtypes: tuple[DType, ...]
    ins: tuple[int, ...]
    count: int
    products: tuple[Product, ...] = ()


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
        return [(job, *Reduced._make([*sums, *peaks, *counts])) for job, sums, peaks, counts in self._added() if counts]

    def values(self) -> list[tuple[int, list[float]]]:
        """(job, its products) of every job."""
        return [(job, sums) for job, sums, _, counts in self._added() if not counts]

    def _added(self) -> Iterator[tuple[int, list[float], list[float], list[int]]]:
        for job, chunks in sorted(self._chunks.items()):
            first = chunks[min(chunks)]
            sums, peaks, counts = [0.0] * len(first[0]), [0.0] * len(first[1]), [0] * len(first[2])
            for number in sorted(chunks):
                new_sums, new_peaks, new_counts = chunks[number]
                sums = [before + now for before, now in zip(sums, new_sums, strict=True)]
                peaks = [max(before, now) for before, now in zip(peaks, new_peaks, strict=True)]
                counts = [before + now for before, now in zip(counts, new_counts, strict=True)]
            sums = [math.nan if math.isnan(value) else value for value in sums]  # the canonical one
            yield job, sums, peaks, counts
