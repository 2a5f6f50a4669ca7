"""Traces of methods that are not sums, in what the best mix leaves: what single elements show and products can't.

One tensor of each block is looked at, of a large one every so many rows. A trace counts where most of them have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..adapters.arrays import array
from ..definitions.conversions import store, widen
from .cells import unit
from .mixture import MISSING

if TYPE_CHECKING:
    from ..dtypes import DType
    from .gram import Gram
    from .parentage import BlockMix, Work

Array = Any

_LARGEST, _SMALLEST = 1 << 22, 1 << 10  # elements of a tensor that is looked at
_LOOKED_AT = 1 << 17  # of its elements
_OTHERS = 3  # candidates beside the parents: the nearest ones
_FEWEST = 64
"""Elements of a tensor that must tell a trace from a sum."""
_MOST = 0.5
"""Share of the tensors that must have a trace."""
_ALL = 0.999
_SPIKE = 4.0
"""As many times as often as its neighbours a value must occur, to be no coincidence; and at least in this share:"""
_SHARE = 0.02
_EDGE = 0.05
_CLEAR = 0.95
_SORTED, _MIXED = 0.9, 0.7
"""How often what was kept is larger than what was dropped: nearly always by size, half of the time at random."""
_EVEN = 1.25


class Trace(NamedTuple):
    """In one tensor: ``kind``, a key of ``KINDS``; the candidates it is about; ``share`` of the elements; ``ratio``."""

    kind: str
    candidates: tuple[int, ...]
    share: float
    ratio: float | None = None


KINDS = {
    "rows": "whole rows are those of {names}, unchanged ({share} of them from {first}): rows were swapped, as "
    "tensor-sum does",
    "elements": "every element is that of {names}, unchanged ({share} from {first}): elements were chosen, not mixed",
    "dropped": "differences from {first} were dropped at random, as DARE does: {share} of them",
    "trimmed": "small differences from {first} were dropped, as TIES and top-k do: {share} of them",
    "elected": "of differences from {first} with both signs, {share} of the elements, only those of one sign were "
    "added, as TIES without trimming does",
    "norm": "the norm was kept: a slerp of {both} at the ratio {ratio}",
    "clamp": "values were clamped between those of {both}: {share} of them lie at a bound",
}
"""What is said of each kind of trace."""


@dataclass(frozen=True)
class Fingerprint:
    """A trace of most tensors: ``tensors`` of ``looked_at`` have it. ``share`` and ``ratio`` are medians."""

    kind: str
    candidates: list[str]
    share: float
    ratio: float | None
    tensors: int
    looked_at: int
    text: str


class _Seen(NamedTuple):
    """A tensor [rows, columns] of the mix and of candidates; ``stored`` are these rounded to the mix's dtype, ``mean``
    is the best mix, ``units`` the mix's steps."""

    mix: Array
    inputs: dict[int, Array]
    stored: dict[int, Array]
    mean: Array
    units: Array
    parents: tuple[int, ...]


def fingerprints(work: Work, parents: Sequence[int], by_block: Mapping[str, BlockMix]) -> list[Fingerprint]:
    """The traces, for a mix that is no plain sum. Looked for are, in this order, the kinds of ``KINDS``; of a tensor
    only the first counts."""
    found: list[Trace] = []
    seen = 0
    for tensor in _tensors(work, parents, by_block):
        seen += 1
        found += next(filter(None, (look(tensor) for look in _LOOKS)), [])[:1]
    groups: dict[tuple[str, tuple[int, ...]], list[Trace]] = {}
    for trace in found:
        groups.setdefault((trace.kind, tuple(sorted(trace.candidates))), []).append(trace)
    shown = [
        _together(work, traces, seen) for traces in groups.values() if len(traces) >= max(1, _MOST * seen)
    ]  # fmt: skip
    return sorted(shown, key=lambda each: list(KINDS).index(each.kind))


def _together(work: Work, traces: Sequence[Trace], seen: int) -> Fingerprint:
    kind, candidates = traces[0].kind, traces[0].candidates
    share = float(np.median([trace.share for trace in traces]))
    ratios = [trace.ratio for trace in traces if trace.ratio is not None]
    ratio = float(np.median(ratios)) if ratios else None
    names = [work.short[i] for i in candidates]
    words = {"names": " or ".join(names), "both": " and ".join(names), "first": names[0], "share": f"{share:.0%}"}
    text = KINDS[kind].format(**words, ratio="" if ratio is None else f"{ratio:.4g}")
    if kind in ("dropped", "trimmed", "elected") and ratio is not None:
        text += f"; what was kept is multiplied by {ratio:.4g}"
    return Fingerprint(kind, [work.names[i] for i in candidates], share, ratio, len(traces), seen, text)


def _tensors(work: Work, parents: Sequence[int], by_block: Mapping[str, BlockMix]) -> Iterator[_Seen]:
    """The largest tensor of each block that isn't too large."""
    distance = [sum(float(each.products[i, i]) for each in work.tensors) for i in range(work.count)]
    others = sorted((i for i in range(work.count) if i not in parents), key=lambda i: distance[i])[:_OTHERS]
    for block, chosen in work.blocks.items():
        mix = by_block.get(block)
        fitting = [each for each in chosen if _SMALLEST <= each.elements <= _LARGEST and _readable(work, each, parents)]
        if mix is None or not fitting:
            continue
        each = max(fitting, key=lambda each: each.elements)
        info = work.stored(0, each.name)
        values = _rows(work, 0, each)
        units = unit(values, info.dtype)
        if units is None or not np.isfinite(values).all():
            continue
        keep = [i for i in (*parents, *others) if each.has[i] and not work.stored(i + 1, each.name).parts]
        inputs = {i: _rows(work, i + 1, each) for i in keep}
        if not all(np.isfinite(own).all() for own in inputs.values()):
            continue
        mean = sum(mix.ratios[i] * inputs[i].astype(np.float64) for i in parents if mix.ratios[i])
        if float(((values - mean) ** 2).sum()) <= MISSING * float((units.astype(np.float64) ** 2).sum()) / 12:
            continue  # nothing is missing here
        stored = {i: _rounded(own, info.dtype) for i, own in inputs.items()}
        yield _Seen(values, inputs, stored, mean, units, tuple(parents))


def _rounded(values: Array, dtype: DType) -> Array:
    """Values as the dtype stores them."""
    codes, _ = store(values, np.isfinite(values), dtype, "default")
    return widen(codes, dtype, False)


def _rows(work: Work, source: int, each: Gram) -> Array:
    """A tensor as rows along its first axis, every so many of them; one row of a vector."""
    values = array(work.opened[source], work.stored(source, each.name))
    if values.ndim < 2:
        return values.reshape(1, -1)
    return values.reshape(values.shape[0], -1)[:: -(-each.elements // _LOOKED_AT)].copy()


def _readable(work: Work, each: Gram, parents: Sequence[int]) -> bool:
    return not work.stored(0, each.name).parts and all(
        each.has[i] and not work.stored(i + 1, each.name).parts for i in parents
    )


# ---- the traces


def _swapped(tensor: _Seen) -> list[Trace]:
    """Every element is a candidate's, where these differ; and no single candidate's."""
    equal = {i: tensor.mix == own for i, own in tensor.stored.items()}
    best = sorted(equal, key=lambda i: -int(equal[i].sum()))[:2]
    if len(best) < 2:
        return []
    first, second = best
    told = np.abs(tensor.inputs[first] - tensor.inputs[second]) > 2 * tensor.units
    if told.sum() < _FEWEST or (equal[first] | equal[second])[told].mean() < _ALL:
        return []
    share = float(equal[first][told].mean())
    if not _SHARE < share < 1 - _SHARE:
        return []
    whole = [row for row, there in zip(equal[first], told, strict=True) if there.any()]
    by_row = [float(row[there].mean()) for row, there in zip(equal[first], told, strict=True) if there.any()]
    rows = len(whole) > 1 and np.mean([min(part, 1 - part) < 1 - _ALL for part in by_row]) >= _ALL
    return [Trace("rows" if rows else "elements", (first, second), share)]


def _dropped(tensor: _Seen) -> list[Trace]:
    """The mix is a candidate's, bit for bit, much more often than it is a step or two away, where the best mix lies
    elsewhere; then by what was dropped: anything, or what is small."""
    found = []
    for base, own in tensor.inputs.items():
        steps = np.abs(tensor.mix - tensor.stored[base]) / tensor.units
        told = np.abs(tensor.mean - own) >= 4 * tensor.units
        count = int(told.sum())
        if count < _FEWEST:
            continue
        zero = tensor.mix == tensor.stored[base]
        share = float(zero[told].mean())
        chance = float(((steps > 0) & (steps <= 3))[told].mean()) / 6
        if not max(_SHARE, _SPIKE * chance) < share < 1 - _SHARE:
            continue
        others = [i for i in tensor.parents if i != base]
        sizes = [np.abs(tensor.inputs[i] - own) for i in others]
        differs = np.max(sizes, axis=0) >= 4 * tensor.units
        size = np.max([each / max(float(each.mean()), 1e-30) for each in sizes], axis=0)  # the same share of each
        share = float(zero[differs].mean())
        above = _rank_share(size[differs & ~zero], size[differs & zero])
        ratio = None
        if len(others) == 1:
            d, m = ((x - own)[differs & ~zero].astype(np.float64) for x in (tensor.inputs[others[0]], tensor.mix))
            ratio = float(d @ m / (d @ d))
        changes = [(tensor.inputs[i] - own)[differs] for i in others]
        if above > _SORTED:
            found.append((share, Trace("trimmed", (base,), share, ratio)))
        elif above < _MIXED and _at_random(zero[differs], changes):
            found.append((share, Trace("dropped", (base,), share, ratio)))
    return [trace for _, trace in sorted(found, reverse=True, key=lambda each: each[0])]


def _elected(tensor: _Seen) -> list[Trace]:
    """The mix is one candidate and, of weighted differences of the parents from it, those that have the sign of their
    sum, or of most: their sum, or their mean (arXiv 2306.01708, without trimming). The weights are known from where
    all have one sign."""
    for base in tensor.inputs:
        own, others = tensor.inputs[base].astype(np.float64).ravel(), [i for i in tensor.parents if i != base]
        if len(others) < 2:
            continue
        changes = np.stack([tensor.inputs[i].astype(np.float64).ravel() - own for i in others])
        signs, change = np.sign(changes), tensor.mix.ravel() - own
        alike = np.abs(signs.sum(axis=0)) == len(others)
        split = (changes > 0).any(axis=0) & (changes < 0).any(axis=0)
        moved = (np.abs(change) > tensor.units.ravel()).mean()
        if min(split.sum(), alike.sum()) < _FEWEST * len(others) or moved < 1 - _CLEAR:
            continue
        weights = np.linalg.lstsq(changes[:, alike] @ changes[:, alike].T, changes[:, alike] @ change[alike])[0]
        for votes in (weights @ changes, np.sign(weights) @ signs):
            agree = (signs * np.sign(weights)[:, None] == np.sign(votes)) & (signs != 0)
            total, share = weights @ (changes * agree), weights @ agree / (weights.sum() or 1.0)
            even = np.ptp(weights) < 0.01 * abs(weights.mean())
            for added, ratio in ((total / np.where(share == 0, 1, share), weights.sum()), (total, weights.mean())):
                if (np.abs(change - added) <= tensor.units.ravel()).mean() > _CLEAR:
                    known = added is not total or even
                    return [Trace("elected", (base,), float(split.mean()), float(ratio) if known else None)]
    return []


def _at_random(dropped: Array, changes: Sequence[Array]) -> bool:
    """Whether elements were dropped whatever the signs of the changes are to each other."""
    for at, one in enumerate(changes):
        for other in changes[at + 1 :]:
            agree = one * other > 0
            if min(agree.sum(), (~agree).sum()) < _FEWEST:
                continue
            shares = sorted((float(dropped[agree].mean()), float(dropped[~agree].mean())))
            if shares[1] > _EVEN * shares[0]:
                return False
    return True


def _rank_share(high: Array, low: Array) -> float:
    """How often an element of ``high`` is above one of ``low``."""
    if not high.size or not low.size:
        return 0.5
    return float(np.searchsorted(np.sort(low), high).mean() / low.size)


def _norm(tensor: _Seen) -> list[Trace]:
    """Of two parents: a sum whose ratios add up to more than one, those of a slerp, leaves only rounding."""
    if len(tensor.parents) != 2:
        return []
    first, second = tensor.parents
    a, b, m = (x.astype(np.float64).ravel() for x in (tensor.inputs[first], tensor.inputs[second], tensor.mix))
    aa, bb, ab = float(a @ a), float(b @ b), float(a @ b)
    if not aa * bb > 0:
        return []
    theta = float(np.arccos(min(1.0, ab / (aa * bb) ** 0.5)))
    if theta == 0 or aa * bb - ab * ab <= 0:
        return []
    p, q = np.linalg.solve([[aa, ab], [ab, bb]], [float(a @ m), float(b @ m)])
    rounding = float((tensor.units**2).sum()) / 12
    free = float(((m - p * a - q * b) ** 2).sum())
    plain = float(((m - tensor.mean.ravel()) ** 2).sum())
    sines = np.sin(theta) * np.array([p, q])
    if free > 2 * rounding or plain < 4 * rounding or not (np.abs(sines) <= 1).all():
        return []
    angles = np.arcsin(sines) / theta
    if p + q <= 1 or abs(angles.sum() - 1) > 0.01:
        return []
    return [Trace("norm", (first, second), 1.0, float(angles[1]))]


def _clamped(tensor: _Seen) -> list[Trace]:
    """Elements between two candidates' are one sum, and those at a bound are where that sum lies beyond it."""
    items = list(tensor.stored.items())
    for at, (first, a) in enumerate(items):
        for second, b in items[at + 1 :]:
            low, high = np.minimum(a, b), np.maximum(a, b)
            told = high - low >= 4 * tensor.units
            if told.sum() < _FEWEST or not ((tensor.mix >= low) & (tensor.mix <= high)).all():
                continue
            bound = (tensor.mix == low) | (tensor.mix == high)
            share = float(bound[told].mean())
            if _EDGE < share < 1 - _EDGE and _is_sum_beyond(tensor, told & ~bound, told & bound, low, high):
                return [Trace("clamp", (first, second), share)]
    return []


def _is_sum_beyond(tensor: _Seen, inside: Array, bound: Array, low: Array, high: Array) -> bool:
    """Whether one sum of the candidates gives the elements ``inside``, and lies at or beyond the bounds elsewhere."""
    x = np.stack([own[inside].astype(np.float64) for own in tensor.inputs.values()])
    ratios = np.linalg.lstsq(x @ x.T, x @ tensor.mix[inside].astype(np.float64), rcond=1e-12)[0]
    left = np.abs(tensor.mix[inside] - ratios @ x) / tensor.units[inside]
    total = ratios @ np.stack([own[bound].astype(np.float64) for own in tensor.inputs.values()])
    units = tensor.units[bound]
    beyond = (total <= low[bound] + units) | (total >= high[bound] - units)
    return bool((left <= 1).mean() > _CLEAR and beyond.mean() > _CLEAR)


_LOOKS: tuple[Callable[[_Seen], list[Trace]], ...] = (_swapped, _clamped, _dropped, _elected, _norm)
