"""The page of ``compare``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ....errors import number_of
from ...heatmap import cells, rounded_text
from ..elements import Cell, Column, Markup, element, facts, heat, logarithmic, notes, table
from ..page import Section, View

if TYPE_CHECKING:
    from ....surgery.compare import Comparison
    from ....surgery.likeness import Likeness

KIND = "Comparison"
_NUMBERS = (Column("tensors"), Column("equal"), Column("cosine"), Column("‖A−B‖/‖A‖"), Column("max |A−B|"))


def view(found: Comparison) -> View:
    total = found.total
    names = [os.path.basename(path) for path in (found.a, found.b)]
    verdict = f"{found.verdict[:1].upper()}{found.verdict[1:]}."
    first = facts([
        ("A", f"{found.a} (family {found.a_family})"),
        ("B", f"{found.b} (family {found.b_family})"),
        ("distance ‖A−B‖/‖A‖", _number(total.relative_l2)),
        ("cosine", "" if total.cosine is None else f"{total.cosine:.6f}"),
        ("largest |A−B|", f"{total.difference_max:.4g}" if total.weights else ""),
        ("NaN or Inf", _odd(total)),
        ("only in A", _count(found.only_in_a)),
        ("only in B", _count(found.only_in_b)),
        ("other shape", _count(found.shape_differs)),
        ("other dtype", _count(found.dtype_differs)),
    ])  # fmt: skip
    return View(f"{names[0]} and {names[1]}", verdict, [first, notes(found.notes)], [
        Section("What the adapters change", _effects(found)),
        Section("By component and block", _groups(found)),
        Section("Where they differ", _map(found)),
        Section("Every tensor", _tensors(found)),
        Section("In one file only, or in another form", _names(found)),
    ])  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _odd(total: Likeness) -> str:
    found = total.a_nonfinite or total.b_nonfinite
    return f"{total.a_nonfinite:,} in A, {total.b_nonfinite:,} in B, left out of the numbers" if found else ""


def _count(names: Iterable[str]) -> str:
    count = len(list(names))
    return number_of(count, "tensor") if count else ""


def _cells(likeness: Likeness, longest: float) -> list[Cell]:
    distance, cosine = likeness.relative_l2, likeness.cosine
    return [
        Cell(f"{likeness.tensors:,}", likeness.tensors),
        Cell(f"{likeness.equal:,}", likeness.equal),
        Cell("–" if cosine is None else f"{cosine:.6f}", cosine),
        Cell(_number(distance) or "–", distance, distance / longest if distance and longest else 0.0),
        Cell(f"{likeness.difference_max:.3g}" if likeness.weights else "–", likeness.difference_max),
    ]


def _longest(groups: Iterable[Likeness]) -> float:
    return max((each.relative_l2 or 0.0 for each in groups), default=0.0)


def _groups(found: Comparison) -> Markup:
    groups = found.by("component", "block")
    longest = _longest(groups.values())
    rows = [[component, block, *_cells(each, longest)] for (component, block), each in groups.items()]
    columns = [Column("component", "text"), Column("block", "text"), *_NUMBERS]
    return table("Distances by component and block; the bar is the distance beside the largest", columns, rows)


def _effects(found: Comparison) -> Markup:
    """Of two adapters; nothing of other files."""
    if found.effects is None:
        return Markup()
    layers = found.effects.layers
    longest = _longest(each.likeness for each in layers)
    rows = [
        [each.name, each.component, str(each.a), str(each.b), *_cells(each.likeness, longest)[2:4]] for each in layers
    ]
    odd = {
        "changed by A only": found.effects.only_in_a,
        "changed by B only": found.effects.only_in_b,
    } | {f"not compared: {reason}": [name] for name, reason in found.effects.left_out.items()}
    rows += [[name, what, "", "", Cell("–", None), Cell("–", None)] for what, names in odd.items() for name in names]
    words = [Column(name, "text") for name in ("component", "A", "B")]
    columns = [Column("module", "name"), *words, Column("cosine"), Column("‖ΔA−ΔB‖/‖ΔA‖")]
    return table("What both adapters make of the weights at strength 1", columns, rows)


def _map(found: Comparison) -> Markup:
    rows, columns, values = cells(found)
    if not rows:
        return Markup()
    names = [" ".join(part for part in row if part != "-") for row in rows]
    shade = logarithmic(v for line in values for v in line if v is not None and v < math.inf)
    caption = "‖A−B‖/‖A‖ by block and kind of layer, on a logarithmic scale; = is equal, ∞ undefined"
    return heat(caption, names, columns, values, shade=shade, shown=rounded_text)


def _tensors(found: Comparison) -> Markup:
    longest = _longest(each.likeness for each in found.tensors)
    rows = []
    for each in found.tensors:
        dtype = each.a_dtype if each.a_dtype == each.b_dtype else f"{each.a_dtype}/{each.b_dtype}"
        _, _, *numbers = _cells(each.likeness, longest)
        shape = "×".join(map(str, each.shape))
        rows.append(
            [each.name, each.place.block, each.place.kind, dtype, shape, "equal" if each.equal else "", *numbers]
        )
    words = [Column(name, "text") for name in ("block", "kind", "dtype", "shape", "bits")]
    columns = [Column("tensor", "name"), *words, *_NUMBERS[2:]]
    inner = table("The tensors that both files have in one shape", columns, rows)
    return (
        element("details", element("summary", f"{len(rows):,} tensors, to sort and filter"), inner) if rows else inner
    )


def _names(found: Comparison) -> Markup:
    rows = [
        *([name, "only in A", ""] for name in found.only_in_a),
        *([name, "only in B", ""] for name in found.only_in_b),
        *([name, "shape", f"{a} in A, {b} in B"] for name, (a, b) in found.shape_differs.items()),
        *([name, "dtype", f"{a} in A, {b} in B"] for name, (a, b) in found.dtype_differs.items()),
    ]
    if not rows:
        return Markup()
    columns = [Column("tensor", "name"), Column("what", "text"), Column("details", "text")]
    inner = table("Tensors that are in one file only, or of another shape or dtype", columns, rows)
    return element("details", element("summary", f"{len(rows):,} tensors"), inner)
