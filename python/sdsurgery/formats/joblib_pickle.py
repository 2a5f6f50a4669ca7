"""Follows a pickle as ``joblib.load`` does, which reads arrays out of the file between the opcodes. For ``scan``.

After BUILD of a ``NumpyArrayWrapper`` joblib takes an array's bytes from the file, by the shape and dtype that the
wrapper was given, or by ``pickle.load`` where elements are objects. ``pickle.load`` of the same file takes these bytes
for opcodes, so a file with such arrays is followed in both ways. Source: ``joblib/numpy_pickle.py`` of joblib 1.6,
``numpy/_core/src/multiarray/descriptor.c`` (``arraydescr_setstate``), read as documentation.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any, NamedTuple

from .pickle_calls import class_objection
from .pickle_follow import Pickle
from .pickle_followed import Made, Name, Pairs
from .pickle_stream import Stopped

WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"

_NEEDED = frozenset(("subclass", "shape", "order", "dtype", "allow_mmap"))
_ALIGNMENT = "numpy_array_alignment_bytes"
_MAX_HELD = 200  # items of a dict that are kept
_MAX_DEPTH = 16  # of dtypes inside dtypes
_KIND = re.compile(r"([biufcmMSUVO?])(\d*)")
_SIZES = {
    "?": (1,), "b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8, 12, 16), "c": (8, 16, 24, 32),
    "m": (8,), "M": (8,),
}  # fmt: skip
_SIZED = "SUV"  # whose size stands in the state
_HAS_OBJECT = 1  # of a dtype's flags


class _Dtype(Made):
    """A call of numpy.dtype: its arguments, and the states that were set."""

    __slots__ = ("args", "states")

    def __init__(self, args: Any) -> None:
        super().__init__("numpy.dtype")
        self.args = args
        self.states: list[Any] = []


class _Element(NamedTuple):
    """Bytes of an element; whether it holds Python objects."""

    size: int
    objects: bool


class JoblibPickle(Pickle):
    """One pickle, followed as joblib reads it; attributes as of ``Pickle``."""

    def call(self, function: Any, args: Any) -> Any:
        made = super().call(function, args)
        return _Dtype(args) if isinstance(function, Name) and function.label == "numpy.dtype" else made

    def _set(self, target: Pairs | list[Any], items: list[Any]) -> None:
        super()._set(target, items)
        if isinstance(target, Pairs) and target.held is not None:
            target.held = (*target.held, *items) if len(target.held) + len(items) <= 2 * _MAX_HELD else None

    def _build(self, opcode: int) -> None:
        state, target = self._stack[-1], self._stack[-2]
        super()._build(opcode)
        if isinstance(target, _Dtype):
            target.states.append(state)
            if _kind(target.args) is None:
                self.doubt("sets the state of a dtype that may be NumPy's own")
        elif isinstance(target, Made) and target.label == WRAPPER:
            self._array(_attributes(state))
            self._stack[-1] = Made("numpy.ndarray")

    def _array(self, stated: dict[str, Any]) -> None:
        """Go behind the bytes of an array."""
        element = _element(stated.get("dtype"), 0)
        count = _count(stated.get("shape"))
        named = _NEEDED <= stated.keys() <= _NEEDED | {_ALIGNMENT} and isinstance(stated["order"], str)
        if element is None or count is None or not named or type(stated["allow_mmap"]) is not bool:
            raise self._unknown("whose dtype, shape or attributes are not the usual ones")
        against = class_objection(stated["subclass"])
        if against:
            self.doubt(against)
        if self._base + self._at < self.frame_end:
            raise self._unknown("inside a frame")
        if not element.objects:
            self._skip_elements(count, element.size, stated.get(_ALIGNMENT) is not None)
        elif stated["allow_mmap"]:
            raise self._unknown("of objects that are mapped into memory")
        else:
            self._follow_objects()

    def _skip_elements(self, count: int, size: int, aligned: bool) -> None:
        if aligned:
            self._skip(self._take(1)[0])
        if not size:
            raise Stopped("an array of elements without bytes")
        self._skip(count * size)

    def _follow_objects(self) -> None:
        """The elements are a pickle of their own."""
        inside = Pickle(self.source, self._base + self._at, self._allowed - self.opcodes)
        self.opcodes += inside.opcodes
        self.include(inside)
        if not inside.ended:
            raise Stopped(inside.stopped)
        if inside.end < inside.frame_end:
            raise self._unknown("of objects whose pickle ends inside a frame, which loaders read differently")
        self._base, self._at, self._data = inside.end, 0, b""

    def _unknown(self, what: str) -> Stopped:
        self.doubt(f"reads a joblib array {what}")
        return Stopped("a joblib array that cannot be followed")


def _attributes(state: Any) -> dict[str, Any]:
    """What BUILD sets by a dict of texts and values; nothing where that is not known."""
    held = state.held if isinstance(state, Pairs) else None
    if not held or not all(isinstance(key, str) for key in held[::2]):
        return {}
    return dict(zip(held[::2], held[1::2], strict=True))


def _count(shape: Any) -> int | None:
    """Elements of an array; None where joblib, which counts in 64 bits, might count others."""
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    count = prod(size or 1 for size in shape)
    return prod(shape) if count < 2**62 else None


def _element(dtype: Any, depth: int) -> _Element | None:
    """What numpy.dtype gives for a stored dtype; None where that is not certain."""
    if not isinstance(dtype, _Dtype) or len(dtype.states) != 1 or depth > _MAX_DEPTH:
        return None
    kind = _kind(dtype.args)
    state = dtype.states[0]
    if kind is None or not isinstance(state, tuple) or len(state) not in (8, 9):
        return None
    code, digits = kind
    version, _, subarray, names, fields, size, _, flags = state[:8]
    if version not in (3, 4) or type(flags) is not int or (len(state) == 9 and code not in "mM"):
        return None
    if code == "V" and type(size) is int:
        inside = _parts(subarray, names, fields, size, depth)
        return None if inside is None or inside != bool(flags & _HAS_OBJECT) else _Element(size, inside)
    if subarray is not None or names is not None or fields is not None or (flags & _HAS_OBJECT) != (code == "O"):
        return None
    if code == "O":
        return _Element(8, True)
    if code in _SIZED:
        return _Element(size, False) if type(size) is int and size >= 0 else None
    return _Element(digits, False) if digits in _SIZES[code] else None


def _kind(args: Any) -> tuple[str, int] | None:
    """The arguments as ``dtype.__reduce__`` gives them: ("f8", align, copy), of which the last is always true."""
    if not isinstance(args, tuple) or len(args) != 3 or not isinstance(args[0], str):
        return None
    found = _KIND.fullmatch(args[0])
    known = all(type(value) in (bool, int) for value in args[1:])
    return (found[1], int(found[2] or 0)) if found and known and args[2] else None


def _parts(subarray: Any, names: Any, fields: Any, size: int, depth: int) -> bool | None:
    """Whether a dtype of parts holds objects; None where its parts aren't certain to lie within its bytes."""
    if subarray is not None:
        if not isinstance(subarray, tuple) or len(subarray) != 2 or names is not None or fields is not None:
            return None
        part = _element(subarray[0], depth + 1)
        count = _count(subarray[1] if isinstance(subarray[1], tuple) else (subarray[1],))
        return part.objects if part and count is not None and count * part.size == size else None
    if names is None and fields is None:
        return False if size >= 0 else None
    found = _attributes(fields)
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names) or set(names) != set(found):
        return None
    objects = False
    for field in found.values():
        if not isinstance(field, tuple) or len(field) != 2 or type(field[1]) is not int:
            return None
        part = _element(field[0], depth + 1)
        if part is None or field[1] < 0 or field[1] + part.size > size:
            return None
        objects = objects or part.objects
    return objects
