"""Elements of a page: markup in which every text is escaped, tables, heat maps, bars and trees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from ...errors import printable
from ..warnings import is_warning

LONGEST = 400
"""Characters of a text that are shown; what is left out of a longer one is counted."""
_VOID = {"meta", "br"}
_STEPS = 10


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Iterable["Content"]


def text(value: object, limit: int = LONGEST) -> Markup:
    """Any text as HTML: control, format and bidi characters become visible escapes, then what HTML knows is escaped."""
    return value if isinstance(value, Markup) else Markup(escape(printable(value, limit), quote=True))


def joined(content: Content) -> Markup:
    """Texts are escaped, markup is not."""
    if isinstance(content, str):
        return text(content)
    return Markup("".join(joined(each) for each in content))


def element(tag: str, /, *content: Content, **attributes: str | None) -> Markup:
    """``element("td", "text", class_="number", data_v="3")``. An attribute that is None is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value, 10_000)}"'
        for key, value in attributes.items() if value is not None
    )  # fmt: skip
    if tag in _VOID:
        return Markup(f"<{tag}{shown}>")
    return Markup(f"<{tag}{shown}>{joined(content)}</{tag}>")


def lines(value: str, limit: int = 100_000) -> Markup:
    """A text of ours of several lines, as ``<pre>``."""
    cut = value[:limit].split("\n")
    more = [f"… (+{len(value) - limit} characters)"] if len(value) > limit else []
    return element("pre", element("code", Markup("\n".join(text(line, limit) for line in [*cut, *more]))))


def as_json(what: str, value: object) -> Markup:
    """A value in JSON types, to unfold; nothing for an empty one."""
    if not value:
        return Markup()
    shown = lines(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    return element("details", element("summary", f"{what} as JSON"), shown)


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """Names and values; those without a value are left out."""
    rows = [(element("dt", name), element("dd", value)) for name, value in pairs if value]
    return element("dl", rows, class_="facts") if rows else Markup()


def notes(given: Iterable[str]) -> Markup:
    """Notes of a result; warnings stand out."""
    rows = []
    for note in given:
        if is_warning(note):
            shown = [element("strong", "Warning: "), text(note.partition(": ")[2], 1000)]
            rows.append(element("li", shown, class_="warning"))
        else:
            rows.append(element("li", text(note, 1000)))
    return element("ul", rows, class_="notes") if rows else Markup()


# ---- tables


class Cell(NamedTuple):
    """A cell of a table: what it shows, the ``number`` by which it is sorted, its length as a ``bar`` (0 … 1)."""

    shown: Content
    number: float | None = None
    bar: float | None = None


class Column(NamedTuple):
    """``kind``: number, text or name (of a tensor or file, in a fixed-width font)."""

    title: str
    kind: str = "number"


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table that can be sorted and filtered where scripts run. Rows are of cells, or of what a cell shows."""
    head = [
        element("th", column.title, scope="col", class_="number" if column.kind == "number" else "text")
        for column in columns
    ]
    body = [element("tr", (_cell(c, column) for c, column in zip(row, columns, strict=True))) for row in rows]
    inner = [element("caption", caption), element("thead", element("tr", head)), element("tbody", body)]
    return _scrolling(caption, element("table", inner, class_="rows"))


def _cell(cell: Any, column: Column) -> Markup:
    shown, number, bar = cell if isinstance(cell, Cell) else Cell(cell)
    kinds = {"number": None, "text": "text", "name": "name text"}
    kind = "bar" if bar is not None else kinds[column.kind]
    width = f"--w:{100 * min(max(bar, 0.0), 1.0):.1f}%" if bar else None
    sort = None if number is None or math.isnan(number) else f"{number:.6g}"
    return element("td", shown, class_=kind, style=width, data_v=sort)


def _scrolling(label: str, content: Markup) -> Markup:
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def heat(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    shade: Callable[[float], str],
    shown: Callable[[float], str],
) -> Markup:
    """A heat map: each cell shows its value and has the class that ``shade`` gives it; None is an empty cell."""
    head = [element("td"), *(element("th", name, scope="col", class_=_long(name)) for name in columns)]
    body = []
    for name, line in zip(rows, values, strict=True):
        cells = [element("td") if v is None else element("td", shown(v), class_=shade(v)) for v in line]
        body.append(element("tr", element("th", name, scope="row", class_=_long(name)), cells))
    inner = [element("caption", caption), element("thead", element("tr", head)), element("tbody", body)]
    return _scrolling(caption, element("table", inner, class_="heat"))


def _long(name: str) -> str | None:
    return "long" if len(name) > 24 else None


def logarithmic(values: Iterable[float | None]) -> Callable[[float], str]:
    """Shades of positive numbers by their logarithm, from the smallest to the largest, over one decade at least, so
    that what differs equally is not shown as far apart."""
    found = [math.log10(v) for v in values if v and 0 < v < math.inf]
    low, high = min(found, default=0.0), max(found, default=0.0)
    more = max(0.0, 1 - (high - low)) / 2
    low, high = low - more, high + more

    def shade(value: float) -> str:
        if not 0 < value < math.inf:
            return "h0"
        share = (math.log10(value) - low) / (high - low)
        return f"h{min(_STEPS - 1, max(0, int(share * _STEPS)))}"

    return shade


def signed(value: float) -> str:
    """The shade of a ratio: 0 … 1 in ten steps, negative ones in four of another hue."""
    value = round(value, 3)
    if value < 0:
        return f"m{min(4, 1 + int(-value * 4))}"
    return f"h{min(_STEPS - 1, int(value * _STEPS))}"


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, and no sign where they are all 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


# ---- trees


def tree(root: str, children: Mapping[str, Sequence[str]], label: Callable[[str], Content]) -> Markup:
    """A tree as nested lists. What hangs below several nodes is written out once; a circle ends where it closes."""
    done: set[str] = set()
    parts: list[str] = []
    todo: list[str | Markup] = [root]
    while todo:  # no recursion: an ancestry of strangers may be deep
        item = todo.pop()
        if isinstance(item, Markup):
            parts.append(item)
            continue
        below = children.get(item, ())
        again = item in done and bool(below)
        done.add(item)
        mark = element("small", "(see above)") if again else ""
        parts.append(f"<li>{element('span', label(item), mark)}")
        todo.append(Markup("</li>"))
        if below and not again:
            parts.append("<ul>")
            todo.append(Markup("</ul>"))
            todo += reversed(below)
    return Markup(f'<ul class="tree">{"".join(parts)}</ul>')
