"""The header of a safetensors file by every rule of the format: what ``kinds/safetensors.py`` asks where one is not as
the usual writers write it, and what finds the words for a damaged one.

It is read by ``json.loads`` and checked: the reference implementation's rules (serde_json's) on nesting, numbers and
surrogates hold for what is ignored too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, NoReturn

from ..checkpoint import Form, TensorInfo
from ..dtypes import BY_NAME, DType
from ..errors import InputRefused, printable
from ..suggest import did_you_mean

MAX_ENTRIES = 250_000
"""Most tensors, and most metadata keys: fifty times what the largest models have, and still read in seconds."""

METADATA = "__metadata__"
ESCAPED_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")

_MAX_DEPTH = 127  # arrays and objects inside one another
_U64_MAX = 2**64 - 1
_FIELDS = ("dtype", "shape", "data_offsets")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"[ \t\n\r]*")
_ODD_INTEGER = re.compile("-0|[0-9]{20}")

Entry = tuple[str, str, "tuple[int, ...]", int, int]
"""Name, dtype name, shape, first byte and end of a tensor, counted from the start of the data."""


def parsed(text: str, data_offset: int, data_size: int) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors and the metadata that a header states. InputRefused when it is not what the format allows."""
    entries, metadata = _parse(text)
    return list(_checked(entries, data_offset, data_size)), metadata


def _parse(text: str) -> tuple[list[Entry], dict[str, str]]:
    metadata: dict[str, str] | None = None
    entries: dict[str, Entry] = {}
    for name, value in _header_members(text):
        if name == METADATA:
            if metadata is not None:
                raise InputRefused(f"{METADATA} appears twice in the header")
            metadata = parse_metadata(value)
        elif name in entries:
            raise InputRefused(f"tensor '{printable(name)}' appears twice in the header")
        else:
            entries[name] = _parse_entry(name, value)
            if len(entries) > MAX_ENTRIES:
                raise InputRefused(f"the header lists more than {MAX_ENTRIES:,} tensors, more than any model has")
    return list(entries.values()), metadata or {}


def _header_members(text: str) -> Iterator[tuple[str, Any]]:
    """The members of the header's object one by one: a tree of the values of all of them takes ten times the text."""
    decoder = json.JSONDecoder(
        object_pairs_hook=tuple,
        # Nearly no header has an integer that needs a look, and a function for every number takes time.
        parse_int=_integer if _ODD_INTEGER.search(text) else None,
        parse_float=_number,
        parse_constant=_no_number,
    )
    half_pairs = ESCAPED_HALF_PAIR.search(text) is not None
    try:
        at = _skipped(text, 0)
        if not text.startswith("{", at):
            value, at = decoder.raw_decode(text, at)
            if _skipped(text, at) < len(text):
                raise json.JSONDecodeError("Extra data", text, _skipped(text, at))
            if half_pairs:
                _check_value(value, 0)
            _members(value, "the header")
        yield from _object_members(text, at, decoder, half_pairs)
    except json.JSONDecodeError as error:
        found = f"'{printable(text[error.pos])}'" if error.pos < len(text) else "its end"
        what = error.msg.lower().removesuffix(" at").removesuffix(" starting")
        raise InputRefused(f"header is not valid JSON at character {error.pos}: {what}, found {found}") from None
    except RecursionError:
        raise _too_deep() from None


def _object_members(text: str, at: int, decoder: json.JSONDecoder, half_pairs: bool) -> Iterator[tuple[str, Any]]:
    """The members of the object at ``at``, which must be all of the text."""
    at = _skipped(text, at + 1)
    more = not text.startswith("}", at)
    while more:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = decoder.raw_decode(text, at)
        at = _skipped(text, at)
        if not text.startswith(":", at):
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        value, at = decoder.raw_decode(text, _skipped(text, at + 1))
        if half_pairs:
            _check_value(((name, value),), 0)
        yield name, value
        at = _skipped(text, at)
        more = text.startswith(",", at)
        if more:
            at = _skipped(text, at + 1)
        elif not text.startswith("}", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    at = _skipped(text, at + 1)
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _skipped(text: str, at: int) -> int:
    """The index of what follows blanks at ``at``."""
    return _BLANKS.match(text, at).end()  # type: ignore[union-attr]  # it always matches


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


def parse_metadata(value: Any) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if value is None:
        return metadata
    members = _members(value, METADATA)
    if len(members) > MAX_ENTRIES:
        raise InputRefused(f"the header holds more than {MAX_ENTRIES:,} metadata keys, more than any model has")
    for key, text in members:
        if key in metadata:
            raise InputRefused(f"metadata key '{printable(key)}' appears twice in the header")
        if not isinstance(text, str):
            raise InputRefused(f"metadata value of '{printable(key)}' is not a string, found {_found(text)}")
        metadata[key] = text
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
    forms: dict[tuple[str, tuple[int, ...]], Form] = {}
    for name, dtype_name, shape, begin, end in entries:
        if begin != position or begin > end:
            raise InputRefused(_misplaced(name, begin, end, position, previous))
        form = forms.get((dtype_name, shape))
        if form is None:
            dtype = BY_NAME.get(dtype_name)
            if dtype is None:
                hint = did_you_mean(dtype_name[:32], BY_NAME)
                unknown = printable(dtype_name, 40)
                raise InputRefused(f"tensor '{printable(name)}' has the unknown dtype '{unknown}'{hint}")
            form = forms[dtype_name, shape] = Form(dtype, shape, nbytes_of(name, dtype, shape))
        if form.nbytes != end - begin:
            raise InputRefused(
                f"tensor '{printable(name)}' has {end - begin} bytes of data, "
                f"but {form.dtype} {_shape_text(shape)} takes {form.nbytes}"
            )
        yield TensorInfo(name, data_offset + begin, form)
        position, previous = end, name
    if position != data_size:
        raise InputRefused(f"{data_size - position} bytes after the last tensor belong to no tensor")


def _misplaced(name: str, begin: int, end: int, position: int, previous: str) -> str:
    if begin > end:
        return f"tensor '{printable(name)}' begins at byte {begin} of the data but ends at {end}"
    if begin > position:
        return f"{begin - position} bytes before tensor '{printable(name)}' belong to no tensor"
    return f"tensors '{printable(previous)}' and '{printable(name)}' overlap in the data"


def nbytes_of(name: str, dtype: DType, shape: tuple[int, ...]) -> int:
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
