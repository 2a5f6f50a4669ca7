"""Filters of whole NumPy arrays, by windows along every axis: a median of three and a Gaussian, in the definitions of
``scipy.ndimage`` (``mode="reflect"``), tile by tile.

Medians come from a network of minima and maxima. A window is sorted axis by axis, so that what is sorted along one axis
is shared by all windows that lie in it: three lists sorted so far are merged into one (Batcher's odd-even merge; Knuth,
The Art of Computer Programming, vol. 3, 5.3.4), and along the last axis only the middle of the three is found.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .memory import needs

TILE, WIDEST = 1 << 14, 512  # elements of a tile, and of its rows: the lists of its windows lie in the cache
BLOCK = 1 << 15  # elements that are smoothed at once
SIGMA, RADIUS = 1.0, 4  # of the Gaussian: its deviation, and the taps to each side

# ---- medians


class _Step(NamedTuple):
    """The smaller (or larger) of two earlier numbers; ``dead`` are those that nothing needs any more."""

    larger: bool
    a: int
    b: int
    dead: tuple[int, ...]


class _Network(NamedTuple):
    """Numbers 0 … are the inputs, then one for each step; ``results`` are the wanted ones."""

    steps: tuple[_Step | None, ...]  # None: nothing needs it
    results: tuple[int, ...]

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        values: dict[int, np.ndarray] = dict(enumerate(inputs))
        for number, step in enumerate(self.steps, len(inputs)):
            if step is not None:
                values[number] = (np.maximum if step.larger else np.minimum)(values[step.a], values[step.b])
                for each in step.dead:
                    del values[each]
        return [values[number] for number in self.results]


class _Drawing:
    """A network while it is drawn."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.steps: list[tuple[bool, int, int]] = []

    def make(self, larger: bool, a: int, b: int) -> int:
        self.steps.append((larger, a, b))
        return self.inputs + len(self.steps) - 1

    def merged(self, x: list[int], y: list[int]) -> list[int]:
        """Of two sorted lists one."""
        if x == y:
            return [each for each in x for _ in range(2)]
        if not x or not y:
            return x or y
        if len(x) == len(y) == 1:
            return [self.make(False, x[0], y[0]), self.make(True, x[0], y[0])]
        odd, even = self.merged(x[::2], y[::2]), self.merged(x[1::2], y[1::2])
        found = odd[:1]
        for low, high in zip(even, odd[1:], strict=False):
            found += [self.make(False, low, high), self.make(True, low, high)]
        return found + even[len(odd) - 1 :] + odd[len(even) + 1 :]

    def kth(self, x: list[int], y: list[int], k: int) -> int:
        """The k-th smallest, from 1, of two sorted lists: the smallest of max(x[k − j], y[j])."""
        found = -1
        for j in range(max(0, k - len(x)), min(k, len(y)) + 1):
            ends = ([x[k - j - 1]] if j < k else []) + ([y[j - 1]] if j else [])
            most = ends[0] if len(ends) == 1 else self.make(True, *ends)
            found = most if found < 0 else self.make(False, found, most)
        return found

    def finished(self, results: list[int]) -> _Network:
        """Only the steps that the results need, and where what they use was last used."""
        last = dict.fromkeys(results, len(self.steps))
        kept: list[_Step | None] = [None] * len(self.steps)
        for at in range(len(self.steps) - 1, -1, -1):
            larger, a, b = self.steps[at]
            if self.inputs + at in last:
                dead = tuple({each for each in (a, b) if each not in last})
                last |= dict.fromkeys(dead, at)
                kept[at] = _Step(larger, a, b, dead)
        return _Network(tuple(kept), tuple(results))


@functools.cache
def _network(length: int, which: tuple[int, int, int], middle: bool) -> _Network:
    """Merges three sorted lists into one, or finds the middle of all; ``which`` are their numbers, two may be equal."""
    drawing = _Drawing((max(which) + 1) * length)
    x, y, z = ([k * length + i for i in range(length)] for k in which)
    pair, other = (drawing.merged(y, z), x) if y == z else (drawing.merged(x, y), z)
    return drawing.finished(
        [drawing.kth(pair, other, (3 * length + 1) // 2)] if middle else drawing.merged(pair, other)
    )


def median(x: np.ndarray) -> np.ndarray:
    """The median of the three elements along every axis around each: 3^axes of them. A NaN in the window gives NaN, a
    zero is +0. ``scipy.ndimage.median_filter(x, size=3)``."""
    return _filtered(x, _medians)


def _filtered(x: np.ndarray, *filters: Callable[[np.ndarray, list[int]], np.ndarray]) -> np.ndarray:
    """Filters of an array whose axes are in the order of their lengths, so that the last is long and contiguous; they
    take the array and where each of x's axes lies in it."""
    if not x.ndim or not x.size:
        return x + 0
    order = sorted(range(x.ndim), key=lambda axis: x.shape[axis])
    places = [order.index(axis) for axis in range(x.ndim)]
    found = np.ascontiguousarray(x.transpose(order))
    for each in filters:
        found = each(found, places)
    return found.transpose(places) + 0


def _medians(x: np.ndarray, places: list[int]) -> np.ndarray:
    shape, x = x.shape, x.reshape([n for n in x.shape if n > 1])  # what is alone is its own median
    if not x.ndim:
        return x.reshape(shape)
    short, long = x.shape[:-2], x.shape[-2:]
    padded = np.pad(x, [(0, 0)] * len(short) + [(1, 1)] * len(long), mode="symmetric")
    found = np.empty_like(x)
    wide = min(long[-1], WIDEST)
    high = max(4, TILE // wide)
    for top in range(0, long[0] if len(long) > 1 else 1, high):
        for left in range(0, long[-1], wide):
            part: Any = (slice(top, top + high), slice(left, left + wide))[-x.ndim :]
            around: Any = tuple(slice(each.start, min(each.stop, n) + 2) for each, n in zip(part, long, strict=True))
            tile = _Tile(padded[(..., *around)], short)
            for first in range(short[0] if short else 1):
                for rest in np.ndindex(short[1:]):
                    plane = (first, *rest)[: len(short)]
                    found[(*plane, *part)] = tile.sorted(plane, len(short))[0]
                tile.forget()
    return found.reshape(shape)


class _Tile:
    """Windows of a tile, sorted along its two long axes and then along ``short`` ones, plane by plane; along the last
    only the middle is found. At the edges of a short axis the first and the last plane stand beside themselves."""

    def __init__(self, padded: np.ndarray, short: tuple[int, ...]) -> None:
        self.padded, self.short = padded, short
        self.kept: dict[tuple[tuple[int, ...], int], list[np.ndarray]] = {}

    def sorted(self, plane: tuple[int, ...], axes: int) -> list[np.ndarray]:
        """The sorted list of each element's window along the long axes and so many of the short ones."""
        if (plane, axes) not in self.kept:
            self.kept[plane, axes] = self._neighbours(plane, axes - 1) if axes else self._along(self.padded[plane])
        return self.kept[plane, axes]

    def forget(self) -> None:
        """Drop what only planes of one first index share."""
        self.kept = {key: lists for key, lists in self.kept.items() if not key[1]}

    def _along(self, padded: np.ndarray) -> list[np.ndarray]:
        lists = [padded]
        for axis in range(padded.ndim - 1, -1, -1):
            kept = padded.shape[axis] - 2
            parts = [each[(slice(None),) * axis + (slice(at, at + kept),)] for at in range(3) for each in lists]
            lists = _network(len(lists), (0, 1, 2), axis == 0 and not self.short)(parts)
        return lists

    def _neighbours(self, plane: tuple[int, ...], axis: int) -> list[np.ndarray]:
        at, last = plane[axis], self.short[axis] - 1
        beside = sorted({max(at - 1, 0), at, min(at + 1, last)})
        lists = [self.sorted((*plane[:axis], each, *plane[axis + 1 :]), axis) for each in beside]
        which = (0, 0, 1) if at == 0 else (0, 1, 1) if at == last else (0, 1, 2)
        return _network(len(lists[0]), which, axis == len(self.short) - 1)([each for some in lists for each in some])


# ---- the Gaussian


@functools.cache
def weights() -> tuple[float, ...]:
    """exp(−x²/2)/Σ for x = 0 … 4, the half of the nine taps."""
    taps = np.exp(-0.5 / (SIGMA * SIGMA) * np.arange(-RADIUS, RADIUS + 1) ** 2)
    return tuple((taps / taps.sum())[RADIUS:].tolist())


@needs(40)
def gaussian(x: np.ndarray) -> np.ndarray:
    """A Gaussian of deviation 1 along each axis in turn: nine taps, summed in float64 from the middle and then from the
    outermost pair inwards, rounded to x's dtype after each axis. ``scipy.ndimage.gaussian_filter(x, 1)``."""
    return _filtered(x, _gaussians)


@needs(40)
def smooth(x: np.ndarray) -> np.ndarray:
    """The Gaussian of the median."""
    return _filtered(x, _medians, _gaussians)


def _gaussians(x: np.ndarray, places: list[int]) -> np.ndarray:
    for axis in places:
        n = x.shape[axis]
        lines = x.reshape(math.prod(x.shape[:axis]), n, math.prod(x.shape[axis + 1 :]))
        found = np.empty_like(lines)
        taps = np.pad(np.arange(n), RADIUS, mode="symmetric")
        before, _, after = lines.shape
        across = max(1, min(after, BLOCK // n))
        down = max(1, BLOCK // (n * across))
        for top in range(0, before, down):
            for left in range(0, after, across):
                part = np.s_[top : top + down, :, left : left + across]
                found[part] = _smoothed(lines[part].astype(np.float64)[:, taps], n)
        x = found.reshape(x.shape)
    return x


def _smoothed(padded: np.ndarray, n: int) -> np.ndarray:
    middle, *others = weights()
    total = padded[:, RADIUS : RADIUS + n] * middle
    both = np.empty_like(total)
    for away in range(RADIUS, 0, -1):
        np.add(padded[:, RADIUS - away : RADIUS - away + n], padded[:, RADIUS + away : RADIUS + away + n], out=both)
        both *= others[away - 1]
        total += both
    return total
