"""A picture of a map: distances of all pairs of files as a heat map, beside a dendrogram. Needs matplotlib."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import pictures
from .dendrogram import dendrogram

if TYPE_CHECKING:
    from ..surgery.relations import Relations

_CELL = 0.42  # inches
_TREE = 1.9


def write(found: Relations, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the picture, whole or not at all. UsageError as ``pictures.check``, RunFailed when it can't be written."""
    target = pictures.check(path, overwrite=overwrite)
    pictures.write_whole(target, _picture(found, os.fspath(path)), overwrite=overwrite)


def _picture(found: Relations, path: str) -> bytes:
    from .formula import names_of

    drawn, count = dendrogram(found), len(found.files)
    size = _CELL * count
    figure: Any = pictures.new_figure(_TREE + size + 1.0, size + 1.1)
    height, width = size + 1.1, _TREE + size + 1.0
    places = [(0.25, 0.55, _TREE - 0.3, size), (_TREE, 0.55, size, size)]
    tree, axes = (figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in places)

    values = [[found.distances[i][j] for j in drawn.order] for i in drawn.order]
    percent = [[None if v is None else 100 * v for v in line] for line in values]
    texts = [["–" if v is None else "=" if v == 0 else f"{v:.3g}" for v in line] for line in percent]
    norm = pictures.log_norm(v for line in percent for v in line if v)
    image = pictures.show_values(axes, percent, texts, norm, 6.5)
    names = [pictures.drawable(name) for name in names_of(found.files, 120)]
    numbers = [str(k + 1) for k in drawn.order]
    axes.set_xticks(range(count), numbers)
    axes.xaxis.tick_top()
    axes.yaxis.tick_right()
    axes.set_yticks(range(count), [f"{k + 1}  {names[k]}" for k in drawn.order])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(labelsize=8, length=0)
    bar = figure.add_axes((_TREE / width, 0.32 / height, size / width, 0.1 / height))
    figure.colorbar(image, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7)
    bar.set_xlabel("distance in % of the norm", fontsize=8)
    bar.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.xaxis.set_minor_formatter(lambda value, _: "")

    for (high, _), low, other in drawn.joins:
        xs = [100 * x for x in (low.height, high, high, other.height)]
        tree.plot(xs, [low.row, low.row, other.row, other.row], color="black", linewidth=1)
    tree.set_ylim(count - 0.5, -0.5)
    tree.set_xlim(100 * (drawn.longest or 0.01) * 1.03, 0)
    tree.set_yticks([])
    tree.tick_params(labelsize=7)
    for side in ("left", "right", "top"):
        tree.spines[side].set_visible(False)
    return pictures.encoded(figure, path, fit=True)
