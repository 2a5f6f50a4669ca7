"""map: how far several models are from each other, what they share, and who may descend from whom."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..settings import Settings
from .common import Input, close_all, open_all
from .gram import Gram, OfGrams, grams, one_family
from .ranks import difference_rank

Matrix = list[list[float | None]]
_NEAR, _FAR, _GAP = 0.01, 0.5, 3.0
"""A link of the tree parts two clusters if it is longer than ``_GAP`` times the middle one of those above ``_NEAR``
(casts and copies that were hardly trained don't count), or than ``_FAR``: fine-tunes are 0.01 to 0.15 apart, strangers
1.4."""


@dataclass
class Relations(OfGrams):
    """What ``relations`` found of ``files``, in their order.

    ``distances[i][j]``: ‖Fᵢ − Fⱼ‖ over the weights that both share with the file ``origin``, divided by the norm of the
    origin's; None where they share none. ``components`` and ``blocks`` are such tables of parts. ``identical``: groups
    of files that have the same weights in a component. ``tree``: links (``from``, ``to``, ``distance``) of the shortest
    tree that joins all, away from ``root``, from which the others lie most at right angles: a guess at who descends
    from whom; with the ``rank`` of what the two differ by, of the ``full`` rank of that layer, and ``low``: whether
    it is an adapter's (None where they differ by no more than rounding, or by half of the norm or more).
    ``clusters``: what is left together when its long links are cut.
    """

    files: list[str]
    family: str
    origin: str
    distances: Matrix = field(default_factory=list)
    components: dict[str, Matrix] = field(default_factory=dict)
    blocks: dict[str, Matrix] = field(default_factory=dict)
    identical: list[dict[str, Any]] = field(default_factory=list)
    root: str = ""
    tree: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[list[str]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Relations of {len(self.files)} files: {len(self.clusters)} clusters>"

    def plot(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a picture (PNG, SVG or PDF, by the suffix) of the distances. See ``distances.write``."""
        from ..report import distances

        distances.write(self, path, overwrite=overwrite)


def relations(files: Sequence[Input], settings: Settings) -> Relations:
    """``sdsurgery.relations``."""
    if len(files) < 2:
        raise UsageError("a map needs at least two files", code="wrong_inputs")
    opened = open_all(files, settings, selective=True)
    try:
        origin = max(range(len(opened)), key=lambda k: (len(opened[k].tensors), -k))
        ours = one_family(opened, opened[origin])
        order = [origin, *(k for k in range(len(opened)) if k != origin)]
        read = grams([opened[k] for k in order], ours.layout, settings)
        place = {k: at - 1 for at, k in enumerate(order)}  # the origin's is −1
        found = Relations([each.path for each in opened], ours.layout.name, opened[origin].path, notes=read.notes)
        chosen = read.finite(found.notes)
        table = _Table(place, len(opened))
        found.passed(read, len(chosen))
        found.distances = table.matrix(chosen)
        for component, part in _grouped(chosen, ours.layout.component):
            found.components[component] = table.matrix(part)
            found.identical += _identical(component, found.components[component], found.files)
        ranks = {block: number for number, block in enumerate(ours.layout.blocks)}
        if ranks:
            blocks = _grouped(chosen, lambda name: ours.layout.block(name) or "BASE")
            for block, part in sorted(blocks, key=lambda item: ranks.get(item[0], len(ranks))):
                found.blocks[block] = table.matrix(part)
        _tree(found)
        for link in found.tree:
            first, second = (found.files.index(link[end]) for end in ("from", "to"))
            rank = None
            if link["distance"] is not None and 0 < link["distance"] < _FAR:
                tables = (read.tables[place[first] + 1], read.tables[place[second] + 1])
                rank = difference_rank((opened[first], opened[second]), tables, table.energies(chosen, first, second))
            link.update({name: getattr(rank, name, None) for name in ("rank", "full", "low")})
        return found
    finally:
        close_all(opened)


def _grouped(chosen: Sequence[Gram], group_of: Any) -> Iterator[tuple[str, list[Gram]]]:
    groups: dict[str, list[Gram]] = {}
    for each in chosen:
        groups.setdefault(group_of(each.name), []).append(each)
    yield from groups.items()


class _Table:
    """Distances of all pairs of files; ``place`` is a file's number in the Gram matrices, −1 for their origin."""

    def __init__(self, place: dict[int, int], count: int) -> None:
        self.place, self.count = place, count

    def matrix(self, chosen: Sequence[Gram]) -> Matrix:
        return [[self._distance(chosen, i, j) for j in range(self.count)] for i in range(self.count)]

    def energies(self, chosen: Sequence[Gram], first: int, second: int) -> list[tuple[float, Gram]]:
        """Of each weight that both have Σ(difference²)."""
        i, j = self.place[first], self.place[second]
        found = []
        for each in chosen:
            if (i >= 0 and not each.has[i]) or (j >= 0 and not each.has[j]):
                continue
            p = each.products
            one, other = (p[i, i] if i >= 0 else 0.0), (p[j, j] if j >= 0 else 0.0)
            found.append((one + other - 2 * (p[i, j] if i >= 0 and j >= 0 else 0.0), each))
        return found

    def _distance(self, chosen: Sequence[Gram], first: int, second: int) -> float | None:
        energies = self.energies(chosen, first, second)
        if not energies:
            return None
        apart, square = sum(energy for energy, _ in energies), sum(each.square for _, each in energies)
        return (max(float(apart), 0.0) / square) ** 0.5 if square else 0.0


def _identical(component: str, matrix: Matrix, files: Sequence[str]) -> list[dict[str, Any]]:
    groups: list[list[int]] = []
    for k in range(len(files)):
        home = next((group for group in groups if matrix[group[0]][k] == 0.0), None)
        if home is None:
            groups.append([k])
        else:
            home.append(k)
    return [{"component": component, "files": [files[k] for k in group]} for group in groups if len(group) > 1]


def _tree(found: Relations) -> None:
    """The shortest tree (Prim, 1957) from the file from which the others lie most at right angles to each other, as
    fine-tunes do around their base, and its clusters."""
    count = len(found.files)

    def far(i: int, j: int) -> float:
        distance = found.distances[i][j]
        return float("inf") if distance is None else distance

    def cosines(k: int) -> float:
        others = [j for j in range(count) if 0 < far(k, j) < float("inf")]
        pairs = [(i, j) for i in others for j in others if i < j and far(i, j) < float("inf")]
        sums = (far(k, i) ** 2 + far(k, j) ** 2 - far(i, j) ** 2 for i, j in pairs)
        return sum(abs(twice) / (2 * far(k, i) * far(k, j)) for twice, (i, j) in zip(sums, pairs, strict=True))

    root = min(range(count), key=lambda k: (cosines(k), sum(far(k, j) for j in range(count))))
    joined, links = [root], []
    while len(joined) < count:
        length, i, j = min((far(i, j), i, j) for i in joined for j in range(count) if j not in joined)
        joined.append(j)
        links.append((length, i, j))
    found.root = found.files[root]
    found.tree = [
        {"from": found.files[i], "to": found.files[j], "distance": None if length == float("inf") else length}
        for length, i, j in links
    ]
    lengths = sorted(length for length, _, _ in links if length >= _NEAR)
    cut = min(_GAP * lengths[len(lengths) // 2], _FAR) if lengths else _FAR
    clusters: dict[int, list[int]] = {root: [root]}
    home = {root: root}
    for length, i, j in links:
        home[j] = j if length > cut else home[i]
        clusters.setdefault(home[j], []).append(j)
    found.clusters = [[found.files[k] for k in sorted(group)] for group in clusters.values()]
