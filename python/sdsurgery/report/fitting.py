"""Text in the width of the terminal: long lines are wrapped between words, tables that are too wide are stacked.

A terminal is as wide as it says, or as ``COLUMNS`` says. Text that goes elsewhere has no width: its lines are those
that programs search.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .warnings import is_warning, yellow

_LEAST = 30  # columns; below that no text is legible


def width(stream: Any) -> int | None:
    """The columns of a line on that stream, None for any number of them."""
    try:
        if not stream.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        asked = int(given) if given.isascii() and given.isdigit() else 0
        return max(_LEAST, asked or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError, AttributeError):  # closed, or an object that replaces it
        return None


def shown(lines: Iterable[str], stream: Any) -> Iterator[str]:
    """The lines as they are printed on that stream: in its width, and with yellow warnings where it shows colours."""
    columns, colours = width(stream), _has_colours(stream)
    for line in lines:
        parts = fitted([line], columns)
        yield from map(yellow, parts) if colours and is_warning(line) else parts


def _has_colours(stream: Any) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return bool(stream.isatty())
    except (OSError, ValueError, AttributeError):
        return False


def fitted(lines: Iterable[str], columns: int | None, *, hang: int = 2) -> Iterator[str]:
    """The lines in that many columns, what follows the first indented by ``hang`` more; a word that is longer (a hash,
    a path) stands in a line of its own."""
    for line in lines:
        if columns is None or len(line) <= columns:
            yield line
            continue
        import textwrap

        indent = line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line, columns, subsequent_indent=indent + hang * " ", break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, expand_tabs=False, replace_whitespace=False,
        )  # fmt: skip


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None, *, left: int = 1, names: int = 1
) -> Iterator[str]:
    """Rows under their head, the first ``left`` columns flush left and the others flush right. Where that is too wide,
    each row as its name, which are its first ``names`` cells, and below it what it has of every other column."""
    every = [tuple(head), *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(head))]
    if columns is None or sum(widths) + 2 * (len(widths) - 1) <= columns:
        for row in every:
            cells = [
                cell.ljust(size) if at < left else cell.rjust(size)
                for at, (cell, size) in enumerate(zip(row, widths, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        return
    for row in rows:
        yield " ".join(filter(None, row[:names]))
        cells = [f"{title} {cell}" for title, cell in zip(head[names:], row[names:], strict=True) if cell.strip()]
        yield f"  {', '.join(cells)}"
