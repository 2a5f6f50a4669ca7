"""The header of a ``.npy`` file: whether ``np.load`` would unpickle what follows. For ``scan``.

Source: ``numpy/lib/format.py`` (format versions 1.0 to 3.0), read as documentation.
"""

from __future__ import annotations

import json
import re
from math import prod
from typing import Any, NamedTuple

from ..errors import InputRefused
from .pickle_stream import Bytes

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 20
_SIMPLE = re.compile(r"[<>|=]?([a-zA-Z?])(\d*)(\[\w+\])?")
_TOKEN = re.compile(r"""\s+|'([^'\\]*)'|"([^"\\]*)"|True|False|None|[][(){},:]|-?\d+L?""")
_WORDS = {"True": "true", "False": "false", "None": "null", "(": "[", ")": "]"}


class Header(NamedTuple):
    """``pickled``: the elements are a pickle. ``end``: of the data; None when the dtype's size is not known."""

    pickled: bool
    start: int
    end: int | None


def read_header(source: Bytes) -> Header:
    """InputRefused for a header that np.load would not take either."""
    version, width = source.read(0, 8)[6], 2
    if version in (2, 3):
        width = 4
    elif version != 1:
        raise InputRefused(f"NumPy array of the unknown format version {version}")
    length = int.from_bytes(source.read(8, width), "little") if source.size >= 8 + width else -1
    start = 8 + width + length
    if not 0 <= length <= MAX_HEADER or start > source.size:
        raise InputRefused("NumPy array with a damaged header")
    text = source.read(8 + width, length).decode("utf-8" if version == 3 else "latin-1", "replace")
    try:
        header = _literal(text)
        descr, shape = header["descr"], header["shape"]
        count = prod(int(size) for size in shape)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputRefused("NumPy array with a damaged header") from None
    pickled, size = _element(descr, 0)
    return Header(pickled, start, None if size is None or count < 0 else start + count * size)


def _literal(text: str) -> Any:
    """The header's Python literal, tuples as lists. Not by Python's own parser, which would compile it."""
    parts, pos = [], 0
    while pos < len(text):
        token = _TOKEN.match(text, pos)
        if token is None:
            raise ValueError(text)
        pos = token.end()
        quoted = token[1] if token[1] is not None else token[2]
        word = token[0]
        if quoted is not None:
            parts.append(json.dumps(quoted))
        elif not word.isspace():
            closes = word in (")", "]", "}")
            if closes and parts and parts[-1] == ",":
                parts.pop()
            parts.append(_WORDS.get(word, word.rstrip("L")))
    return json.loads("".join(parts))


def _element(descr: Any, depth: int) -> tuple[bool, int | None]:
    """Whether an element holds Python objects, and its bytes."""
    if depth > 16:
        raise InputRefused("NumPy array with a damaged header")
    if isinstance(descr, str):
        simple = _SIMPLE.fullmatch(descr)
        if simple is None:
            return True, None  # np.save writes no such name; np.dtype knows "object", "i4,O" and more
        code, digits = simple[1], int(simple[2] or 0)
        return code == "O", {"?": 1, "b": digits or 1, "U": 4 * digits}.get(code, digits)
    if isinstance(descr, list) and len(descr) == 2 and _is_shape(descr[1]):  # a subarray
        pickled, size = _element(descr[0], depth + 1)
        shape = descr[1] if isinstance(descr[1], list) else [descr[1]]
        return pickled, None if size is None else size * prod(shape)
    if isinstance(descr, list):
        fields = [_field(field, depth + 1) for field in descr]
        sizes = [size for _, size in fields]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        return any(pickled for pickled, _ in fields), total
    return True, None


def _is_shape(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(size, int) for size in value))


def _field(field: Any, depth: int) -> tuple[bool, int | None]:
    """(name, dtype[, shape])"""
    if not isinstance(field, list) or len(field) not in (2, 3):
        raise InputRefused("NumPy array with a damaged header")
    return _element([field[1], field[2]] if len(field) == 3 else field[1], depth)
