"""The page of ``unmix``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..elements import Cell, Column, Markup, element, facts, fixed, heat, lines, notes, signed, table
from ..page import Section, View

if TYPE_CHECKING:
    from ....surgery.unmix import Unmixing

KIND = "Unmixing"


def view(found: Unmixing) -> View:
    from ....surgery.candidates import short_names
    from ...command import runnable

    short = dict(zip(found.candidates, short_names(found.candidates, 120), strict=True))
    proof = found.proof
    tools = ", ".join(proof["tools"]) if proof else ""
    first = [
        element("p", f"{'=' if found.complete else '≈'} {_formula(found)}", class_="formula"),
        facts([
            ("model", f"{found.path} (family {found.family})"),
            ("proof", proof["text"] + (f"; the arithmetic of {tools}" if tools else "") if proof else "not asked for"),
            ("unexplained", f"{found.unexplained:.3%} of the weights' spread; rounding leaves {found.rounding:.3%}"),
            ("upper bounds", ", ".join(short[path] for path in found.upper_bounds)),
            ("block weights", found.preset or ("the same in all blocks" if found.constant else "differ by block")),
            *((component, f"that of {path}") for component, path in found.parts.items()),
            ("explain nothing", ", ".join(short[path] for path in found.left_out)),
            ("unique", "yes" if found.unique else "no: another mix of the candidates is as near"),
            ("condition number", f"{found.condition:.3g}"),
        ]),
        notes(found.notes),
    ]  # fmt: skip
    return View(
        os.path.basename(found.path), f"What it was mixed from: {found.tensors:,} weights, {len(short)} candidates.",
        first,
        [
            Section("Ratios", _ratios(found, short)),
            Section("Made by" if found.complete else "The nearest merge", lines(runnable(found.command))),
            Section("Ratios by block", _blocks(found, short)),
            Section("What is left", _residuals(found)),
            Section("Rank of what is left", _ranks(found)),
            Section("Every layer", _layers(found)),
        ],
    )  # fmt: skip


def _formula(found: Unmixing) -> str:
    """The formula; weights by block that are long are in the table."""
    parts = found.formula.split("; ")
    short = [part for part in parts if " by block: " not in part]
    if len(found.formula) - len("; ".join(short)) <= 160:
        return found.formula
    return "; ".join([short[0], "other ratios by block, see below", *short[1:]])


def _ratios(found: Unmixing, short: dict[str, str]) -> Markup:
    most = max((abs(ratio) for ratio in found.ratios.values()), default=1.0) or 1.0
    rows = [
        [short[path], Cell(fixed(ratio, 5), ratio, abs(ratio) / most), Cell(f"± {found.errors[path]:.1g}"), path]
        for path, ratio in found.ratios.items()
    ]
    columns = [Column("parent", "text"), Column("ratio"), Column("standard error"), Column("file", "name")]
    return table("Overall ratios, which sum to 1", columns, rows)


def _blocks(found: Unmixing, short: dict[str, str]) -> Markup:
    parents = list(found.ratios)
    values = [[ratios[path] for path in parents] for ratios in found.blocks.values()]
    caption = "Ratio of each parent by block"
    return heat(
        caption, list(found.blocks), [short[p] for p in parents], values, shade=signed, shown=lambda v: fixed(v, 4)
    )


def _residuals(found: Unmixing) -> Markup:
    most = max((row["unexplained"] for row in found.block_residuals.values()), default=0.0) or 1.0
    rows = [
        [
            block,
            Cell(f"{left['unexplained']:.3%}", left["unexplained"], left["unexplained"] / most),
            Cell(f"{left['over_rounding']:.2f}", left["over_rounding"]),
            Cell(f"{max(found.block_errors[block].values(), default=0.0):.1g}"),
        ]
        for block, left in found.block_residuals.items()
    ]
    columns = [Column("block", "text"), Column("unexplained"), Column("× rounding"), Column("largest standard error")]
    caption = "What the best mix leaves of each block, as a share of its spread and as a multiple of rounding"
    return table(caption, columns, rows)


def _ranks(found: Unmixing) -> Markup:
    if not found.residual_ranks:
        return Markup()
    rows = [
        [row["name"], Cell(f"{row['rank']} of {row['full']}", row["rank"], row["rank"] / max(1, row["full"])),
         Cell(f"{row['energy']:.1%}", row["energy"]), Cell(f"{row['strength']:.2%}", row["strength"])]
        for row in found.residual_ranks
    ]  # fmt: skip
    columns = [Column("layer", "name"), Column("rank"), Column("energy"), Column("beside the layer's norm")]
    return table("Numerical rank of the residual in the layers with most left", columns, rows)


def _layers(found: Unmixing) -> Markup:
    if not found.layers:
        return Markup()
    most = max(row["unexplained"] for row in found.layers) or 1.0
    rows = [
        [row["name"], row["block"], Cell(f"{row['elements']:,}", row["elements"]),
         Cell(f"{row['unexplained']:.3%}", row["unexplained"], row["unexplained"] / most),
         Cell(f"{row['over_rounding']:.2f}", row["over_rounding"])]
        for row in found.layers
    ]  # fmt: skip
    columns = [Column("layer", "name"), Column("block", "text"), Column("elements"), Column("unexplained"),
               Column("× rounding")]  # fmt: skip
    inner = table("What the best mix of its block leaves of each weight", columns, rows)
    return element("details", element("summary", f"{len(rows):,} weights, to sort and filter"), inner)
