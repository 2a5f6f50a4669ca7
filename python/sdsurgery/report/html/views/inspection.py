"""The page of ``inspect``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...progress import human_bytes
from ..elements import Cell, Column, Markup, as_json, element, facts, heat, lines, notes, signed, table, text, tree
from ..page import Section, View

if TYPE_CHECKING:
    from ....surgery.inspect import Inspection

KIND = "Inspection"


def view(found: Inspection) -> View:
    first = [
        facts([
            ("file", found.path),
            ("format", f"{found.format}, {human_bytes(found.bytes)}"),
            ("family", f"{found.family} ({found.title})"),
            ("identified by", found.evidence or ""),
            ("EMA weights", found.ema),
            ("encoded weights", ", ".join(f"{count} {kind}" for kind, count in found.encodings.items())),
            *((name, element("span", digits, class_="digest")) for name, digits in found.hashes.items()),
            ("absent", ", ".join(found.absent)),
        ]),
        notes(found.notes),
    ]  # fmt: skip
    recipe = as_json("the recipe", found.recipe)
    adapter = "" if found.adapter is None else lines("\n".join(found.adapter.lines(True)))
    return View(os.path.basename(found.path), f"{found.total.tensors:,} tensors, family {found.family}.", first, [
        Section("What it is made of", _ancestry(found)),
        Section("Components", _components(found)),
        Section("Adapter", adapter),
        Section("Recipe", recipe),
        Section("Metadata", _metadata(found)),
        Section("Tensors", _tensors(found)),
    ])  # fmt: skip


def _ancestry(found: Inspection) -> list[Markup]:
    """The formula of each generation as a tree from the file to the oldest parents, and its block weights."""
    made = {each.name: each for each in found.ancestry}
    if not made:
        return []
    children = {each.name: [origin.name for origin in each.inputs] for each in found.ancestry}
    digests = {origin.name: origin.sha256 for each in found.ancestry for origin in each.inputs}

    def label(name: str) -> list[Markup]:
        parts = [element("b", name)]
        if name in made:
            by = made[name].tool
            parts += [text(f" = {made[name].formula}"), *([element("small", by)] if by != "sdsurgery" else [])]
        elif digests.get(name):
            parts.append(element("small", element("span", (digests[name] or "")[:10], class_="digest")))
        return parts

    maps = [
        heat(f"{each.name}: {ratio} by block", [ratio], list(weights), [list(weights.values())], shade=signed,
             shown=lambda v: f"{v:.3g}")
        for each in found.ancestry for ratio, weights in each.blocks.items()
    ]  # fmt: skip
    return [tree(found.ancestry[0].name, children, label), *maps]


def _components(found: Inspection) -> Markup:
    rows = [
        [name, Cell(f"{part.tensors:,}", part.tensors), Cell(f"{part.parameters:,}", part.parameters),
         Cell(human_bytes(part.bytes), part.bytes, part.bytes / max(1, found.total.bytes)),
         ", ".join(f"{dtype} {count:,}" for dtype, count in part.dtypes.items())]
        for name, part in {**found.components, "total": found.total}.items()
    ]  # fmt: skip
    columns = [Column("component", "text"), Column("tensors"), Column("parameters"), Column("size"),
               Column("dtypes", "text")]  # fmt: skip
    return table("Components; the bar is the share of the file's tensor data", columns, rows)


def _metadata(found: Inspection) -> Markup:
    if not found.metadata:
        return Markup()
    rows = [[key, _long(value)] for key, value in found.metadata.items()]
    return table("The file's metadata", [Column("key", "name"), Column("value", "name")], rows)


def _long(value: str) -> Markup | str:
    if len(value) <= 200:
        return value
    return element("details", element("summary", f"{len(value):,} characters"), lines(value, 20_000))


def _tensors(found: Inspection) -> Markup:
    if not found.tensors:
        return Markup()
    most = max(row.bytes for row in found.tensors) or 1
    rows = [
        [
            row.name,
            row.dtype,
            "×".join(map(str, row.shape)),
            row.component,
            Cell(f"{row.bytes:,}", row.bytes, row.bytes / most),
        ]
        for row in found.tensors
    ]
    words = [Column(title, "text") for title in ("dtype", "shape", "component")]
    return table("The tensors that were asked for", [Column("tensor", "name"), *words, Column("bytes")], rows)
