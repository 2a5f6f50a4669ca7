"""A picture of a comparison: relative L2 distance, blocks × kinds of layer. Needs matplotlib (``sdsurgery[plot]``)."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from ..layouts.kinds import KINDS
from . import pictures

if TYPE_CHECKING:
    from ..surgery.compare import Comparison


def write(comparison: Comparison, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the picture, whole or not at all.

    Raises UsageError as ``pictures.check`` and when there is nothing to show, RunFailed when it cannot be written.
    """
    target = pictures.check(path, overwrite=overwrite)
    pictures.write_whole(target, _picture(comparison, os.fspath(path)), overwrite=overwrite)


def cells(comparison: Comparison) -> tuple[list[tuple[str, ...]], list[str], list[list[float | None]]]:
    """What the picture shows: rows (component, block), columns (kinds of layer) and the relative L2 distance in each.

    None where there are no such weights, Inf where the distance is undefined because A's are zero.
    """
    groups = comparison.by("component", "block", "kind")
    found = {key: likeness.relative_l2 for key, likeness in groups.items() if likeness.weights}
    rows = list(dict.fromkeys(key[:2] for key in found))
    columns = [kind for kind in KINDS if any(key[2] == kind for key in found)]

    def cell(key: tuple[str, ...]) -> float | None:
        value = found.get(key)
        return math.inf if key in found and value is None else value

    return rows, columns, [[cell((*row, column)) for column in columns] for row in rows]


def _picture(comparison: Comparison, path: str) -> bytes:
    rows, columns, values = cells(comparison)
    if not rows:
        raise UsageError("no picture: the two files have no weights in common", code="unlike")
    figure = pictures.new_figure(2.6 + 0.85 * len(columns), 1.7 + 0.3 * len(rows), layout="constrained")
    axes: Any = figure.add_subplot()
    norm = pictures.log_norm(value for line in values for value in line if value and value < math.inf)
    texts = [["" if value is None else rounded_text(value) for value in line] for line in values]
    image = pictures.show_values(axes, values, texts, norm, 7)
    _mark_absent(axes, values)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [" ".join(part for part in row if part != "-") for row in rows])
    axes.tick_params(labelsize=8)
    names = [pictures.drawable(printable(os.path.basename(path), 60)) for path in (comparison.a, comparison.b)]
    figure.suptitle("How far B is from A, by block and kind of layer", fontsize=10)
    axes.set_title(f"A {names[0]}\nB {names[1]}", fontsize=8, parse_math=False)
    axes.set_xlabel("=  equal      ∞  A is zero there      hatched  no such weights", fontsize=7)
    pictures.scale_bar(figure, image, axes, "‖A − B‖ / ‖A‖")
    return pictures.encoded(figure, path)


def _mark_absent(axes: Any, values: list[list[float | None]]) -> None:
    """Hatch the cells of which there are no weights; those that are equal stay white."""
    from matplotlib.patches import Rectangle

    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value is None:
                cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.95", edgecolor="0.8", hatch="////", linewidth=0)
                axes.add_patch(cell)


def rounded_text(value: float) -> str:
    """A distance in a cell: ``=`` for 0, ``∞`` where it is undefined."""
    return "=" if value == 0 else "∞" if value == math.inf else f"{value:.2g}"
