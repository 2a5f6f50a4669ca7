"""How far a run is: a bar on a terminal or in a notebook, plain lines elsewhere; and the log once it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from .. import log
from .fitting import shown

if TYPE_CHECKING:
    from ..settings import Progress, Settings

Found = TypeVar("Found")

_QUICK = 0.7  # seconds after which a run deserves a progress display
_LINE_EVERY = 5.0  # seconds between plain lines
_CELLS = 30  # of a text bar


def human_bytes(count: float) -> str:
    """1,234,567 as "1.23 MB" (powers of ten, as disks and download pages count)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def say(lines: Iterable[str]) -> None:
    """Print lines on stderr, in the width of a terminal. If it has been closed, the work goes on."""
    try:
        print("\n".join(shown(lines, sys.stderr)), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes what is left once more)


@contextmanager
def display(verb: str, *, quiet: bool = False) -> Iterator[Progress | None]:
    """A progress callback: a bar on a terminal, a plain line now and then elsewhere, nothing for quick runs."""
    if quiet or sys.stderr is None:
        yield None
        return
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    shown = _Bar(verb) if terminal else _Lines(verb)
    try:
        yield shown.update
    finally:
        shown.close()


def followed(verb: str, settings: Settings, work: Callable[[Settings], Found]) -> Found:
    """The work, under a bar if ``progress=True`` asks for one; the log says what it did."""
    if settings.progress is True:
        with bar(verb) as update:
            found = work(replace(settings, progress=update))
    else:
        found = work(settings)
    log.report(found)
    return found


@contextmanager
def bar(verb: str) -> Iterator[Progress]:
    """What ``progress=True`` shows: rich's bar, and in a notebook, where that needs another package, one of text."""
    notebook = "ipykernel" in sys.modules and sys.stderr is not None and not sys.stderr.isatty()
    shown = _TextBar(verb) if notebook else _Bar(verb)
    try:
        yield shown.update
    finally:
        shown.close()


class _Lines:
    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.started = self.last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < _LINE_EVERY or done >= total:
            return
        self.last = now
        rate = done / (now - self.started)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        line = f"{self.verb}: {human_bytes(done)} of {human_bytes(total)}, {human_bytes(rate)}/s{left}"
        say([line])

    def close(self) -> None:
        pass


class _TextBar:
    """A line that writes itself anew."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.started = time.monotonic()
        self.width = 0

    def update(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self.started
        if done >= total or (seconds < _QUICK and not self.width):
            return
        filled = _CELLS * done // total
        rate = done / seconds
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        bar = "█" * filled + "░" * (_CELLS - filled)
        self._write(f"{self.verb} {bar} {human_bytes(done)} of {human_bytes(total)}, {human_bytes(rate)}/s{left}")

    def close(self) -> None:
        if self.width:
            self._write("")
            sys.stderr.write("\r")

    def _write(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self.width))
        sys.stderr.flush()
        self.width = len(line)


class _Bar:
    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.started = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def update(self, done: int, total: int) -> None:
        if self.bar is None:
            if time.monotonic() - self.started < _QUICK or done >= total:
                return
            self._open(total)
        self.bar.update(self.task, completed=done)

    def _open(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        # rich honours NO_COLOR by itself.
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        self.task = self.bar.add_task(self.verb, total=total)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
