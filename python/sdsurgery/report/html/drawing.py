"""A dendrogram as inline SVG. No font is measured: names stand to the right of it, where they may be long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .elements import Markup, element

if TYPE_CHECKING:
    from ..dendrogram import Dendrogram

_ROW, _WIDTH, _TOP, _GLYPH = 24, 300, 30, 8.5


def svg(drawn: Dendrogram, names: Sequence[str]) -> Markup:
    """``names`` by file; distances run from 0 at the names to the largest at the left."""
    longest = drawn.longest or 1.0

    def x(height: float) -> float:
        return 12 + (_WIDTH - 24) * (1 - height / longest)

    def y(row: float) -> float:
        return _TOP + 12 + _ROW * row

    bottom = y(len(drawn.order) - 1) + 12
    parts: list[Markup] = []
    for share, anchor in ((0.0, "middle"), (0.5, "middle"), (1.0, "start")):
        at = f"{x(share * longest):.1f}"
        parts.append(element("path", d=f"M{at} {_TOP - 8}V{bottom:.1f}", class_="grid"))
        text = f"{100 * share * longest:.3g} %"
        parts.append(element("text", text, x=at, y=str(_TOP - 14), text_anchor=anchor, class_="axis"))
    for (height, _), low, high in drawn.joins:
        path = f"M{x(low.height):.1f} {y(low.row):.1f}H{x(height):.1f}V{y(high.row):.1f}H{x(high.height):.1f}"
        parts.append(element("path", d=path))
    for row, k in enumerate(drawn.order):
        parts.append(element("text", names[k], x=str(_WIDTH), y=f"{y(row) + 4:.1f}"))
    width = _WIDTH + 16 + _GLYPH * max(map(len, names), default=0)
    drawing = element(
        "svg", element("title", "Dendrogram of the distances"), *parts, viewBox=f"0 0 {width:.0f} {bottom + 8:.0f}",
        width=f"{width:.0f}", height=f"{bottom + 8:.0f}", role="img",
    )  # fmt: skip
    return element("div", drawing, class_="scroll", tabindex="0", role="region", aria_label="Dendrogram")
