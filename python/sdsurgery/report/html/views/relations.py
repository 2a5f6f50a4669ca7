"""The page of ``map``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...dendrogram import dendrogram
from ..drawing import svg
from ..elements import Markup, element, facts, heat, logarithmic, notes, tree
from ..page import Section, View

if TYPE_CHECKING:
    from ....surgery.relations import Matrix, Relations

KIND = "Relations"


def view(found: Relations) -> View:
    from ...formula import names_of

    short = dict(zip(found.files, names_of(found.files, 120), strict=True))
    drawn = dendrogram(found)
    numbers = {path: str(at) for at, path in enumerate(found.files, 1)}
    first = [
        facts([
            ("family", found.family),
            ("root", short[found.root]),
            ("clusters", [element("div", ", ".join(short[path] for path in group)) for group in found.clusters]),
            ("files", [element("div", f"{numbers[path]}  {path}") for path in found.files]),
        ]),
        notes(found.notes),
    ]  # fmt: skip

    def matrix(title: str, values: Matrix) -> Markup:
        rows = [f"{numbers[found.files[k]]}  {short[found.files[k]]}" for k in drawn.order]
        columns = [numbers[found.files[k]] for k in drawn.order]
        ordered = [[values[i][j] for j in drawn.order] for i in drawn.order]
        shade = logarithmic(v for line in values for v in line)
        return heat(title, rows, columns, ordered, shade=shade, shown=lambda v: "=" if v == 0 else f"{100 * v:.3g}")

    parts = [
        element("details", element("summary", name), matrix(f"{name}: distances in % of the norm", values))
        for name, values in {**found.components, **found.blocks}.items()
    ]
    links = {link["to"]: link for link in found.tree}
    children: dict[str, list[str]] = {}
    for link in found.tree:
        children.setdefault(link["from"], []).append(link["to"])

    def label(path: str) -> list[Markup]:
        link = links.get(path)
        if link is None or link["distance"] is None:
            return [element("b", short[path])]
        rank = f", by an adapter of rank {link['rank']}" if link["low"] else ""
        distance = [element("small", f"{100 * link['distance']:.3g} %{rank}")]
        return [element("b", short[path]), *distance]

    same = [
        element("li", f"the same {group['component']}: {', '.join(short[path] for path in group['files'])}")
        for group in found.identical
    ]
    return View(
        f"{len(found.files)} models", f"How far they are from each other, by {found.tensors:,} weights.", first,
        [
            Section("Distances", matrix("Distances in % of the norm; = is equal", found.distances)),
            Section("Dendrogram", svg(drawn, [f"{numbers[path]}  {short[path]}" for path in found.files])),
            Section("Who may descend from whom", [
                element("p", "The shortest tree that joins all, from the file around which the others lie most at "
                        "right angles: a guess, not a proof."), tree(found.root, children, label),
            ]),
            Section("Identical components", element("ul", same) if same else ""),
            Section("By component and block", parts),
        ],
    )  # fmt: skip
