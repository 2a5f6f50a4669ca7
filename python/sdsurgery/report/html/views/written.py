"""The page of a verb that writes a checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ....errors import number_of
from ...progress import human_bytes
from ..elements import Cell, Column, Content, Markup, as_json, element, facts, heat, notes, signed, table, text
from ..page import Section, View

if TYPE_CHECKING:
    from ....surgery.report import Report

KIND = "Report"


def view(found: Report) -> View:
    name = os.path.basename(found.output) if found.output else f"{found.verb} without an output"
    counts = ", ".join(f"{count:,} {action}" for action, count in found.counts.items() if count)
    done = "Would be" if found.dry_run else "Was"
    first = [
        element("p", text(found.formula, 2000), class_="formula") if found.formula else "",
        facts([
            ("output", found.output or ""),
            ("size", f"{human_bytes(found.bytes_written)}, family {found.family}"),
            ("tensors", counts),
            ("SHA-256", _digest(found.output_sha256)),
            ("AutoV2", _digest(found.output_sha256 and found.output_sha256[:10])),
            ("SHA-256 of the tensor data", _digest(found.body_sha256)),
            ("AutoV3", _digest(found.body_sha256 and found.body_sha256[:12])),
            ("time", f"{found.seconds:.2f} s" if found.seconds is not None and not found.dry_run else ""),
            ("NaN or Inf in the inputs", _odd(found.nonfinite)),
            ("did not fit the dtype", _odd(found.overflow)),
            ("dropped", ", ".join(f"{count:,} × {reason}" for reason, count in found.dropped.items())),
        ]),
        notes(found.notes),
    ]  # fmt: skip
    return View(name, f"{done} written by {found.verb}.", first, [
        Section("Inputs", _inputs(found)),
        Section("Ratios by block", _blocks(found)),
        Section("Recipe", as_json("the recipe", found.recipe)),
        Section("Adapters", as_json("what became of every module", found.adapters)),
        Section("Every tensor", _tensors(found)),
        Section("Missing and left over", _names(found)),
    ])  # fmt: skip


def _digest(value: str | None) -> Content:
    return element("span", value, class_="digest") if value else ""


def _odd(found: dict[str, int]) -> str:
    return f"{number_of(sum(found.values()), 'value')} in {number_of(len(found), 'tensor')}" if found else ""


def _inputs(found: Report) -> Markup:
    digests = [*found.sha256, *[None] * len(found.inputs)]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rows = [
        [letters[at] if at < len(letters) else str(at + 1), path, digests[at] or ""]
        for at, path in enumerate(found.inputs)
    ]
    return table("The inputs", [Column("input", "text"), Column("file", "name"), Column("SHA-256", "name")], rows)


def _ratios(row: dict[str, Any]) -> dict[str, float]:
    """A merged tensor's numbers by name; those of a list by the inputs' letters."""
    found: dict[str, float] = {}
    for name, value in (row.get("ratios") or {}).items():
        if isinstance(value, tuple | list):
            found.update({f"{name} {chr(ord('A') + at)}": float(each) for at, each in enumerate(value)})
        else:
            found[name] = float(value)
    return found


def _blocks(found: Report) -> Markup:
    """The ratios of each block: a mean where a rule sets some of its tensors apart."""
    from ....layouts import get as layout_named

    sums: dict[str, dict[str, list[float]]] = {}
    for row in found.tensors:
        for name, value in _ratios(row).items():
            sums.setdefault(row.get("block") or "-", {}).setdefault(name, []).append(value)
    names = list(dict.fromkeys(name for each in sums.values() for name in each))
    if not names:
        return Markup()
    order = {block: at for at, block in enumerate(layout_named(found.family).blocks)}
    blocks = sorted(sums, key=lambda block: order.get(block, len(order)))
    values = [[_mean(sums[block].get(name)) for name in names] for block in blocks]
    return heat("Ratios", blocks, names, values, shade=signed, shown=lambda v: f"{v:.4g}")


def _mean(values: list[float] | None) -> float | None:
    if not values:
        return None
    return values[0] if min(values) == max(values) else sum(values) / len(values)


def _tensors(found: Report) -> Markup:
    if not found.tensors:
        return Markup()
    numbers = list(dict.fromkeys(name for row in found.tensors for name in _ratios(row)))
    rows: list[list[Cell | str]] = []
    for row in found.tensors:
        own = _ratios(row)
        cells = [Cell(f"{own[n]:.4g}", own[n], abs(own[n])) if n in own else Cell("") for n in numbers]
        shape = "×".join(map(str, row["shape"]))
        rows.append(
            [row["name"], row["action"], row["dtype"], shape, row.get("block") or "", *cells, row["note"] or ""]
        )
    words = [Column(title, "text") for title in ("action", "dtype", "shape", "block")]
    columns = [Column("tensor", "name"), *words, *map(Column, numbers), Column("why", "text")]
    inner = table("What became of every tensor", columns, rows)
    return element("details", element("summary", f"{len(rows):,} tensors, to sort and filter"), inner)


def _names(found: Report) -> Markup:
    rows = [
        *([name, f"missing in {path}; A's was kept"] for path, names in found.missing.items() for name in names),
        *([name, f"only in {path}; not added"] for path, names in found.only_there.items() for name in names),
        *([name, f"{count:,} NaN or Inf in the inputs"] for name, count in found.nonfinite.items()),
        *([name, f"{count:,} values did not fit the dtype"] for name, count in found.overflow.items()),
    ]
    if not rows:
        return Markup()
    inner = table("Tensors that not all inputs have, or with odd values",
                  [Column("tensor", "name"), Column("what", "text")], rows)  # fmt: skip
    return element("details", element("summary", number_of(len(rows), "tensor")), inner)
