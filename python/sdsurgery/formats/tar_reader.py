"""The members of a tar archive, whatever wrote it: v7, ustar, GNU, pax. For ``scan``, which looks at every one.

A header is recognised by its checksum, as ``tarfile`` does; the word ``ustar`` is missing in v7 archives. Sizes may be
octal or base-256, and pax records override them. Source: POSIX.1-2017 (pax), GNU tar's manual, ``Lib/tarfile.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InputRefused
from .pickle_stream import Bytes

BLOCK = 512
MAX_SKIPPED = 20_000  # blocks without a header that are passed over in search of the next one
_NO_DATA = frozenset(b"123456")  # links, devices, folders: no data follows, whatever the size says
_LONG_NAME, _PAX = frozenset(b"LK"), frozenset(b"xgX")
_SPARSE = ord("S")
_MAX_EXTENSION = 1 << 20


class Member(NamedTuple):
    name: str
    offset: int
    size: int


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a member's header."""
    if len(block) < BLOCK:
        return False
    given = _number(block[148:156])
    others = block[:148] + b" " * 8 + block[156:BLOCK]
    signed = sum(others) - 256 * sum(byte > 127 for byte in others)
    return given is not None and any(block[:148]) and given in (sum(others), signed)


def members(source: Bytes) -> Iterator[Member]:
    """Every member with data, also those behind the mark of the archive's end. InputRefused where it is damaged."""
    pos, skipped, size, name = 0, 0, None, ""
    while pos + BLOCK <= source.size:
        block = source.read(pos, BLOCK)
        pos += BLOCK
        if not is_header(block):
            skipped += 1
            if skipped > MAX_SKIPPED:
                raise InputRefused("tar: continues far beyond its last member")
            continue
        kind = block[156]
        if kind == _SPARSE:
            raise _sparse()
        length = _number(block[124:136])
        if length is None or length < 0:
            raise InputRefused("tar: a member without a size")
        if kind in _PAX or kind in _LONG_NAME:
            if length > _MAX_EXTENSION or pos + length > source.size:
                raise InputRefused("tar: a damaged extended header")
            raw = source.read(pos, length) if length else b""
            if kind in _PAX:
                records = _pax(raw)
                if any(key.startswith("GNU.sparse.") for key in records):
                    raise _sparse()
                size, name = _digits(records.get("size", "")) or size, records.get("path", name)
            elif kind == ord("L"):
                name = raw.rstrip(b"\0").decode("utf-8", "backslashreplace")
            pos += length + -length % BLOCK
            continue
        length = size if size is not None else length
        if kind not in _NO_DATA:
            own = block[:100].partition(b"\0")[0].decode("utf-8", "backslashreplace")
            if pos + length > source.size:
                raise InputRefused("tar: cut off within a member")
            yield Member(name or own, pos, length)
            pos += length + -length % BLOCK
        size, name = None, ""


def _sparse() -> InputRefused:
    """``tarfile`` puts holes into such a member, so that its bytes are others than those that lie in the file."""
    return InputRefused("tar: a sparse member, which torch never writes")


def _number(field: bytes) -> int | None:
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=False) - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _digits(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _pax(raw: bytes) -> dict[str, str]:
    """Records of the form ``length key=value\\n``."""
    found, pos = {}, 0
    while pos < len(raw):
        digits = raw[pos : raw.find(b" ", pos)] if b" " in raw[pos : pos + 12] else b""
        if not digits.isdigit() or int(digits) <= len(digits) + 1:
            break
        end = pos + int(digits)
        key, _, value = raw[pos + len(digits) + 1 : end - 1].partition(b"=")
        found[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        pos = end
    return found
