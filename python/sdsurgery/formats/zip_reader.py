"""A strict reader of zip archives: a table of entries with their places in the file, never their data.

Zip lets a file say different things to different readers; this one refuses every file that does. The end record and its
comment end the file, the central directory fills its place exactly, each local header agrees with it, entries do not
overlap, names are unique and stay inside the archive. Source: PKWARE's APPNOTE 6.3 (sections 4.3, 4.4, 4.5.3).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from
from typing import TYPE_CHECKING, NoReturn

from ..errors import InputRefused, printable

if TYPE_CHECKING:
    from .._native import Source

MAX_ENTRIES = 50_000
MAX_DIRECTORY = 8 << 20  # bytes, and at most as much memory for its names
MAX_RATIO = 100  # of an entry that is inflated into memory
STORED, DEFLATED = 0, 8

_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_STREAMED = 0x0008  # sizes and CRC follow the data; the local header may hold zeros
_UTF8 = 0x0800
_REFUSED_FLAGS = {0x0001: "encrypted", 0x0020: "a patch", 0x0040: "encrypted", 0x2000: "encrypted"}
_FOLDER = 0x10  # of MS-DOS, in the external attributes
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True)
class Entry:
    """One file of the archive. ``offset`` is where its (maybe compressed) bytes begin in the file."""

    name: str
    method: int
    crc32: int
    packed: int
    size: int
    header_offset: int
    offset: int


@dataclass(frozen=True)
class _Directory:
    offset: int
    nbytes: int
    count: int


def is_zip(source: Source) -> bool:
    """Whether a file begins as a zip archive does."""
    return source.size >= 22 and source.read(0, 4) in (_LOCAL, _END)


def start_behind_other_bytes(source: Source) -> int | None:
    """From where on the offsets count of an archive that ends the file, and that programs find which look for its end.
    None where none does."""
    length = min(source.size, 22 + _FULL16)
    tail = source.read(source.size - length, length) if length else b""
    at = tail.rfind(_END)
    if at < 0 or at + 22 > length:
        return None
    nbytes, offset = unpack_from("<2L", tail, at + 12)
    if _FULL32 in (nbytes, offset):
        return 0 if tail[max(0, at - 20) : at].startswith(_LOCATOR64) else None
    start = source.size - length + at - nbytes - offset
    return start if start >= 0 and nbytes and source.read(start + offset, 4) == _CENTRAL else None


def read_entries(source: Source, *, behind_others: bool = False) -> dict[str, Entry]:
    """All entries by name, in the order of the central directory. ``behind_others``: other bytes may stand in front of
    the first. Raises InputRefused."""
    directory = _find_directory(source)
    raw = source.read(directory.offset, directory.nbytes) if directory.nbytes else b""
    entries: dict[str, Entry] = {}
    pos, memory = 0, MAX_DIRECTORY
    for _ in range(directory.count):
        entry, pos = _central(source, raw, pos, directory.offset)
        memory -= len(entry.name) * (1 if entry.name.isascii() else 4)
        if memory < 0:
            raise InputRefused(f"zip: entry names of more than {MAX_DIRECTORY >> 20} MiB")
        if entry.name in entries:
            raise InputRefused(f"zip: two entries are named '{printable(entry.name)}'")
        entries[entry.name] = entry
    if pos != len(raw):
        raise InputRefused("zip: the central directory is longer than its entries")
    _check_overlaps(entries, directory.offset, behind_others=behind_others)
    return entries


def _find_directory(source: Source) -> _Directory:
    length = min(source.size, 22 + _FULL16)
    tail = source.read(source.size - length, length)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > length:
        raise InputRefused("zip: cut off or damaged (its end record is missing); download or copy it again")
    disk, start_disk, here, count, nbytes, offset, comment = unpack_from("<4H2LH", tail, at + 4)
    if at + 22 + comment != length:
        raise InputRefused("zip: extra bytes after its end record")
    end = source.size - length + at
    directory = _Directory(offset, nbytes, count)
    locator = tail[at - 20 : at] if at >= 20 else b""
    if locator[:4] == _LOCATOR64:
        directory, end = _zip64(source, end - 20, locator, directory)
    elif (disk, start_disk) != (0, 0) or here != count:
        raise InputRefused("zip: one part of a split archive")
    if directory.offset + directory.nbytes != end:
        raise InputRefused("zip: the central directory is not where the end record says")
    if directory.count > MAX_ENTRIES or directory.nbytes > MAX_DIRECTORY:
        raise InputRefused(
            f"zip: {directory.count} entries in a directory of {directory.nbytes} bytes; "
            f"at most {MAX_ENTRIES} in {MAX_DIRECTORY} are accepted"
        )
    return directory


def _zip64(source: Source, end: int, locator: bytes, small: _Directory) -> tuple[_Directory, int]:
    """The directory by the zip64 end record, which lies right before the locator at ``end``."""
    disk, start, disks = unpack_from("<LQL", locator, 4)
    if disk or disks > 1 or start + 56 > end:
        raise InputRefused("zip: a damaged zip64 locator")
    record = source.read(start, 56)
    if record[:4] != _END64 or start + 12 + unpack_from("<Q", record, 4)[0] != end:
        raise InputRefused("zip: a damaged zip64 end record")
    disk, start_disk, here, count, nbytes, offset = unpack_from("<2L4Q", record, 16)
    if disk or start_disk or here != count:
        raise InputRefused("zip: one part of a split archive")
    agree = (
        small.count in (count, _FULL16)
        and small.nbytes in (nbytes, _FULL32)
        and small.offset in (offset, _FULL32)
    )  # fmt: skip
    if not agree:
        raise InputRefused("zip: the two end records disagree")
    return _Directory(offset, nbytes, count), start


def _central(source: Source, raw: bytes, pos: int, limit: int) -> tuple[Entry, int]:
    """The entry of the central header at ``pos`` of ``raw``, and where the next one begins."""
    if pos + 46 > len(raw) or raw[pos : pos + 4] != _CENTRAL:
        raise InputRefused("zip: a damaged central directory")
    flags, method = unpack_from("<2H", raw, pos + 8)
    crc, packed, size, name_len, extra_len, comment_len, disk = unpack_from("<3L4H", raw, pos + 16)
    attributes, header = unpack_from("<2L", raw, pos + 38)
    after = pos + 46 + name_len + extra_len + comment_len
    if after > len(raw):
        raise InputRefused("zip: a damaged central directory")
    raw_name = raw[pos + 46 : pos + 46 + name_len]
    name = _name(raw_name, flags)
    extra = raw[pos + 46 + name_len : pos + 46 + name_len + extra_len]
    size, packed, header = _large(name, extra, [size, packed, header])
    _check_flags(name, flags, disk)
    if size and (attributes & _FOLDER or name.endswith("/")):  # torch would take it for one, and read nothing
        raise InputRefused(f"zip: entry '{printable(name)}' is marked as a folder, but has data")
    if method == STORED and packed != size:
        raise InputRefused(f"zip: entry '{printable(name)}' is stored, but with two different sizes")
    entry = Entry(name, method, crc, packed, size, header, 0)
    data = _local(source, entry, flags, raw_name, limit)
    return Entry(name, method, crc, packed, size, header, data), after


def _name(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 or raw.isascii() else "cp437")
    except UnicodeDecodeError:
        raise InputRefused(f"zip: entry name {printable(raw)} is not UTF-8") from None
    parts = name.split("/")
    drive = name[1:2] == ":" and name[0].isalpha()
    if not name or "\0" in name or "\\" in name or drive or name[0] == "/" or ".." in parts:
        raise InputRefused(f"zip: entry name '{printable(name)}' leads outside the archive")
    return name


def _large(name: str, extra: bytes, fields: list[int]) -> list[int]:
    """[size, packed size, header offset], those that are full taken from the zip64 extra field, in this order."""
    found = None
    pos = 0
    while pos < len(extra):
        if pos + 4 > len(extra):
            raise InputRefused(f"zip: entry '{printable(name)}' has a damaged extra field")
        kind, length = unpack_from("<2H", extra, pos)
        if pos + 4 + length > len(extra) or (kind == 1 and found is not None):
            raise InputRefused(f"zip: entry '{printable(name)}' has a damaged extra field")
        if kind == 1:
            found = extra[pos + 4 : pos + 4 + length]
        pos += 4 + length
    full = [index for index, value in enumerate(fields) if value == _FULL32]
    if not full:
        return fields
    if found is None or len(found) < 8 * len(full):
        raise InputRefused(f"zip: entry '{printable(name)}' lacks its zip64 sizes")
    for place, index in enumerate(full):
        fields[index] = unpack_from("<Q", found, 8 * place)[0]
    return fields


def _check_flags(name: str, flags: int, disk: int) -> None:
    for bit, word in _REFUSED_FLAGS.items():
        if flags & bit:
            raise InputRefused(f"zip: entry '{printable(name)}' is {word}")
    if disk:
        raise InputRefused("zip: one part of a split archive")


def _local(source: Source, entry: Entry, flags: int, raw_name: bytes, limit: int) -> int:
    """Where the entry's data begin, after comparing its local header with the central one."""
    length = 30 + len(raw_name)
    if entry.header_offset + length > limit:
        _refuse(entry, "lies outside the archive")
    raw = source.read(entry.header_offset, length)
    local_flags, method = unpack_from("<2H", raw, 6)
    crc, packed, size, name_len, extra_len = unpack_from("<3L2H", raw, 14)
    if raw[:4] != _LOCAL or name_len != len(raw_name) or raw[30:] != raw_name or method != entry.method:
        _refuse(entry, "disagrees with its local header")
    data = entry.header_offset + length + extra_len
    if data + entry.packed > limit:
        _refuse(entry, f"of {entry.packed} bytes reaches past the end of the archive")
    if _FULL32 in (packed, size):
        extra = source.read(entry.header_offset + length, extra_len) if extra_len else b""
        size, packed, _ = _large(entry.name, extra, [size, packed, 0])
    if local_flags & _STREAMED and crc == packed == size == 0:
        return data
    if (size, packed, crc) != (entry.size, entry.packed, entry.crc32) or (local_flags ^ flags) & ~_UTF8:
        _refuse(entry, "disagrees with its local header")
    return data


def _refuse(entry: Entry, what: str) -> NoReturn:
    raise InputRefused(f"zip: entry '{printable(entry.name)}' {what}")


def _check_overlaps(entries: dict[str, Entry], limit: int, *, behind_others: bool) -> None:
    ordered = sorted(entries.values(), key=lambda entry: entry.header_offset)
    if ordered and ordered[0].header_offset and not behind_others:
        raise InputRefused("zip: extra bytes before its first entry")
    end, last = 0, ""
    for entry in ordered:
        if entry.header_offset < end:
            raise InputRefused(f"zip: entries '{printable(last)}' and '{printable(entry.name)}' overlap")
        end, last = entry.offset + entry.packed, entry.name
    if end > limit:
        raise InputRefused(f"zip: entry '{printable(last)}' reaches into the central directory")


def entry_bytes(source: Source, entry: Entry, limit: int) -> bytes | bytearray:
    """All bytes of a small entry, inflated when it is deflated; sizes, ratio and CRC-32 are checked. Raises
    InputRefused.
    """
    label = f"zip: entry '{printable(entry.name)}'"
    if entry.size > limit:
        raise InputRefused(f"{label} has {entry.size} bytes; at most {limit} are accepted")
    if entry.method == STORED:
        data: bytes | bytearray = source.read(entry.offset, entry.size) if entry.size else b""
    elif entry.method == DEFLATED:
        if entry.size > MAX_RATIO * entry.packed:
            raise InputRefused(f"{label} is compressed more than {MAX_RATIO} times")
        data = bytearray()
        for chunk in inflate(source, entry):
            data += chunk
    else:
        raise InputRefused(f"{label} is compressed by method {entry.method}; only stored and deflated are read")
    if entry.crc32 and zlib.crc32(data) != entry.crc32:
        raise InputRefused(f"{label} is damaged (its CRC-32 differs)")
    return data


def inflate(source: Source, entry: Entry) -> Iterator[bytes]:
    """The bytes of a deflated entry in pieces of at most 1 MiB, exactly ``entry.size`` in all. Raises InputRefused."""
    label = f"zip: entry '{printable(entry.name)}'"
    engine = zlib.decompressobj(-15)
    left, pos, end = entry.size, entry.offset, entry.offset + entry.packed
    pending = b""
    try:
        while not engine.eof:
            if not pending and pos < end:
                pending = source.read(pos, min(1 << 20, end - pos))
                pos += len(pending)
            chunk = engine.decompress(pending, 1 << 20)
            pending = engine.unconsumed_tail
            left -= len(chunk)
            if left < 0 or (not chunk and not pending and pos >= end and not engine.eof):
                raise InputRefused(f"{label} does not inflate to the {entry.size} bytes it promises")
            yield chunk
    except zlib.error:
        raise InputRefused(f"{label} cannot be inflated (damaged)") from None
    if left or pending or engine.unused_data or pos < end:
        raise InputRefused(f"{label} does not inflate to the {entry.size} bytes it promises")
