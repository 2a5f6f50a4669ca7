"""The bytes of a pickle as the unpickler takes them: counted, by lines, and within frames."""

from __future__ import annotations

from struct import Struct
from typing import Protocol

WINDOW = 64 << 10  # bytes read at once
MAX_LINE = 64 << 20  # bytes of a text that ends with its line
MAX_ESCAPED = 1 << 20  # bytes of such a text that are read


class Bytes(Protocol):
    """What is scanned: a file, or a part of one."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes: ...


class Stopped(Exception):
    """The unpickler would stop here with an error."""


class Stream:
    """Bytes of ``source`` from ``start`` on. ``exhausted``: a limit of ours was reached; ``frame_end``: of the frame
    that began last; ``crossed``: an argument crosses it. Stopped where the unpickler would stop."""

    def __init__(self, source: Bytes, start: int) -> None:
        self.source = source
        self.exhausted = False
        self._base, self._at, self._data = start, 0, b""
        self.frame_end = 0
        self.crossed = False

    def _fill(self, count: int) -> None:
        """A window that begins here and holds ``count`` bytes at least."""
        pos = self._base + self._at
        if pos + count > self.source.size:
            self._base, self._at, self._data = self.source.size, 0, b""
            raise Stopped("cut off")
        self._data = self.source.read(pos, min(max(count, WINDOW), self.source.size - pos))
        self._base, self._at = pos, 0

    def _check_frame(self, begin: int, end: int) -> None:
        """CPython's readers lose what is left of a frame when an argument goes on behind it, each in its own way."""
        if begin < self.frame_end < end:
            self.crossed = True

    def _take(self, count: int) -> bytes:
        if self.frame_end:
            pos = self._base + self._at
            self._check_frame(pos, pos + count)
        if self._at + count > len(self._data):
            self._fill(count)
        raw = self._data[self._at : self._at + count]
        self._at += count
        return raw

    def _skip(self, count: int) -> int:
        """Where the skipped bytes begin."""
        pos = self._base + self._at
        self._check_frame(pos, pos + count)
        if pos + count > self.source.size:
            self._fill(count)
        self._at += count
        if self._at > len(self._data):
            self._base, self._at, self._data = pos + count, 0, b""
        return pos

    def _line(self) -> bytes:
        """Up to the next newline; of a very long line only its beginning. At the end of the data CPython takes what is
        left for a line, but for its last byte.
        """
        begin = self._base + self._at
        kept, seen = bytearray(), 0
        while seen <= MAX_LINE:
            if self._at >= len(self._data):
                if seen and self._base + self._at == self.source.size:
                    self._check_frame(begin, self.source.size)
                    return bytes(kept[:-1])
                self._fill(1)
            end = self._data.find(b"\n", self._at)
            piece = self._data[self._at : end if end >= 0 else len(self._data)]
            seen += len(piece)
            kept += piece[: max(0, MAX_ESCAPED - len(kept))]
            self._at += len(piece) + (end >= 0)
            if end >= 0:
                self._check_frame(begin, self._base + self._at)
                return bytes(kept)
        self.exhausted = True
        raise Stopped("too long to follow to the end")

    def _length(self, code: Struct) -> int:
        length = code.unpack(self._take(code.size))[0]
        if length < 0:
            raise Stopped("a value of negative length")
        return length
