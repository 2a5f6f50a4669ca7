"""What pictures and pages share: where they may be written, and that they appear whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterable
from typing import Any, Literal

from .. import _native
from ..errors import RunFailed, UsageError, printable
from ..files import native_errors, target_path

SUFFIXES = (".png", ".svg", ".pdf")


def check(path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """The resolved target of a picture. UsageError when matplotlib is missing, and as ``target``."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a picture needs matplotlib, which is not installed: pip install matplotlib")
    return target(path, SUFFIXES, overwrite, "the picture")


def target(path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool, what: str) -> str:
    """The resolved target of ``what``. UsageError when its name has none of the suffixes (so that no model is replaced
    by mistake), or it can't be written there."""
    if not os.fspath(path).lower().endswith(suffixes):
        wanted = " or ".join(suffixes)
        raise UsageError(f"{what}: '{printable(os.fspath(path))}' should end in {wanted}", code="bad_output")
    found = target_path(path, overwrite)
    if not os.path.isdir(os.path.dirname(found)):
        raise UsageError(f"{what}: there is no folder '{printable(os.path.dirname(found))}'", code="bad_output")
    return found


def write_whole(path: str, data: bytes, *, overwrite: bool) -> None:
    """Write a file of these bytes, whole or not at all. RunFailed when it can't be written."""
    with native_errors(RunFailed):
        sink = _native.Sink(os.fsencode(path), len(data))
        try:
            sink.write(0, data)
            sink.commit(overwrite, True)
        finally:
            sink.abort()  # does nothing after the commit


# ---- matplotlib


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Any:
    """A figure of that size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def encoded(figure: Any, path: str, *, fit: bool = False) -> bytes:
    """The figure in the form that the path's suffix names, the same bytes every time. ``fit``: as large as what is
    drawn, so that no text is cut."""
    import matplotlib

    form = os.path.splitext(path)[1][1:].lower()
    when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sdsurgery"}):
        figure.savefig(data, format=form, dpi=120, metadata=when, bbox_inches="tight" if fit else None)
    return data.getvalue()


def drawable(text: str) -> str:
    """A text in a picture, with escapes for what the font lacks."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in known else f"\\u{ord(c):04x}" for c in text)


def log_norm(distances: Iterable[float]) -> Any:
    """Colours by the logarithm, over one decade at least: what differs equally is not shown as far apart."""
    from matplotlib.colors import LogNorm

    found = list(distances)
    high = max(found, default=1.0)
    return LogNorm(min([*found, high / 10]), high, clip=True)


def scale_bar(figure: Any, image: Any, axes: Any, label: str) -> None:
    """The bar of an image's colours, with ticks at plain numbers: 1, 2 and 5 of every decade, or whole decades where
    there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    few = image.norm.vmax / image.norm.vmin <= 1000
    bar = figure.colorbar(image, ax=axes, label=label)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.tick_params(labelsize=7)


def show_values(axes: Any, values: list[list[float | None]], texts: list[list[str]], norm: Any, size: float) -> Any:
    """An image of positive numbers (everything else stays white) with a text in each cell."""
    import math

    from matplotlib import colormaps

    shown = [[value if value and value < math.inf else math.nan for value in line] for line in values]
    image = axes.imshow(shown, norm=norm, cmap=colormaps["viridis"].with_extremes(bad="white"), aspect="auto")
    for y, line in enumerate(texts):
        for x, text in enumerate(line):
            dark = not math.isnan(shown[y][x]) and norm(shown[y][x]) < 0.6
            color = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=size, color=color, parse_math=False)
    return image
