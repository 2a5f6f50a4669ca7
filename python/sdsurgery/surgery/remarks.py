"""What unmix says besides ratios: candidates that are the mix or mixes, components of a candidate, what is left."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import printable
from ..report.command import runnable
from .cells import unit
from .gram import Gram
from .mixture import MISSING, coarser, eliminated, noise
from .samples import sample

if TYPE_CHECKING:
    from ..dtypes import DType
    from .parentage import Work


CAUSES = (
    "a parent is missing, or the model was trained further, or an adapter is baked into it, or the merge was not a "
    "weighted sum"
)
NOT_A_SUM = ("the merge was not a weighted sum", "The ratios are those of the nearest sum")
"""Why more than rounding is left, and what the ratios are then, where the trace of a method says so."""
_RIGHT_ANGLE = 0.05
"""Cosine below which two directions count as independent."""
_SAMPLE = 1 << 12
"""Elements of a block that tell whether a candidate is the mix in another dtype."""
_NEARLY_ALL = 0.999


def of_candidates(work: Work, usable: Sequence[int], parents: Sequence[int]) -> tuple[list[str], bool]:
    """Notes on candidates, and whether the answer is the only one."""
    from .guesses import formula

    notes: list[str] = []
    but = f", but for its {' and '.join(part.component for part in work.baked)}" if work.baked else ""
    for i in usable:
        there = [each for each in work.tensors if each.has[i]]
        energy = sum(each.products[i, i] for each in there)
        rounding = sum(noise(each.square, each.elements, each.dtypes[i + 1 : i + 2]) for each in there)
        if energy == 0.0:
            more = len(work.opened[i + 1].tensors) - len(work.opened[0].tensors)
            pruned = f"; it has {more:,} more tensors, so the mix was pruned" if more > 0 else ""
            notes.append(f"{work.short[i]} has the weights of the mix{but}, bit for bit in value{pruned}")
        elif energy <= MISSING * rounding and (dtype := _cast_to(work, i)) is not None:
            notes.append(f"{work.short[i]} is this model in {dtype.name}{but}")
    if len(usable) < 3:
        return notes, True
    mixes = []  # with the sum of their ratios' sizes: of A, B and their mean that is 1 for the mean alone
    together = work.part(usable)
    for i in usable if together.elements else ():
        part = together.seen_from(i)
        keep, fitted = eliminated(part.weighted, part.elements, [j for j in usable if j != i])
        if part.over_rounding(fitted.ratios) ** 2 <= MISSING and not {i, *keep}.isdisjoint(parents):
            row = tuple(round(float(fitted.ratios[j]), 4) for j in keep)
            mix = formula(row, [work.short[j] for j in keep], False)
            mixes.append((round(float(np.abs(fitted.ratios).sum()), 3), i, f"{work.short[i]} is itself {mix}"))
    if not mixes:
        return notes, True
    notes.append(f"{min(mixes)[2]} to within rounding: the answer is not unique, and this is the shortest")
    return notes, False


def _cast_to(work: Work, i: int) -> DType | None:
    """The coarser dtype in which candidate i has the mix's values, rounded to nearest; None where it has others. Two
    fine-tunes can differ by less than fp8 rounds, so that the size of the difference alone shows no cast."""
    cast: DType | None = None
    near = total = 0
    for tensor in sample(work, [i], _SAMPLE, _SAMPLE):
        dtype = work.stored(i + 1, tensor.name).dtype
        steps, own = unit(tensor.mix, dtype), unit(tensor.mix, tensor.dtype)
        if steps is None or own is None:
            return None
        near += int((np.abs(tensor.inputs[i] - tensor.mix) <= 0.5 * (steps + own)).sum())
        total += len(tensor.mix)
        cast = dtype if coarser(dtype, tensor.dtype) else cast
    return cast if near >= _NEARLY_ALL * total else None


def of_rounding(work: Work) -> list[str]:
    """A note on parents that are coarser than the mix."""
    if not work.rounded:
        return []
    names = " and ".join(printable(work.short[i]) for i in work.rounded)
    return [
        f"{names} {'is' if len(work.rounded) == 1 else 'are'} in a coarser dtype than the mix, which was made of finer "
        "copies, or cast after the merge: the ratios may be off by more than their standard errors, and nothing "
        "smaller than that dtype's rounding shows"
    ]


def blocks(some: Sequence[str], count: int) -> str:
    """Which of the blocks, as `` in 2 of 27 blocks (IN01, VAE)``; nothing for all of them."""
    if len(some) == count:
        return ""
    return f" in {len(some)} of {count} blocks ({', '.join(some[:6])}{', …' if len(some) > 6 else ''})"


def bounded_above(
    work: Work, usable: Sequence[int], parents: Sequence[int], others: bool
) -> tuple[list[int], str]:  # fmt: skip
    """The parents whose ratios are upper bounds where something is missing, and the words for it: the base's alone
    where that is among them, which takes the share of what is missing. ``others``: whether nothing is missing from the
    other blocks, and the overall ratios are theirs."""
    if others:
        return [], "The overall ratios are those of the other blocks, where nothing is missing; here they may be less"
    base = _base(work, usable)
    if [base] == list(parents):
        return [base], (
            f"No other candidate has a share: the model descends from {printable(work.short[base])}, around which the "
            "others lie, or from a model near it"
        )
    if base in parents:
        return [base], (
            f"The ratio of {printable(work.short[base])}, around which the others lie, is an upper bound: it takes the "
            "share of what is missing. The others' ratios are near the truth if the merge was a weighted sum"
        )
    if base >= 0:
        return [], (
            f"{printable(work.short[base])}, around which the others lie, takes no share of what is missing: the "
            "ratios are near the truth if the merge was a weighted sum"
        )
    return list(parents), (
        "The ratios are upper bounds: without the missing parent its share is spread over the candidates. Add the "
        "model from which the family descends (the base) to the candidates, if it isn't there: it keeps the others' "
        "ratios near the truth"
    )


def _base(work: Work, usable: Sequence[int]) -> int:
    """The candidate around which the others lie at right angles, as fine-tunes do around their base; −1: none."""
    part = work.part(usable)
    if len(usable) < 3 or not part.elements:
        return -1
    found = []
    for i in usable:
        others = [j for j in usable if j != i]
        products = part.seen_from(i).plain[np.ix_(others, others)]
        sizes = np.sqrt(np.diag(products).clip(1e-300))
        found.append((float(np.abs(products / np.outer(sizes, sizes) - np.eye(len(others))).max()), i))
    return min(found)[1] if min(found)[0] < _RIGHT_ANGLE else -1


def of_components(work: Work, parents: Sequence[int]) -> list[str]:
    """Components that are a candidate's, unchanged."""
    by_component: dict[str, list[Gram]] = {}
    for each in work.tensors:
        by_component.setdefault(work.layout.component(each.name), []).append(each)
    if len(by_component) < 2:
        return []
    notes = []
    for component, chosen in by_component.items():
        same = [
            work.short[i] for i in range(work.count)
            if all(each.has[i] for each in chosen) and sum(each.products[i, i] for each in chosen) == 0.0
        ]  # fmt: skip
        if same and len(same) < work.count and len(parents) > 1:
            notes.append(f"{component} is that of {' and of '.join(same)}, unchanged")
        elif len(same) == work.count:
            notes.append(f"{component} is the same in all files")
    return notes


def of_ranks(ranks: Sequence[dict[str, Any]], path: str) -> list[str]:
    """What the ranks of the residual say of its origin. ``path``: of the mix."""
    low = [row for row in ranks if row["low"]]
    if 2 * len(low) < max(1, len(ranks)):
        return (
            ["what is left is of full rank where it was looked at: training, a parent or a method, not an adapter"]
            if ranks
            else []
        )
    most = max(row["rank"] for row in low)
    words = ["sdsurgery", "extract-lora", path, "OUT.safetensors", "--rank", str(most), "-o", "LORA.safetensors"]
    get_it_out = runnable(shlex.join(words))
    return [
        f"what is left is of low rank (at most {most}) in {len(low)} of {len(ranks)} layers looked at: an adapter is "
        f"baked into the model. Make OUT.safetensors by the command below, then `{get_it_out}` gets it out"
    ]
