"""The safetensors format: its header, read and written. Tensor data never passes through Python.

A file is an 8-byte little-endian length, a JSON object of that many bytes, then the data. :func:`read` accepts exactly
the headers that the reference implementation accepts (huggingface/safetensors, ``safetensors/src/tensor.rs`` over
serde_json; the oddities were measured on its release 0.8.0), except that it also refuses the duplicates which that one
silently overwrites, a tensor name or a metadata key given twice, and more than ``MAX_ENTRIES`` of either.

The header is walked by the small cursor of ``json_cursor.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring as _quoted
from operator import itemgetter
from typing import TYPE_CHECKING

from ..checkpoint import Contents, TensorInfo
from ..dtypes import BY_NAME, DType
from ..errors import InputRefused, RunFailed, UsageError, printable
from ..suggest import did_you_mean
from . import Reader
from .json_cursor import U64_MAX, UINT, Cursor

if TYPE_CHECKING:
    from .._native import Source

MAX_HEADER = 100_000_000
"""Longest header in bytes, without the 8 bytes of its length (the reference implementation's limit)."""

MAX_ENTRIES = 250_000
"""Most tensors, and most metadata keys: fifty times what the largest models have, and still read in seconds."""

_REMEMBERED = 2_000_000  # characters; ten times what the largest models have
_PREFIX = 8
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")

# An entry as nearly every writer writes it, with the comma before it: compact, or spaced as Python's json does.
_USUAL_ENTRY = re.compile(
    rf', ?"([^"\\\x00-\x1f]*)": ?\{{"dtype": ?"(\w{{1,16}})", ?"shape": ?\[((?:{UINT}(?:, ?{UINT}){{0,7}})?)\]'
    rf', ?"data_offsets": ?\[({UINT}), ?({UINT})\]\}}'
)

_STEP = _USUAL_ENTRY.groups + 1

Entry = tuple[str, str, "tuple[int, ...]", int, int]
"""Name, dtype name, shape, first byte and end of a tensor, counted from the start of the data."""


# ---------------------------------------------------------------- reading


def sniff(source: Source) -> bool:
    """Whether the file is, or was meant to be, a safetensors file, so that a damaged one gets a precise refusal."""
    head = source.read(0, min(source.size, 64))
    if head[_PREFIX:].lstrip(b" \t\n\r").startswith(b"{"):
        return True
    if head.startswith(b"PK") or head.startswith(b"\x80"):  # a zip archive or a pickle
        return False
    return len(head) < _PREFIX or int.from_bytes(head[:_PREFIX], "little") <= MAX_HEADER


def read(source: Source) -> Contents:
    """Parse and check the header. Tensors come in the order of their data, then of their appearance.

    Raises InputRefused with one line when the header is not exactly what the format allows. Costs linear time and, for
    an ordinary header, a few times its size in memory; no tensor data is touched.
    """
    text, data_offset = _header_text(source)
    entries, metadata = _parse(text)
    data_size = source.size - data_offset
    tensors = list(_checked(entries, data_offset, data_size))
    notes = [] if text.startswith("{") else ["the header begins with blanks, which some programs refuse to read"]
    return Contents("safetensors", tensors, metadata, notes, data_offset)


def _header_text(source: Source) -> tuple[str, int]:
    if source.size < _PREFIX:
        raise InputRefused(
            f"{source.size} bytes are too short for a checkpoint of any format" if source.size else "the file is empty"
        )
    length = int.from_bytes(source.read(0, _PREFIX), "little")
    if length > MAX_HEADER:
        raise InputRefused(f"header length is {length} bytes, the format allows {MAX_HEADER}: the file is damaged")
    if length > source.size - _PREFIX:
        raise InputRefused(
            f"header length is {length} bytes, but only {source.size - _PREFIX} follow: the file is cut short"
        )
    try:
        return str(source.read(_PREFIX, length), "utf-8"), _PREFIX + length
    except UnicodeDecodeError as error:
        raise InputRefused(f"header is not valid UTF-8 (byte {error.start} of it): the file is damaged") from None


def _parse(text: str) -> tuple[list[Entry], dict[str, str]]:
    cursor = Cursor(text)
    metadata: dict[str, str] | None = None
    entries: dict[str, Entry] = {}
    for name in cursor.members("the header"):
        if name == _METADATA:
            if metadata is not None:
                raise InputRefused(f"{_METADATA} appears twice in the header")
            metadata = _parse_metadata(cursor)
        elif name in entries:
            raise InputRefused(f"tensor '{printable(name)}' appears twice in the header")
        else:
            entries[name] = _parse_entry(cursor, name)
            _parse_usual(cursor, entries)
        if len(entries) > MAX_ENTRIES:
            raise InputRefused(f"the header lists more than {MAX_ENTRIES:,} tensors, more than any model has")
    if cursor.peek():
        cursor.fail(f"nothing may follow the closing '}}', found {cursor.found()}")
    return list(entries.values()), metadata or {}


def _parse_usual(cursor: Cursor, entries: dict[str, Entry]) -> None:
    """Take the run of usual entries that begins here; the first one that is anything else stays for the cursor."""
    if len(entries) == 1 and len(cursor.text) < _REMEMBERED:
        found, length = _first_run(cursor.text[cursor.at :])
        if entries.keys().isdisjoint(found):
            entries.update(found)
            cursor.at += length
            return
    cursor.at = _take_run(cursor.text, cursor.at, entries)


@lru_cache(maxsize=2)  # the models of one merge often have the same tensors in the same order
def _first_run(text: str) -> tuple[dict[str, Entry], int]:
    return _whole_run(text) or _stepwise(text)


def _whole_run(text: str) -> tuple[dict[str, Entry], int] | None:
    """All entries and where they end, in a third of the time, if all are usual: None where one is not, or is repeated.

    Looks at the whole text, so it is asked once a header; ``_take_run`` only goes as far as the entries are usual.
    """
    # What lies before, between and after the entries (nothing, nothing, the rest), each followed by its five groups.
    split = _USUAL_ENTRY.split(text)
    names = split[1::_STEP]
    if any(split[:-1:_STEP]) or len(names) >= MAX_ENTRIES or _METADATA in names:
        return None
    shapes, numbers = map(_Shapes().__getitem__, split[3::_STEP]), [map(int, split[at::_STEP]) for at in (4, 5)]
    values = zip(names, split[2::_STEP], shapes, *numbers, strict=True)
    entries: dict[str, Entry] = dict(zip(names, values, strict=True))
    return (entries, len(text) - len(split[-1])) if len(entries) == len(names) else None


def _stepwise(text: str) -> tuple[dict[str, Entry], int]:
    entries: dict[str, Entry] = {}
    return entries, _take_run(text, 0, entries)


def _take_run(text: str, at: int, entries: dict[str, Entry]) -> int:
    """Add the usual entries from ``at`` on, up to the first that is none or repeats a name; where that stands."""
    shapes = _Shapes()
    for match in iter(_USUAL_ENTRY.scanner(text, at).match, None):  # type: ignore[attr-defined]
        name, dtype, sizes, begin, end = match.groups()
        if name in entries or name == _METADATA or len(entries) > MAX_ENTRIES:
            break
        entries[name] = name, dtype, shapes[sizes], int(begin), int(end)
        at = match.end()
    return at


class _Shapes(dict[str, "tuple[int, ...]"]):
    """The shape that a text tells; a model has a thousand tensors of some thirty shapes."""

    def __missing__(self, text: str) -> tuple[int, ...]:
        self[text] = shape = tuple(map(int, text.split(","))) if text else ()
        return shape


def _parse_metadata(cursor: Cursor) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if cursor.peek() != "{" and cursor.word() == "null":
        return metadata
    for key in cursor.members(_METADATA):
        if key in metadata:
            raise InputRefused(f"metadata key '{printable(key)}' appears twice in the header")
        if cursor.peek() != '"':
            raise InputRefused(f"metadata value of '{printable(key)}' is not a string, found {cursor.found()}")
        metadata[key] = cursor.string()
        if len(metadata) > MAX_ENTRIES:
            raise InputRefused(f"the header holds more than {MAX_ENTRIES:,} metadata keys, more than any model has")
    return metadata


def _parse_entry(cursor: Cursor, name: str) -> Entry:
    if cursor.peek() == "[":  # serde also takes a struct as the list of its fields
        cursor.take("[")
        dtype = _parse_dtype(cursor, name)
        cursor.take(",")
        shape = cursor.sizes(name, "shape")
        cursor.take(",")
        begin_end = cursor.sizes(name, "data_offsets")
        cursor.take("]")
        return _entry(name, dtype, shape, begin_end)
    fields: dict[str, object] = {}
    for field in cursor.members(f"the entry of tensor '{printable(name)}'"):
        if field not in _FIELDS:
            cursor.skip(depth=2)
        elif field in fields:
            raise InputRefused(f"tensor '{printable(name)}' has the field {field} twice")
        else:
            fields[field] = _parse_dtype(cursor, name) if field == "dtype" else cursor.sizes(name, field)
    missing = [field for field in _FIELDS if field not in fields]
    if missing:
        raise InputRefused(f"tensor '{printable(name)}' lacks the field {missing[0]}")
    return _entry(name, *(fields[field] for field in _FIELDS))  # type: ignore[arg-type]


def _entry(name: str, dtype: str, shape: tuple[int, ...], begin_end: tuple[int, ...]) -> Entry:
    if len(begin_end) != 2:
        raise InputRefused(f"tensor '{printable(name)}' has {len(begin_end)} data_offsets, expected begin and end")
    return name, dtype, shape, *begin_end


def _parse_dtype(cursor: Cursor, name: str) -> str:
    if cursor.peek() == '"':
        return cursor.string()
    if cursor.peek() != "{":
        raise InputRefused(f"dtype of tensor '{printable(name)}' is not a string, found {cursor.found()}")
    found: str | None = None  # serde also takes an enum value as {"F32": null}
    for dtype in cursor.members(f"the dtype of tensor '{printable(name)}'"):
        if found is not None or cursor.word() != "null":
            raise InputRefused(f"dtype of tensor '{printable(name)}' is not a string, found an object")
        found = dtype
    if found is None:
        raise InputRefused(f"dtype of tensor '{printable(name)}' is not a string, found an empty object")
    return found


def _checked(entries: list[Entry], data_offset: int, data_size: int) -> Iterator[TensorInfo]:
    """The tensors of ``entries``, which must tile the data: no hole, no overlap, nothing after the last one."""
    if any(entry[4] > data_size for entry in entries):
        name, _, _, _, end = next(entry for entry in entries if entry[4] > data_size)
        raise InputRefused(
            f"tensor '{printable(name)}' ends at byte {end} of the data, but the file holds {data_size}: "
            "the file is cut short, fetch it again"
        )
    entries.sort(key=itemgetter(3, 4))
    position, previous = 0, ""
    kinds: dict[tuple[str, tuple[int, ...]], tuple[DType, int]] = {}
    for name, dtype_name, shape, begin, end in entries:
        if begin != position or begin > end:
            raise InputRefused(_misplaced(name, begin, end, position, previous))
        kind = kinds.get((dtype_name, shape))
        if kind is None:
            dtype = BY_NAME.get(dtype_name)
            if dtype is None:
                hint = did_you_mean(dtype_name[:32], BY_NAME)
                unknown = printable(dtype_name, 40)
                raise InputRefused(f"tensor '{printable(name)}' has the unknown dtype '{unknown}'{hint}")
            kind = kinds[dtype_name, shape] = dtype, _nbytes(name, dtype, shape)
        dtype, nbytes = kind
        if nbytes != end - begin:
            raise InputRefused(
                f"tensor '{printable(name)}' has {end - begin} bytes of data, "
                f"but {dtype} {_shape_text(shape)} takes {nbytes}"
            )
        yield TensorInfo(name, dtype, shape, data_offset + begin, nbytes)
        position, previous = end, name
    if position != data_size:
        raise InputRefused(f"{data_size - position} bytes after the last tensor belong to no tensor")


def _misplaced(name: str, begin: int, end: int, position: int, previous: str) -> str:
    if begin > end:
        return f"tensor '{printable(name)}' begins at byte {begin} of the data but ends at {end}"
    if begin > position:
        return f"{begin - position} bytes before tensor '{printable(name)}' belong to no tensor"
    return f"tensors '{printable(previous)}' and '{printable(name)}' overlap in the data"


def _nbytes(name: str, dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. A product beyond 64 bits is refused even when a later size is 0, as the reference does."""
    bits = 1
    for size in (*shape, dtype.bits):
        bits *= size
        if bits > U64_MAX:
            raise InputRefused(f"tensor '{printable(name)}' of shape {_shape_text(shape)} overflows 64 bits")
    if bits % 8:
        raise InputRefused(f"tensor '{printable(name)}' of {dtype} {_shape_text(shape)} does not fill whole bytes")
    return bits // 8


def _shape_text(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(shape) <= 16 else f"[{', '.join(map(str, shape[:16]))}, … {len(shape)} sizes]"


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class FileLayout:
    """A file to be written. All numbers are bytes from its start.

    The data begin at ``start``, a multiple of 8; ``offsets`` has one place per tensor, in the given order; ``size`` is
    the whole file. ``entries`` are the tensors' members of the header's JSON object.
    """

    entries: str
    start: int
    offsets: tuple[int, ...]
    size: int

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """All bytes before ``start``, with ``metadata`` that are no longer than those that it was placed with."""
        text = _header_json(self.entries, metadata)
        if len(text) > self.start - _PREFIX:  # it would be written over the tensors
            raise RunFailed(f"the header takes {len(text)} bytes, but {self.start - _PREFIX} were reserved for it")
        return (self.start - _PREFIX).to_bytes(_PREFIX, "little") + text.ljust(self.start - _PREFIX, b" ")


def order(tensors: Iterable[tuple[str, DType, tuple[int, ...]]]) -> list[tuple[str, DType, tuple[int, ...]]]:
    """The tensors by falling width of their dtype, else in the given order, so that all of them lie aligned."""
    return sorted(tensors, key=lambda tensor: -tensor[1].bits)


def layout(tensors: Sequence[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> FileLayout:
    """Place ``tensors`` (name, dtype, shape), back to back in the given order, behind a header with ``metadata``.

    The header begins with exactly ``{"`` (some web UIs assert it), with the metadata first, and is padded with blanks
    behind the JSON, so that it can be rendered again at the same size later.

    Raises InputRefused for the name of the metadata, UsageError for a name given twice or unwritable, a size that is no
    whole number of bytes, metadata that is not text, and a header beyond 100 MB.
    """
    names = {_METADATA}
    members, ends, end = [], [], 0
    kinds: dict[tuple[DType, tuple[int, ...]], tuple[int, str]] = {}
    for name, dtype, shape in tensors:
        if name in names:
            if name == _METADATA:
                raise InputRefused(
                    f"a tensor cannot be written as '{name}', the file's own metadata; prune(drop_keys=…) drops it",
                    code="extra_tensors",
                    tensor=name,
                )
            raise UsageError(f"tensor '{printable(name)}' would be written twice")
        names.add(name)
        kind = kinds.get((dtype, shape))
        if kind is None:
            text = f'"dtype":"{dtype.name}","shape":[{",".join(map(str, shape))}]'
            kind = kinds[dtype, shape] = _written_bytes(name, dtype, shape), text
        begin, end = end, end + kind[0]
        ends.append(end)
        members.append(f'{_quoted(name)}:{{{kind[1]},"data_offsets":[{begin},{end}]}}')
    entries = ",".join(members)
    length = -(-len(_header_json(entries, metadata)) // 8) * 8
    if length > MAX_HEADER:
        raise UsageError(f"the output's header would take {length} bytes, the format allows {MAX_HEADER}")
    start = _PREFIX + length
    return FileLayout(entries, start, tuple(start + end for end in (0, *ends[:-1])) if ends else (), start + end)


def _header_json(entries: str, metadata: Mapping[str, str]) -> bytes:
    members = []
    if metadata or not entries:
        quoted = json.dumps(_checked_metadata(metadata), ensure_ascii=False, separators=(",", ":"))
        members.append(f'"{_METADATA}":{quoted}')
    if entries:
        members.append(entries)
    try:
        return f"{{{','.join(members)}}}".encode()
    except UnicodeEncodeError:
        raise UsageError("a tensor name or a metadata text holds half a surrogate pair: it is not text") from None


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"metadata '{printable(key)}' must be text, found {type(value).__name__}")
    return dict(metadata)


def _written_bytes(name: str, dtype: DType, shape: tuple[int, ...]) -> int:
    try:
        return _nbytes(name, dtype, shape)
    except InputRefused as error:
        raise UsageError(f"cannot be written: {error}") from None


READER = Reader("safetensors", sniff, read)
