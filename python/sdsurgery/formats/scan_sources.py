"""What ``scan`` reads from: a file, a part of one, bytes in memory, and what a packed file unpacks to."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from ..errors import InputRefused
from .pickle_stream import Bytes

MAX_UNPACKED = 512 << 20  # bytes of all that one file unpacks to
MAX_IN_MEMORY = 16 << 20  # what is larger goes to a nameless temporary file
_STEP = 1 << 20


class File:
    """An opened file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise InputRefused("the file changed while it was being read", code="changed")
        return data


class Window:
    """A part of another source."""

    def __init__(self, source: Bytes, offset: int, size: int) -> None:
        self._source, self._offset, self.size = source, offset, size

    def read(self, offset: int, count: int) -> bytes:
        return self._source.read(self._offset + offset, count)


class Memory:
    """Bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


def _zlib_starts(head: bytes) -> bool:
    """By RFC 1950, with a window of any size."""
    if len(head) < 2 or head[0] & 0x8F != 8 or head[1] & 0x20 or int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        return len(zlib.decompressobj().decompress(head, 16)) > 0
    except zlib.error:
        return False


def _lzma_starts(head: bytes) -> bool:
    """What liblzma takes for LZMA without a container where it finds out the format (``alone_decoder.c``, "picky"): a
    window of 2^n or 3·2^n bytes, a size below 2^38 or none, and behind it the zero that its coder begins with."""
    if len(head) < 14 or head[0] >= 225 or head[13]:
        return False
    window, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    bits = window.bit_count()
    return (bits in (1, 32) or (bits == 2 and window & window >> 1 != 0)) and (size < 1 << 38 or size == (1 << 64) - 1)


class _Zlib:
    """zlib's decompressor with the manners of those of bz2 and lzma: it keeps its own input."""

    def __init__(self, bits: int) -> None:
        self._engine = zlib.decompressobj(bits)

    def decompress(self, data: bytes, limit: int) -> bytes:
        return self._engine.decompress(self._engine.unconsumed_tail + data, limit)

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def needs_input(self) -> bool:
        return not self._engine.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data


_PACKED: dict[str, tuple[Callable[[bytes], bool], Callable[[], Any]]] = {
    "gzip": (lambda head: head[:3] == b"\x1f\x8b\x08", lambda: _Zlib(31)),
    "bzip2": (lambda head: head[:3] == b"BZh" and head[3:4].isdigit(), bz2.BZ2Decompressor),
    "xz": (lambda head: head[:6] == b"\xfd7zXZ\0", lzma.LZMADecompressor),
    "lzma": (_lzma_starts, lzma.LZMADecompressor),
    "zlib": (_zlib_starts, lambda: _Zlib(15)),
}
_CLOSED = {
    b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR",
    b"\x1f\x9d": "compress", b"LZIP\x01": "lzip", b"\x89LZO\0\r\n\x1a\n": "lzop", b"\xff\x06\0\0sNaPpY": "snappy",
}  # fmt: skip
_JOBLIB = re.compile(rb"ZF(?:0x)?[0-9a-f]+ *", re.IGNORECASE)


def packing(head: bytes) -> str:
    """What packed a file, by its first bytes; '' when nothing did."""
    return next((name for name, (starts, _) in _PACKED.items() if starts(head)), "")


def closed_packing(head: bytes) -> str:
    """A packing that is recognised and not unpacked."""
    if _JOBLIB.fullmatch(head[:21]):  # "ZF", then the length unpacked, in 19 places
        return "joblib (before 0.10)"
    return next((name for start, name in _CLOSED.items() if head.startswith(start)), "")


class Unpacked:
    """What a packed source unpacks to, in pieces: ``next`` gives b"" at the end, or where the data are damaged, and
    ``damage`` says so then. What stands before the damage counts, since a loader reads it first. ``rest`` is where
    bytes begin that do not belong to it, the source's size where none do.
    """

    def __init__(self, source: Bytes, how: str) -> None:
        self._source, self._how = source, how
        self._starts, self._new = _PACKED[how]
        self._engine = self._new()
        self._pos = 0
        self.damage, self.rest = "", source.size

    def next(self) -> bytes:
        """At most 1 MiB."""
        try:
            while not self.damage:
                data = b""
                if self._engine.eof and not self._another():
                    break
                if self._engine.needs_input:
                    data = self._read()
                    if not data:
                        self.damage = f"its {self._how} data are cut off"
                piece: bytes = self._engine.decompress(data, _STEP)
                if piece:
                    return piece
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            self.damage = f"its {self._how} data are damaged"
        return b""

    def _read(self) -> bytes:
        data = self._source.read(self._pos, min(_STEP, self._source.size - self._pos))
        self._pos += len(data)
        return data

    def _another(self) -> bool:
        """Whether another stream of the kind follows, as appended ``.gz`` files have them; zeros may lie between."""
        self._pos -= len(self._engine.unused_data)
        zeros = True
        while zeros and self._pos < self._source.size:
            step = self._source.read(self._pos, min(_STEP, self._source.size - self._pos))
            zeros = not step.strip(b"\0")
            self._pos += len(step) - len(step.lstrip(b"\0"))
        if not self._starts(self._source.read(self._pos, min(16, self._source.size - self._pos))):
            self.rest = self._pos
            return False
        self._engine = self._new()
        return True


def spooled(head: bytes, read: Callable[[], bytes], limit: int) -> Bytes | None:
    """``head`` and all that ``read`` gives until it gives nothing; None when it is more than ``limit`` bytes."""
    out: BinaryIO = io.BytesIO()
    piece, size = head, 0
    while piece:
        if size <= MAX_IN_MEMORY < size + len(piece):
            import tempfile

            larger = tempfile.TemporaryFile()  # noqa: SIM115
            larger.write(out.getbuffer())  # type: ignore[attr-defined]
            out = larger
        size += len(piece)
        if size > limit:
            return None
        out.write(piece)
        piece = read()
    return _Spool(out, size)


class _Spool:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)
