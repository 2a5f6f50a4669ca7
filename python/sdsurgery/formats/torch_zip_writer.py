"""The layout of a file that ``torch.load(weights_only=True)`` reads: ``{"state_dict": {name: tensor}}``, or another
structure of dicts and lists, in a zip.

Everything but the tensors' bytes is computed here: what goes where, and the structural bytes themselves. The engine
streams the tensors to the offsets given; their CRC-32 is known only then, so the structure is written last
(:meth:`Layout.finish`). The file is deterministic (timestamps are 1980-01-01), entries are stored, and tensor data
begin at multiples of 64 bytes, padded by an extra field as torch does. Sources: PKWARE's APPNOTE 6.3, CPython's
``pickletools``.

torch.load does not check CRC-32, but ``zipfile`` and ``unzip`` do, so they are always written. ``byteorder`` and
``.data/serialization_id``, which torch has written since 2.1 and 2.3, are left out: the safe unpicklers of the
AUTOMATIC1111 web UI before 1.10, SD.Next and Forge Classic refuse entries that they don't know; torch needs neither.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any

from ..dtypes import DType
from ..errors import RunFailed, UsageError, printable
from ..structure import NESTED, Ref, Structure

ALIGNMENT = 64
ROOT = "archive"
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
_UTF8 = 0x0800
_LONG = 16_000  # characters, of at most 4 bytes each
_SLACK = 4  # bytes of padding in the pickle: from there on, any number can be filled
_DATE = 0x0021  # 1980-01-01, the earliest that the format knows

# Storage classes by stored dtype; those without one are rebuilt from raw bytes.
_STORAGES = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage", "U8": "ByteStorage",
    "BOOL": "BoolStorage", "C64": "ComplexFloatStorage",
}  # fmt: skip


@dataclass(frozen=True)
class _File:
    """One file of the archive: its data, or None when they are a record that the engine writes."""

    name: str
    data: bytes | None
    size: int
    header_offset: int = 0

    @property
    def padding(self) -> int:
        """Bytes of the extra field that moves a record to an aligned place; an extra field has at least 4."""
        if self.data is not None:
            return 0
        gap = -(self.header_offset + 30 + len(self.name) + self.zip64) % ALIGNMENT
        return gap if gap == 0 or gap >= 4 else gap + ALIGNMENT

    @property
    def zip64(self) -> int:
        """Bytes of the local header's zip64 extra field."""
        return 20 if self.size >= _FULL32 else 0

    @property
    def offset(self) -> int:
        """Where the data begin."""
        return self.header_offset + 30 + len(self.name) + self.zip64 + self.padding


@dataclass(frozen=True)
class Layout:
    """Where everything goes.

    ``offsets``: byte in the file of each tensor, in the order given. ``record_of``: which record each tensor is
    (aliases share one). ``records``: (offset, bytes) of each record; the engine writes exactly these. ``total``: bytes
    of the file.
    """

    offsets: Sequence[int]
    record_of: tuple[int, ...]
    records: tuple[tuple[int, int], ...]
    total: int
    _files: tuple[_File, ...]
    _pickle: Callable[[Mapping[str, str] | None], bytes]

    def finish(self, crcs: Sequence[int], metadata: Mapping[str, str] | None = None) -> list[tuple[int, bytes]]:
        """All structural bytes as (offset, bytes), once the CRC-32 of each record is known (zlib's, of its bytes).

        With the records they fill the file exactly, without gaps or overlaps. ``metadata``: other ones than the file
        was laid out with (None: the same). RunFailed when they are longer.
        """
        if len(crcs) != len(self.records):
            raise ValueError(f"{len(self.records)} CRC-32 are needed, {len(crcs)} were given")
        left = iter(crcs)
        pieces: list[tuple[int, bytes]] = []
        central: list[bytes] = []
        for file in self._files:
            data = file.data
            if metadata is not None and file.name.endswith("/data.pkl"):
                data = _padded(self._pickle(metadata), file.size)
            crc = zlib.crc32(data) if data is not None else next(left)
            pieces.append((file.header_offset, _local_header(file, crc) + (data or b"")))
            central.append(_central_header(file, crc))
        directory = b"".join(central)
        start = self._files[-1].offset + self._files[-1].size
        pieces.append((start, directory + _end_records(len(self._files), len(directory), start)))
        return pieces


def layout(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]],
    *,
    aliases: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    structure: Structure = NESTED,
) -> Layout:
    """The layout of a file with these tensors (contiguous, row by row), in this order.

    ``aliases`` maps a tensor's name to that of an earlier one of the same dtype and number of elements whose bytes it
    shares: they are written once. ``metadata`` is stored beside the state dict as ``__metadata__``, long texts as lists
    of their parts; None leaves it out, and so does a ``structure`` that has no place for it.
    Raises UsageError for a dtype that torch lacks (floats of 4 and 6 bits), for names and aliases that do not fit, and
    for a tensor that has no place in the structure.
    """
    if structure.tree is not None:
        _require_places([name for name, _, _ in tensors], structure)
    record_of, sizes = _share(tensors, aliases or {})
    pickled = functools.partial(_pickle, tensors, record_of, structure)
    plain = pickled(metadata)
    plan: list[tuple[str, bytes | None, int]] = [
        ("data.pkl", _padded(plain, len(plain) + _SLACK), 0),
        *((f"data/{index}", None, size) for index, size in enumerate(sizes)),
        ("version", b"3\n", 0),
    ]
    files: list[_File] = []
    pos = 0
    for name, data, size in plan:
        file = _File(f"{ROOT}/{name}", data, size if data is None else len(data), pos)
        files.append(file)
        pos = file.offset + file.size
    records = tuple((file.offset, file.size) for file in files if file.data is None)
    directory = sum(len(_central_header(file, 0)) for file in files)
    total = pos + directory + len(_end_records(len(files), directory, pos))
    offsets = tuple(records[index][0] for index in record_of)
    return Layout(offsets, tuple(record_of), records, total, tuple(files), pickled)


def _require_places(names: Sequence[str], structure: Structure) -> None:
    placed = structure.names()
    for name in names:
        if name not in placed:
            raise UsageError(
                f"tensor '{printable(name)}' has no place in the structure of the file that the others come from; "
                "write a .safetensors file instead",
                code="bad_output",
            )


def _share(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], aliases: Mapping[str, str]
) -> tuple[list[int], list[int]]:
    """(record of each tensor, bytes of each record)."""
    place: dict[str, int] = {}
    of: list[int] = []
    sizes: list[int] = []
    kinds: list[DType] = []
    for name, dtype, shape in tensors:
        label = f"tensor '{printable(name)}'"
        if name in place:
            raise UsageError(f"{label} appears twice")
        if not dtype.torch:
            raise UsageError(f"{label}: torch has no dtype for {dtype.name}; write a .safetensors file instead")
        nbytes = _elements(shape) * dtype.itemsize
        target = aliases.get(name)
        if target is None:
            index = len(sizes)
            sizes.append(nbytes)
            kinds.append(dtype)
        else:
            index = place.get(target, -1)
            if index < 0 or kinds[index] != dtype or sizes[index] != nbytes:
                raise UsageError(f"{label} cannot share the bytes of '{printable(target)}'")
        place[name] = index
        of.append(index)
    return of, sizes


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# --- the pickle: the same opcodes that torch.save writes under protocol 2 --------------------------------------------


class _Pickler:
    """Just enough of a pickler: texts and globals are memoised, so that each is written once."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str, int] = {}

    def text(self, text: str) -> None:
        raw = text.encode("utf-8")
        self._once("text " + text, b"X" + pack("<L", len(raw)) + raw)

    def long_text(self, text: str) -> None:
        """A text, or a list of its parts when it is longer than readers keep (MAX_TEXT of the pickle machine)."""
        if len(text) <= _LONG:
            self.text(text)
            return
        self.out += b"]("
        for at in range(0, len(text), _LONG):
            self.text(text[at : at + _LONG])
        self.out += b"e"

    def name(self, module: str, name: str) -> None:
        self._once(f"global {module} {name}", f"c{module}\n{name}\n".encode())

    def value(self, item: Any, tensor: Callable[[str], None]) -> None:
        """A dict, list, tuple or plain value; ``tensor`` writes what a Ref stands for."""
        if isinstance(item, Ref):
            tensor(item.name)
        elif isinstance(item, dict):
            self.out += b"}("
            for key, value in item.items():
                self.value(key, tensor)
                self.value(value, tensor)
            self.out += b"u"
        elif isinstance(item, list | tuple):
            self.out += b"](" if isinstance(item, list) else b"("
            for value in item:
                self.value(value, tensor)
            self.out += b"e" if isinstance(item, list) else b"t"
        elif isinstance(item, str):
            self.text(item)
        elif isinstance(item, bool):
            self.out += b"\x88" if item else b"\x89"
        elif isinstance(item, int):
            self.integer(item)
        else:
            self.out += b"N" if item is None else b"G" + pack(">d", item)

    def integer(self, value: int) -> None:
        if not -(1 << 31) <= value < 1 << 31:
            raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            self.out += pack("<cB", b"\x8a", len(raw)) + raw
        elif not 0 <= value < 65536:
            self.out += pack("<ci", b"J", value)
        elif value < 256:
            self.out += pack("<cB", b"K", value)
        else:
            self.out += pack("<cH", b"M", value)

    def integers(self, values: Sequence[int]) -> None:
        self.out += b"("
        for value in values:
            self.integer(value)
        self.out += b"t"

    def _once(self, key: str, code: bytes) -> None:
        index = self.memo.get(key)
        if index is None:
            index = self.memo[key] = len(self.memo)
            self.out += code + (pack("<cB", b"q", index) if index < 256 else pack("<cL", b"r", index))
        else:
            self.out += pack("<cB", b"h", index) if index < 256 else pack("<cL", b"j", index)


def _pickle(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]],
    record_of: Sequence[int],
    structure: Structure,
    metadata: Mapping[str, str] | None,
) -> bytes:
    """``{"state_dict": {name: tensor, …}}``, and ``"__metadata__"`` when there is any; or another structure."""
    pickler = _Pickler()
    if not structure.nested:
        places = {name: (dtype, shape, record) for (name, dtype, shape), record in zip(tensors, record_of, strict=True)}
        pickler.value(structure.value(places), lambda name: _tensor(pickler, *places[name]))
        pickler.out += b"."
        return bytes(pickler.out)
    pickler.out += b"}("
    pickler.text("state_dict")
    pickler.out += b"}("
    for (name, dtype, shape), record in zip(tensors, record_of, strict=True):
        pickler.text(name)
        _tensor(pickler, dtype, shape, record)
    pickler.out += b"u"
    if metadata is not None:
        pickler.text("__metadata__")
        pickler.out += b"}("
        for key, value in metadata.items():
            pickler.text(key)
            pickler.long_text(value)
        pickler.out += b"u"
    pickler.out += b"u."
    return bytes(pickler.out)


def _padded(pickled: bytes, size: int) -> bytes:
    """The pickle in exactly ``size`` bytes: the whole dict is memoised again and again, in 2 or 5 bytes each time."""
    gap = size - len(pickled)
    if gap < _SLACK:
        raise RunFailed(f"the structure takes {len(pickled)} bytes, but {size - _SLACK} were reserved for it")
    body, last = pickled[:-1], pickled[-1:]
    odd = gap % 2
    return body + b"r\x00\x00\x00\x00" * odd + b"q\x00" * ((gap - 5 * odd) // 2) + last


def _tensor(pickler: _Pickler, dtype: DType, shape: tuple[int, ...], record: int) -> None:
    """``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``, or ``_v3`` with the dtype behind it."""
    untyped = "" if dtype.name in _STORAGES else dtype.torch
    elements = _elements(shape)
    pickler.name("torch._utils", "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2")
    pickler.out += b"(("
    pickler.text("storage")
    if untyped:
        pickler.name("torch.storage", "UntypedStorage")
    else:
        pickler.name("torch", _STORAGES[dtype.name])
    pickler.text(str(record))
    pickler.text("cpu")
    pickler.integer(elements * dtype.itemsize if untyped else elements)
    pickler.out += b"tQK\x00"
    pickler.integers(shape)
    pickler.integers(_strides(shape))
    pickler.out += b"\x89"
    pickler.name("collections", "OrderedDict")
    pickler.out += b")R"
    if untyped:
        pickler.name("torch", untyped)
    pickler.out += b"tR"


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Row-major strides; a dimension of size 0 counts as 1, as torch has it."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


# --- the zip structure -----------------------------------------------------------------------------------------------


def _local_header(file: _File, crc: int) -> bytes:
    large = file.zip64 > 0
    size = _FULL32 if large else file.size
    extra = pack("<2H2Q", 1, 16, file.size, file.size) if large else b""
    if file.padding:
        extra += pack("<2s H", b"FB", file.padding - 4) + b"Z" * (file.padding - 4)
    fields = (_version(large), _UTF8, 0, 0, _DATE, crc, size, size, len(file.name), len(extra))
    return b"PK\x03\x04" + pack("<5H3L2H", *fields) + file.name.encode() + extra


def _central_header(file: _File, crc: int) -> bytes:
    far, large = file.header_offset >= _FULL32, file.zip64 > 0
    values = ([file.size, file.size] if large else []) + ([file.header_offset] if far else [])
    extra = pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    size, version = _FULL32 if large else file.size, _version(bool(values))
    fields = (version, version, _UTF8, 0, 0, _DATE, crc, size, size, len(file.name), len(extra), 0, 0, 0, 0)
    offset = pack("<L", min(file.header_offset, _FULL32))
    return b"PK\x01\x02" + pack("<6H3L5HL", *fields) + offset + file.name.encode() + extra


def _end_records(count: int, nbytes: int, start: int) -> bytes:
    """The end record, with the zip64 records in front of it when a number is too large for it."""
    small = pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, *[min(count, _FULL16)] * 2, min(nbytes, _FULL32), min(start, _FULL32), 0
    )
    if count < _FULL16 and nbytes < _FULL32 and start < _FULL32:
        return small
    large = pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, nbytes, start)
    return large + pack("<4sLQL", b"PK\x06\x07", 0, start + nbytes, 1) + small


def _version(zip64: bool) -> int:
    return 45 if zip64 else 20
