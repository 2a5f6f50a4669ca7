"""The work of unmix on the sums of a pass: who is a parent, and in what ratio, overall and block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import DType
from ..errors import InputRefused, number_of, printable
from ..settings import Settings
from .baked import Component, baked
from .candidates import EMA, short_names
from .cells import cell, unit
from .gram import Gram, Grams, grams
from .mixture import BEYOND, MISSING, Fit, coarser, eliminated, fit, noise
from .samples import sample

if TYPE_CHECKING:
    from ..layouts import Layout

Array = Any

_CONSTANT = 5.0  # standard errors within which a block has the overall ratio
_BLOCKWISE = 2e-3  # at least, and of a block whose ratios rounding bounds:
_BOUNDED = 2e-5
_ELEMENTS, _OF_EACH = 1 << 14, 1 << 12
"""Of a block, and of a tensor, that are looked at one by one."""
_TELLING = 64  # elements that tell whether a tensor is a mix by itself


@dataclass
class BlockMix:
    """Ratios of one block by candidate's number, their standard errors, what the best mix leaves: ``unexplained`` as a
    share of the block's spread, ``over_rounding`` as a multiple of the size of rounding."""

    ratios: dict[int, float]
    errors: dict[int, float]
    unexplained: float
    over_rounding: float
    tensors: int
    elements: int
    bounded: bool = False  # by rounding, element by element


class _Sums:
    """Of T tensors: ``products`` [T, n, n], and as arrays [T] the numbers of ``elements``, the energies of their
    ``spreads`` and of their rounding, and ``weights``: 1/(variance of rounding). The coarsest dtype of the mix and of
    the candidates ``rounded`` is what rounds."""

    def __init__(self, chosen: Sequence[Gram], count: int, rounded: Iterable[int]) -> None:
        self.products = np.array([each.products for each in chosen]).reshape(-1, count, count)
        sums = np.array([(each.elements, each.total, each.square) for each in chosen]).reshape(-1, 3)
        self.elements, totals, squares = sums.T
        self.spreads = (squares - totals**2 / self.elements).clip(0)
        counted = [0, *(i + 1 for i in rounded)]
        self.roundings = np.array(
            [noise(each.square, each.elements, [each.dtypes[at] for at in counted]) for each in chosen]
        )
        self.weights = self.elements / np.maximum(np.maximum(self.roundings, 1e-30 * squares), 1e-300)


class Part:
    """Sums over some tensors: ``plain`` Gram matrix, and ``weighted`` by 1/(variance of rounding) of each tensor, so
    that its residual is a number of elements where rounding is all that is left."""

    def __init__(self, chosen: Iterable[Gram], count: int, rounded: Iterable[int]) -> None:
        sums = _Sums(list(chosen), count, rounded)
        self.plain = sums.products.sum(axis=0)  # tensor by tensor: candidates with the same weights get the same sums
        self.weighted = (sums.weights[:, None, None] * sums.products).sum(axis=0)
        self.elements, self.tensors = int(sums.elements.sum()), len(sums.elements)
        self.spread, self.rounding = float(sums.spreads.sum()), float(sums.roundings.sum())

    def fit(self, keep: list[int]) -> Fit:
        return fit(self.weighted, self.elements, keep)

    def left(self, ratios: Array) -> float:
        """The residual as a share of the spread."""
        energy = max(float(ratios @ self.plain @ ratios), 0.0)
        return float((energy / self.spread) ** 0.5) if self.spread else 0.0

    def over_rounding(self, ratios: Array) -> float:
        return float((max(float(ratios @ self.weighted @ ratios), 0.0) / max(1, self.elements)) ** 0.5)

    def seen_from(self, i: int) -> Part:
        """The same of differences from candidate i instead of the mix."""
        found = copy(self)
        found.plain, found.weighted = (
            p - p[:, i][:, None] - p[i, :][None, :] + p[i, i] for p in (self.plain, self.weighted)
        )
        return found


class Work:
    """``opened`` are the mix and the files, ``ema`` those of them that have EMA weights, with these in the U-Net's
    place. Candidates have the numbers from 0 on. ``parts`` are components in files of their own; what the mix has of
    these is ``baked`` and none of ``tensors``."""

    def __init__(
        self, opened: Sequence[Checkpoint], ema: Sequence[Checkpoint], layout: Layout, settings: Settings,
        notes: list[str], *, parts: Sequence[Component] = (),
    ) -> None:  # fmt: skip
        self.opened, self.layout, self.settings = [*opened, *ema], layout, settings
        self.read: Grams = grams([*self.opened, *(part.renamed for part in parts)], layout, settings)
        self.count = len(self.opened) - 1
        self.names = [each.path for each in self.opened[1:]]
        self.averaged = range(len(opened) - 1, self.count)
        self.parts = [part.file.path for part in parts]
        short = short_names([*self.names, *self.parts])
        self.short, short_parts = short[: self.count], dict(zip(self.parts, short[self.count :], strict=True))
        self.rounded: list[int] = []  # candidates that were rounded after the merge, to a coarser dtype than the mix
        self._commonest: dict[int, DType | None] = {}
        self.notes = [*notes, *self.read.notes]
        finite = self.read.finite(self.notes)
        self.baked = baked(parts, self.opened[0], layout, finite, self.count)
        self.short_baked = [short_parts[part.file.path] for part in self.baked]
        self.tensors, alone = self._of_models(finite)
        self.in_parts = len(finite) - len(self.tensors) - len(alone)
        if not self.tensors and self.read.tensors and not alone:
            raise InputRefused(
                f"{printable(opened[0].path)}: each weight holds NaN or Inf, in it or in a candidate", code="unlike"
            )
        if not self.tensors:
            raise InputRefused(
                f"{printable(opened[0].path)}: no candidate has a weight of the same name and shape", code="unlike"
            )
        alone += self.read.alone
        if alone:
            words = "is" if len(alone) == 1 else "are"
            self.notes.append(
                f"{number_of(len(alone), 'weight')} of the mix {words} in no candidate ('{printable(alone[0])}')"
            )

    def _of_models(self, tensors: Sequence[Gram]) -> tuple[list[Gram], list[str]]:
        """The tensors of which the models are looked at, without the parts; and names of those that no model has."""
        out = {part.component for part in self.baked}
        left = [each for each in tensors if self.layout.component(each.name) not in out]
        n = self.count
        found = [
            each._replace(products=each.products[:n, :n], has=each.has[:n], dtypes=each.dtypes[: n + 1])
            for each in left if any(each.has[:n])
        ]  # fmt: skip
        return found, [each.name for each in left if not any(each.has[:n])]

    def file(self, i: int) -> str:
        """The path of candidate i as a command takes it."""
        path = self.names[i].removesuffix(EMA) if i in self.averaged else self.names[i]
        return f"./{path}" if path.startswith("-") else path

    def commonest_dtype(self, source: int) -> DType | None:
        """Of the weights of the mix (source 0), or of candidate ``source`` − 1."""
        if source not in self._commonest:
            counts = Counter(dtype for each in self.tensors if (dtype := each.dtypes[source]) is not None)
            self._commonest[source] = max(counts, key=counts.__getitem__) if counts else None
        return self._commonest[source]

    def block_of(self, name: str) -> str:
        if not self.layout.blocks:
            return "all"
        return self.layout.block(name) or "BASE"

    def part(
        self, keep: Sequence[int], chosen: Iterable[Gram] | None = None, rounded: Iterable[int] | None = None
    ) -> Part:
        """Of the tensors that all of the candidates ``keep`` have."""
        given = self.tensors if chosen is None else chosen
        counted = self.rounded if rounded is None else rounded
        return Part((each for each in given if all(each.has[i] for i in keep)), self.count, counted)

    def has_all(self, i: int, others: Sequence[int]) -> bool:
        """Whether candidate i has each weight that one of the others has."""
        return all(each.has[i] for each in self.tensors if any(each.has[j] for j in others))

    def stored(self, source: int, name: str) -> TensorInfo:
        """The tensor of file ``source`` (0: the mix) that the mix calls ``name``."""
        return self.read.tables[source][name]

    def layers(self, by_block: dict[str, BlockMix]) -> list[dict[str, Any]]:
        """What the best mix of its block leaves of each weight: ``name``, ``block``, ``elements``, ``unexplained`` and
        ``over_rounding`` as those of a block."""
        chosen = [each for each in self.tensors if self.block_of(each.name) in by_block]
        sums, blocks = _Sums(chosen, self.count, self.rounded), [self.block_of(each.name) for each in chosen]
        ratios = np.array([array_of(by_block[block].ratios, self.count) for block in blocks])
        left = np.einsum("ti,tij,tj->t", ratios, sums.products, ratios).clip(0)
        shares = np.sqrt(np.divide(left, sums.spreads, out=np.zeros_like(left), where=sums.spreads > 0))
        over = np.sqrt(left * sums.weights / sums.elements)
        found = [
            {"name": each.name, "block": block, "elements": each.elements, "unexplained": own, "over_rounding": beside}
            for each, block, own, beside in zip(chosen, blocks, shares.tolist(), over.tolist(), strict=True)
        ]
        return found

    # ---- who

    def usable(self, notes: list[str]) -> list[int]:
        """The candidates, of identical ones only the first."""
        identical: dict[int, list[int]] = {}
        usable: list[int] = []
        for i in range(self.count):
            if not any(each.has[i] for each in self.tensors):
                notes.append(f"{self.short[i]} has no weight of the mix and was left out")
                continue
            twin = next((j for j in usable if self._distance(i, j) == 0.0), None)
            if twin is None:
                usable.append(i)
            else:
                identical.setdefault(twin, []).append(i)
        for i, others in identical.items():
            names = " and ".join(self.short[j] for j in others)
            notes.append(f"{names} has the same weights as {self.short[i]}, which stands for both")
        return usable

    def _distance(self, i: int, j: int) -> float | None:
        """Σ(Cᵢ − Cⱼ)² over the weights that they share with the mix; None when one has weights that the other lacks."""
        if any(each.has[i] != each.has[j] for each in self.tensors):
            return None
        return sum(each.products[i, i] - 2 * each.products[i, j] + each.products[j, j] for each in self.tensors)

    def parents(self, usable: list[int]) -> list[int]:
        """Who explains something: of the whole model, or of some block.

        Candidates in a coarser dtype than the mix are taken as they are stored. Where that leaves more than rounding,
        they may be casts of the true parents: then their rounding counts too, but only that of parents. A cast that
        explains nothing must not hide what is left.
        """
        parents = self._parents(usable)
        coarse = [i for i in usable if any(coarser(each.dtypes[i + 1], each.dtypes[0]) for each in self.tensors)]
        if not coarse or all(mix.over_rounding <= BEYOND for mix in self.by_block(parents).values()):
            return parents
        self.rounded = coarse
        while self.rounded:
            casts = self._parents(usable)
            unused = [i for i in self.rounded if i not in casts]
            if not unused:
                return casts
            self.rounded = [i for i in self.rounded if i in casts]
        return parents

    def _parents(self, usable: list[int]) -> list[int]:
        together = [i for i in usable if self.part(usable).elements or i == usable[0]]
        whole = self.part(together)
        if not whole.elements:  # no tensor that all have: one after the other
            together = [max(usable, key=lambda i: sum(each.elements for each in self.tensors if each.has[i]))]
            whole = self.part(together)
        biased = bool(self.rounded)
        parents, _ = eliminated(whole.weighted, whole.elements, together, biased=biased)
        mostly = self._mostly_explained(parents)
        for chosen in self.blocks.values():
            here = [i for i in usable if any(each.has[i] for each in chosen)]
            part = self.part(here, chosen)
            if part.elements and here:
                more, fitted = eliminated(part.weighted, part.elements, here, biased=biased)
                strong = [i for i in more if abs(fitted.ratios[i]) > max(10 * fitted.errors[i], 0.01)]
                # What is missing here, or lost by casts, pulls at all that is near it.
                if biased or (mostly and fitted.residual > MISSING * part.elements):
                    strong = [i for i in strong if i in parents or _halves(part, more, i, fitted)]
                parents += [i for i in strong if i not in parents and not self._same_there(i, parents, chosen)]
        return sorted(parents)

    def _mostly_explained(self, parents: list[int]) -> bool:
        """Whether nothing is missing from most blocks."""
        parts = [self.part(parents, chosen) for chosen in self.blocks.values()]
        explained = [part.over_rounding(part.fit(parents).ratios) <= BEYOND for part in parts if part.elements]
        return 2 * sum(explained) > len(self.blocks)

    def _same_there(self, i: int, parents: Sequence[int], chosen: Sequence[Gram]) -> bool:
        """Whether a parent has the same weights as candidate i in these tensors."""
        return any(
            sum(each.products[i, i] - 2 * each.products[i, j] + each.products[j, j] for each in chosen) == 0.0
            for j in parents if j != i
        )  # fmt: skip

    @cached_property
    def blocks(self) -> dict[str, list[Gram]]:
        """The tensors by block, in the layout's order."""
        by_name: dict[str, list[Gram]] = {}
        for each in self.tensors:
            by_name.setdefault(self.block_of(each.name), []).append(each)
        order = {block: number for number, block in enumerate(self.layout.blocks)}
        return dict(sorted(by_name.items(), key=lambda item: order.get(item[0], len(order))))

    # ---- how much

    def by_block(self, parents: list[int]) -> dict[str, BlockMix]:
        overall = self.part(parents).fit(parents).ratios
        found = {}
        for block, chosen in self.blocks.items():
            keep = [i for i in parents if any(each.has[i] for each in chosen)]
            part = self.part(keep, chosen)
            if not part.elements or not keep:
                continue
            ratios, errors = self._block_ratios(part, keep, overall)
            full, wrong = array_of(ratios, self.count), part
            found[block] = BlockMix(
                {i: ratios.get(i, 0.0) for i in parents}, {i: errors.get(i, 0.0) for i in parents},
                wrong.left(full), wrong.over_rounding(full), part.tensors, part.elements,
            )  # fmt: skip
        return found

    def _block_ratios(self, part: Part, keep: list[int], overall: Array) -> tuple[dict[int, float], dict[int, float]]:
        """Candidates with the same weights there share one ratio, as they do overall."""
        groups: list[list[int]] = []
        for i in keep:
            plain = part.plain
            home = next((g for g in groups if plain[i, i] - 2 * plain[i, g[0]] + plain[g[0], g[0]] == 0.0), None)
            if home is None:
                groups.append([i])
            else:
                home.append(i)
        fitted = part.fit([group[0] for group in groups])
        ratios, errors = {}, {}
        for group in groups:
            share = float(sum(overall[i] for i in group))
            for number, i in enumerate(group):
                own = float(overall[i]) / share if abs(share) > 1e-6 else float(number == 0)
                ratios[i] = float(fitted.ratios[group[0]]) * own
                errors[i] = float(fitted.errors[group[0]]) * abs(own)
        return ratios, errors

    def sharpened(self, parents: list[int], by_block: dict[str, BlockMix]) -> None:
        """Narrow the ratios of blocks by the bounds of rounding, where a block is one rounded sum of the parents."""
        for block, mix in by_block.items():
            if mix.over_rounding**2 > MISSING:
                continue
            keep = [i for i in parents if mix.ratios[i] or mix.errors[i]]
            taken = [
                (tensor, units) for tensor in sample(self, keep, _ELEMENTS, _OF_EACH, [block])
                if (units := unit(tensor.mix, tensor.dtype)) is not None
            ]  # fmt: skip
            if len(keep) < 2 or not taken:
                continue
            inputs = np.stack([np.concatenate([tensor.inputs[i] for tensor, _ in taken]) for i in keep])
            goal = np.concatenate([tensor.mix for tensor, _ in taken])
            units = np.concatenate([units for _, units in taken])
            found = cell(goal, inputs, units, np.array([mix.ratios[i] for i in keep]))
            if found is None or not found.errors.max() < max(mix.errors.values()):
                continue
            mix.ratios.update(zip(keep, map(float, found.ratios), strict=True))
            mix.errors.update(zip(keep, map(float, found.errors), strict=True))
            mix.bounded = True

    def mixed_by_layer(self, parents: list[int], blocks: Sequence[str]) -> bool:
        """Whether each tensor of these blocks by itself is a mix of the parents, with any ratios, but for rounding."""
        if len(parents) < 2:
            return False
        for each in (each for block in blocks for each in self.blocks[block] if each.elements >= _TELLING):
            part = self.part(parents, [each])
            if not part.elements or part.over_rounding(part.fit(parents).ratios) ** 2 > MISSING:
                return False
        return True

    def main(self, parents: list[int], by_block: dict[str, BlockMix]) -> tuple[Fit, set[str]]:
        """The ratios of the model, and the blocks that have others: of all blocks together, or of the network's where
        VAE or text encoder differ."""
        apart: set[str] = set()
        whole = self.part(parents).fit(parents)
        for without in ((), ("VAE",), ("VAE", "BASE")):
            part = self.part(
                parents, [each for block, chosen in self.blocks.items() if block not in without for each in chosen]
            )
            if not part.elements:
                continue
            main = _pooled(part.fit(parents), parents, [mix for block, mix in by_block.items() if block not in without])
            apart = {block for block, mix in by_block.items() if not _agrees(mix, main, parents)}
            if apart <= set(without):
                return main, apart
        return whole, {block for block, mix in by_block.items() if not _agrees(mix, whole, parents)}


def _halves(part: Part, several: list[int], i: int, fitted: Fit) -> bool:
    """Whether the candidate i takes away at least half of the energy that the others leave."""
    others = [j for j in several if j != i]
    return not others or 2 * fitted.residual <= part.fit(others).residual


def _pooled(main: Fit, parents: Sequence[int], blocks: Sequence[BlockMix]) -> Fit:
    """The mean of the blocks that rounding bounds, where they agree; weighted by their errors."""
    bounded = [mix for mix in blocks if mix.bounded]
    if not bounded:
        return main
    ratios, errors = main.ratios.copy(), main.errors.copy()
    for i in parents:
        own, wrong = (np.array([getattr(mix, name)[i] for mix in bounded]) for name in ("ratios", "errors"))
        if not (wrong > 0).all() or np.ptp(own) > _BLOCKWISE:
            return main
        ratios[i], errors[i] = np.average(own, weights=wrong**-2.0), wrong.min()
    ratios[list(parents)] /= ratios[list(parents)].sum()
    return replace(main, ratios=ratios, errors=errors)


def _agrees(mix: BlockMix, main: Fit, parents: Sequence[int]) -> bool:
    least = _BOUNDED if mix.bounded else _BLOCKWISE
    return all(
        abs(mix.ratios[i] - main.ratios[i])
        <= max(_CONSTANT * (mix.errors[i] ** 2 + float(main.errors[i]) ** 2) ** 0.5, least)
        for i in parents
    )


def array_of(ratios: dict[int, float], count: int) -> Array:
    """Ratios by candidate as an array [count]."""
    return np.array([ratios.get(i, 0.0) for i in range(count)])
