"""The safetensors format: its header, read and written. Tensor data never passes through Python.

A file is an 8-byte little-endian length, a JSON object of that many bytes, then the data. :func:`read` accepts exactly
the headers that the reference implementation accepts (huggingface/safetensors, ``safetensors/src/tensor.rs`` over
serde_json; the oddities were measured on its release 0.8.0), except that it also refuses the duplicates which that one
silently overwrites, a tensor name or a metadata key given twice, and more than ``MAX_ENTRIES`` of either.

The header is read by ``json.loads`` and checked: serde_json's rules on nesting, numbers and surrogates hold for what is
ignored too.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from json.encoder import encode_basestring as _quoted
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

from ...checkpoint import Contents, TensorInfo
from ...dtypes import BY_NAME, DType
from ...errors import InputRefused, RunFailed, UsageError, printable
from ...suggest import did_you_mean
from .. import Format, Pieces, Placed, Writer

if TYPE_CHECKING:
    from ..._native import Source

MAX_HEADER = 100_000_000
"""Longest header in bytes, without the 8 bytes of its length (the reference implementation's limit)."""

MAX_ENTRIES = 250_000
"""Most tensors, and most metadata keys: fifty times what the largest models have, and still read in seconds."""

_MAX_VALUES = 10 * MAX_ENTRIES  # values of any kind: a header that lists more isn't even parsed
_MAX_DEPTH = 127  # arrays and objects inside one another
_U64_MAX = 2**64 - 1
_PREFIX = 8
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_ODD_INTEGER = re.compile("-0|[0-9]{20}")
_ESCAPED_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")

Entry = tuple[str, str, "tuple[int, ...]", int, int]
"""Name, dtype name, shape, first byte and end of a tensor, counted from the start of the data."""


# ---------------------------------------------------------------- reading


def sniff(source: Source) -> bool:
    """Whether the file is, or was meant to be, a safetensors file, so that a damaged one gets a precise refusal."""
    head = source.read(0, min(source.size, 64))
    if head[_PREFIX:].lstrip(b" \t\n\r").startswith(b"{"):
        return True
    if head.startswith((b"PK", b"\x80", b"MZ", b"BM")) or (
        head and not head.strip(b"\0")
    ):  # a zip archive, a pickle, others, zeros
        return False
    return len(head) < _PREFIX or int.from_bytes(head[:_PREFIX], "little") <= MAX_HEADER


def read(source: Source) -> Contents:
    """Parse and check the header. Tensors come in the order of their data, then of their appearance.

    Raises InputRefused with one line when the header is not exactly what the format allows. Costs linear time and
    memory: a few times the header's size, thirty times that of a hostile one, which may list ``_MAX_VALUES`` values at
    most. No tensor data is touched.
    """
    text, data_offset = _header_text(source)
    if text.count(",") + text.count("[") + text.count("{") > _MAX_VALUES:
        raise InputRefused(f"the header lists more than {_MAX_VALUES:,} values, more than any model has")
    data_size = source.size - data_offset
    usual = _usual(text, data_offset, data_size)
    if usual is not None:
        tensors, metadata = usual
    else:
        entries, metadata = _parse(text)
        tensors = list(_checked(entries, data_offset, data_size))
    notes = [] if text.startswith("{") else ["the header begins with blanks, which some programs refuse to read"]
    return Contents("safetensors", tensors, metadata, notes, data_offset)


def _header_text(source: Source) -> tuple[str, int]:
    if source.size < _PREFIX:
        raise InputRefused(
            f"{source.size} byte{' is' if source.size == 1 else 's are'} too short for a checkpoint of any format"
            if source.size
            else "the file is empty; download it again"
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


_SIZE = "(?:[1-9][0-9]{0,18}|0)"
_USUAL_ENTRY = re.compile(
    rf'"([^"\\\x00-\x1f]*)":{{"dtype":("[A-Z0-9_]*","shape":\[(?:{_SIZE}(?:,{_SIZE})*)?\]),'
    rf'"data_offsets":\[({_SIZE}),({_SIZE})\]}}(,|}} *\Z)'
)


def _usual(text: str, data_offset: int, data_size: int) -> tuple[list[TensorInfo], dict[str, str]] | None:
    """What ``_parse`` and ``_checked`` give, several times faster and in a tenth of the memory, for a sound header as
    the usual writers write it: no blanks, the metadata first, the tensors in the order of their data. None for others.
    """
    metadata, at = _leading_metadata(text)
    tensors: list[TensorInfo] = []
    kinds: dict[str, tuple[DType, tuple[int, ...], int]] = {}
    position, more = 0, ","
    for found in _USUAL_ENTRY.finditer(text, at) if text.startswith("{") else ():
        if found.start() != at or more != "," or len(tensors) == MAX_ENTRIES:
            return None
        name, kind, begin, end, more = found.groups()
        if kind not in kinds:
            dtype, _, sizes = kind.partition(',"shape":')
            shape = tuple(json.loads(sizes))
            try:
                kinds[kind] = BY_NAME[dtype[1:-1]], shape, _nbytes(name, BY_NAME[dtype[1:-1]], shape)
            except (KeyError, InputRefused):
                return None
        nbytes = kinds[kind][2]
        if int(begin) != position or int(end) != position + nbytes:
            return None
        # Inputs of a merge have the same names.
        tensors.append(TensorInfo(sys.intern(name), *kinds[kind][:2], data_offset + position, nbytes))
        position, at = position + nbytes, found.end()
    names = {info.name for info in tensors}
    if more == "," or position != data_size or len(names) < len(tensors) or _METADATA in names:
        return None
    return tensors, metadata


def _leading_metadata(text: str) -> tuple[dict[str, str], int]:
    """The metadata where they come first and need no closer look, and the index of what follows them."""
    front = f'{{"{_METADATA}":'
    if text.startswith(front):
        try:
            value, at = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(text, len(front))
            if text[at : at + 1] == "," and not _ESCAPED_HALF_PAIR.search(text, 0, at):
                return _parse_metadata(value), at + 1
        except (ValueError, RecursionError, InputRefused):
            pass  # _parse finds out what is wrong
    return {}, 1


def _parse(text: str) -> tuple[list[Entry], dict[str, str]]:
    header = _json(text)
    metadata: dict[str, str] | None = None
    entries: dict[str, Entry] = {}
    for name, value in _members(header, "the header"):
        if name == _METADATA:
            if metadata is not None:
                raise InputRefused(f"{_METADATA} appears twice in the header")
            metadata = _parse_metadata(value)
        elif name in entries:
            raise InputRefused(f"tensor '{printable(name)}' appears twice in the header")
        else:
            entries[name] = _parse_entry(name, value)
    if len(entries) > MAX_ENTRIES:
        raise InputRefused(f"the header lists more than {MAX_ENTRIES:,} tensors, more than any model has")
    return list(entries.values()), metadata or {}


def _json(text: str) -> Any:
    """The header as Python values, an object as a tuple of its (key, value) pairs in their order."""
    try:
        # Nearly no header has an integer that needs a look, and a function for every number takes time.
        parse_int = _integer if _ODD_INTEGER.search(text) else None
        header = json.loads(
            text, object_pairs_hook=tuple, parse_int=parse_int, parse_float=_number, parse_constant=_no_number
        )
    except json.JSONDecodeError as error:
        found = f"'{printable(text[error.pos])}'" if error.pos < len(text) else "its end"
        what = error.msg.lower().removesuffix(" at").removesuffix(" starting")
        raise InputRefused(f"header is not valid JSON at character {error.pos}: {what}, found {found}") from None
    except RecursionError:
        raise _too_deep() from None
    if _ESCAPED_HALF_PAIR.search(text):
        _check_value(header, 0)
    return header


def _integer(text: str) -> int | float:
    """An integer of 64 bits; for serde_json others are floats, and so is -0."""
    value = int(text) if len(text) <= 20 and text != "-0" else None
    return value if value is not None and -(2**63) <= value <= _U64_MAX else _number(text)


def _number(text: str) -> float:
    """InputRefused for what serde_json calls out of range. It keeps the leading digits that fit into 64 bits and scales
    once by a power of ten, so its border lies a few units beside that of correct rounding."""
    value = float(text)
    if abs(value) < 1e308:
        return value
    digits, _, exponent = text.lower().lstrip("-").partition("e")
    whole, _, fraction = digits.partition(".")
    kept = whole[: 20 if int(whole[:20]) <= _U64_MAX else 19]
    significand, scale = int(kept), len(whole) - len(kept)
    for digit in fraction:
        longer = significand * 10 + int(digit)
        if longer > _U64_MAX:
            break
        significand, scale = longer, scale - 1
    scale += int(exponent[:12] or 0)
    if scale > 308 or (scale >= 0 and float(significand) * float(f"1e{scale}") == math.inf):
        raise InputRefused("header is not valid JSON: a number is out of range")
    return value


def _no_number(text: str) -> NoReturn:
    raise InputRefused(f"header is not valid JSON: {text} is not a number")


def _too_deep() -> InputRefused:
    return InputRefused(f"header has more than {_MAX_DEPTH} arrays and objects inside one another")


def _check_value(value: Any, depth: int) -> None:
    """InputRefused for what serde_json refuses in a value of any kind. ``depth`` arrays and objects are around it."""
    level = [value]
    while level:
        inner: list[Any] = []
        containers = False
        for item in level:
            if isinstance(item, str):
                if _HALF_PAIR.search(item):
                    raise InputRefused(f"header is not valid JSON: half a surrogate pair in '{printable(item)}'")
            elif item is not None and not isinstance(item, float | int):
                containers = True
                inner += item if isinstance(item, list) else (part for pair in item for part in pair)
        depth += containers
        if depth > _MAX_DEPTH:
            raise _too_deep()
        level = inner


def _members(value: Any, what: str) -> tuple[tuple[str, Any], ...]:
    if not isinstance(value, tuple):
        raise InputRefused(f"{what} is not a JSON object, found {_found(value)}")
    return value


def _found(value: Any) -> str:
    """What a value is, for messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple):
        return "an object" if value else "an empty object"
    return "a list" if isinstance(value, list) else "a string" if isinstance(value, str) else "a number"


def _parse_metadata(value: Any) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if value is None:
        return metadata
    for key, text in _members(value, _METADATA):
        if key in metadata:
            raise InputRefused(f"metadata key '{printable(key)}' appears twice in the header")
        if not isinstance(text, str):
            raise InputRefused(f"metadata value of '{printable(key)}' is not a string, found {_found(text)}")
        metadata[key] = text
    if len(metadata) > MAX_ENTRIES:
        raise InputRefused(f"the header holds more than {MAX_ENTRIES:,} metadata keys, more than any model has")
    return metadata


def _parse_entry(name: str, value: Any) -> Entry:
    if isinstance(value, list):  # serde also takes a struct as the list of its fields
        if len(value) != len(_FIELDS):
            raise InputRefused(f"the entry of tensor '{printable(name)}' is a list of {len(value)} fields, expected 3")
        value = tuple(zip(_FIELDS, value, strict=True))
    fields: dict[str, Any] = {}
    for field, part in value if type(value) is tuple else _members(value, f"the entry of tensor '{printable(name)}'"):
        if field not in _FIELDS:
            _check_value(part, 2)
        elif field in fields:
            raise InputRefused(f"tensor '{printable(name)}' has the field {field} twice")
        else:
            fields[field] = part
    if len(fields) < len(_FIELDS):
        missing = next(field for field in _FIELDS if field not in fields)
        raise InputRefused(f"tensor '{printable(name)}' lacks the field {missing}")
    dtype = fields["dtype"]
    if type(dtype) is not str:
        dtype = _dtype_of_enum(name, dtype)
    shape = _sizes(name, "shape", fields["shape"])
    begin_end = _sizes(name, "data_offsets", fields["data_offsets"])
    if len(begin_end) != 2:
        raise InputRefused(f"tensor '{printable(name)}' has {len(begin_end)} data_offsets, expected begin and end")
    return name, dtype, shape, begin_end[0], begin_end[1]


def _dtype_of_enum(name: str, value: Any) -> str:
    """serde also takes an enum value as {"F32": null}."""
    if isinstance(value, tuple) and len(value) == 1 and value[0][1] is None:
        return str(value[0][0])
    raise InputRefused(f"dtype of tensor '{printable(name)}' is not a string, found {_found(value)}")


def _sizes(name: str, field: str, value: Any) -> tuple[int, ...]:
    if type(value) is list:
        for size in value:
            if type(size) is not int or not 0 <= size <= _U64_MAX:  # a bool is an int, too
                break
        else:
            return tuple(value)
    raise InputRefused(f"{field} of tensor '{printable(name)}' is not a list of whole numbers below 2^64")


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
        if bits > _U64_MAX:
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
    the whole file. ``packed`` are the tensors' members of the header's JSON object,
    ``length`` bytes, by zlib: the header is needed when the run ends, and is a good part of a merge's memory as text.
    """

    packed: bytes
    length: int
    start: int
    offsets: Sequence[int]
    size: int

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """All bytes before ``start``, as ``pieces`` gives them."""
        return b"".join(piece for _, piece in self.pieces(metadata))

    def pieces(self, metadata: Mapping[str, str]) -> Iterator[tuple[int, bytes]]:
        """All bytes before ``start``. ``metadata`` are no longer than those at the placing."""
        front, end = _around(self.length, metadata)
        taken = len(front) + self.length + len(end)
        room = self.start - _PREFIX - taken
        if room < 0:  # it would be written over the tensors
            raise RunFailed(f"the header takes {taken} bytes, but {self.start - _PREFIX} were reserved for it")
        unpacking, packed, at = zlib.decompressobj(), self.packed, 0
        yield 0, (self.start - _PREFIX).to_bytes(_PREFIX, "little") + front
        while at < self.length:
            piece = unpacking.decompress(packed, 1 << 20)
            yield _PREFIX + len(front) + at, piece
            packed, at = unpacking.unconsumed_tail, at + len(piece)
        yield _PREFIX + len(front) + at, end + b" " * room


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
    entries, offsets, end = BytesIO(), array("Q"), 0
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
        comma = "," if offsets else ""
        offsets.append(end)
        end += kind[0]
        entries.write(_encoded(f'{comma}{_quoted(name)}:{{{kind[1]},"data_offsets":[{offsets[-1]},{end}]}}'))
    listed = entries.getvalue()
    length = -(-sum(map(len, (*_around(len(listed), metadata), listed))) // 8) * 8
    if length > MAX_HEADER:
        raise UsageError(f"the output's header would take {length} bytes, the format allows {MAX_HEADER}")
    start = _PREFIX + length
    return FileLayout(
        zlib.compress(listed, 1), len(listed), start, array("Q", [start + offset for offset in offsets]), start + end
    )


def _around(entries: int, metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """What stands before and behind the tensors' entries, which take so many bytes."""
    if entries and not metadata:
        return b"{", b"}"
    quoted = json.dumps(_checked_metadata(metadata), ensure_ascii=False, separators=(",", ":"))
    return _encoded(f'{{"{_METADATA}":{quoted}{"," if entries else ""}'), b"}"


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
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


def _place(
    entries: Sequence[tuple[str, DType, tuple[int, ...]]], aliases: Mapping[str, str], metadata: Mapping[str, str]
) -> Placed:
    placed = layout(entries, metadata)

    def structure(given: Mapping[str, str], sums: Sequence[int]) -> Pieces:
        return placed.pieces(given)

    return Placed(placed.offsets, placed.start, placed.size, (), structure)


WRITER = Writer("safetensors", (".safetensors",), by_width=True, shares=False, body_hashed=True, place=_place)
FORMAT = Format("safetensors", sniff, read, writer=WRITER)
