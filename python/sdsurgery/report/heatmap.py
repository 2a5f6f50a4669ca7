"""A picture of a comparison: relative L2 distance, blocks × kinds of layer. Needs matplotlib (``sdsurgery[plot]``)."""

from __future__ import annotations

import importlib.util
import io
import math
import os
from typing import TYPE_CHECKING, Any

from .. import _native
from ..errors import RunFailed, UsageError, printable
from ..files import native_errors, target_path
from ..layouts.kinds import KINDS

if TYPE_CHECKING:
    from ..surgery.compare import Comparison


def check(path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """The resolved target. UsageError when matplotlib is missing, the name is no .png, or it can't be written there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a picture needs matplotlib, which is not installed: pip install matplotlib")
    if not os.fspath(path).lower().endswith(".png"):
        raise UsageError(f"the picture is a PNG: '{printable(os.fspath(path))}' should end in .png", code="bad_output")
    target = target_path(path, overwrite)
    if not os.path.isdir(os.path.dirname(target)):
        raise UsageError(f"the picture: there is no folder '{printable(os.path.dirname(target))}'", code="bad_output")
    return target


def write(comparison: Comparison, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the picture, whole or not at all.

    Raises UsageError as ``check`` and when there is nothing to show, RunFailed when the file cannot be written.
    """
    target = check(path, overwrite=overwrite)
    picture = _png(comparison)
    with native_errors(RunFailed):
        sink = _native.Sink(os.fsencode(target), len(picture))
        try:
            sink.write(0, picture)
            sink.commit(overwrite, True)
        finally:
            sink.abort()  # does nothing after the commit


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


def _png(comparison: Comparison) -> bytes:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows, columns, values = cells(comparison)
    if not rows:
        raise UsageError("no picture: the two files have no weights in common", code="unlike")
    distances = [value for line in values for value in line if value and value < math.inf]
    # At least one decade, so that layers that differ equally are not shown as far apart.
    high = max(distances, default=1.0)
    norm = LogNorm(min(*distances, high / 10, high), high, clip=True)

    figure = Figure(figsize=(2.6 + 0.85 * len(columns), 1.7 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    shown = [[value if value and value < math.inf else math.nan for value in line] for line in values]
    image = axes.imshow(shown, norm=norm, cmap=colormaps["viridis"].with_extremes(bad="white"), aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            dark = not math.isnan(shown[y][x]) and norm(shown[y][x]) < 0.6
            axes.text(x, y, _text(value), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [" ".join(part for part in row if part != "-") for row in rows])
    axes.tick_params(labelsize=8)
    names = [printable(os.path.basename(path), 60) for path in (comparison.a, comparison.b)]
    axes.set_title(f"A {names[0]}\nB {names[1]}", fontsize=8, parse_math=False)
    figure.colorbar(image, ax=axes, label="‖A − B‖ / ‖A‖")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return "=" if value == 0 else "∞" if value == math.inf else f"{value:.2g}"
