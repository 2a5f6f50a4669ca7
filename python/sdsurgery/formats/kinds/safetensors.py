"""The safetensors format: its header, read and written. Tensor data never passes through Python.

A file is an 8-byte little-endian length, a JSON object of that many bytes, then the data. :func:`read` accepts exactly
the headers that the reference implementation accepts (huggingface/safetensors, ``safetensors/src/tensor.rs`` over
serde_json; the oddities were measured on its release 0.8.0), except that it also refuses the duplicates which that one
silently overwrites, a tensor name or a metadata key given twice, and more than ``MAX_ENTRIES`` of either.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Any, NamedTuple

from ...checkpoint import Contents, Form, TensorInfo
from ...dtypes import BY_NAME, DType
from ...errors import InputRefused, RunFailed, UsageError, printable
from .. import Format, Pieces, Placed, Writer
from ..safetensors_header import ESCAPED_HALF_PAIR, MAX_ENTRIES, METADATA, nbytes_of, parse_metadata, parsed

if TYPE_CHECKING:
    from ..._native import Source

MAX_HEADER = 100_000_000
"""Longest header in bytes, without the 8 bytes of its length (the reference implementation's limit)."""

_MAX_VALUES = 8 * MAX_ENTRIES  # values of any kind: a header that lists more isn't even parsed
_PREFIX = 8


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
    memory: a few times the header's size, or for hostile values a hundred bytes each, of which it may list
    ``_MAX_VALUES`` at most. Of tensor data only the last bytes are read.
    """
    text, data_offset = _header_text(source)
    lists = text.count("[") + text.count("{")
    if text.count(",") + lists > _MAX_VALUES:
        raise InputRefused(f"the header lists more than {_MAX_VALUES:,} values, more than any model has")
    texts = 5 * min(lists, MAX_ENTRIES) + 2 * MAX_ENTRIES  # five for each tensor, two for each metadata key
    if text.count('"') > 2 * texts and any(islice(_TEXT.finditer(text), texts, None)):
        raise InputRefused(f"the header holds more than {texts:,} texts, more than its tensors and any metadata have")
    data_size = source.size - data_offset
    tensors, metadata = _usual(text, data_offset, data_size) or parsed(text, data_offset, data_size)
    notes = [] if text.startswith("{") else ["the header begins with blanks, which some programs refuse to read"]
    notes += _zero_tail(source, tensors)
    return Contents("safetensors", tensors, metadata, notes, data_offset)


_TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TAIL, _LOOK = 1 << 20, 4096


def _zero_tail(source: Source, tensors: Sequence[TensorInfo]) -> list[str]:
    """A note of a download that was never finished: a megabyte or more of tensors at the end of the data begin and
    end in zeros, and one in front of them does not. Of any other file only the last bytes are read."""
    zeros, zero_from = 0, source.size  # the bytes from there to the end of the next tensor are zeros
    for index in range(len(tensors) - 1, -1, -1):
        info = tensors[index]
        nbytes = info.form.nbytes
        begin, end = info.offset, info.offset + nbytes
        last = max(0, end - _LOOK)
        if begin < zero_from:
            zero_from = last + len(source.read(last, end - last).rstrip(b"\0"))
        if zero_from > max(begin, last) or (begin < last and source.read(begin, _LOOK).strip(b"\0")):
            if zeros < _TAIL:
                break
            return [
                f"it ends in zeros (its last {len(tensors) - index - 1} tensors, from "
                f"'{printable(tensors[index + 1].name)}' on): space that a downloader reserved and never filled; "
                "download it again"
            ]
        zeros += nbytes
    return []


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


_FRONT, _ENTRY, _METADATA_KEY, _NEXT, _LAST = [
    re.compile(pattern.replace("~", r"[ \t\n\r]*").replace("SIZE", "(?:[1-9][0-9]{0,18}|0)"), re.DOTALL)
    for pattern in (
        r"\{~",
        r'"([^"\\\x00-\x1f]*)"~:~\{~"dtype"~:~("[A-Z0-9_]*"~,~"shape"~:~\[~(?:SIZE(?:~,~SIZE){0,31})?~\])~,~'
        r'"data_offsets"~:~\[~(SIZE)~,~(SIZE)~\]~\}(~,~|~\}~\Z)|(.+)',  # an entry, or all that is left
        rf'"{METADATA}"~:~',
        "~,~",
        r"~\}~\Z",
    )
]


def _usual(text: str, data_offset: int, data_size: int) -> tuple[list[TensorInfo], dict[str, str]] | None:
    """What ``parsed`` gives, several times faster, for a sound header as writers write it, with or without blanks:
    names without escapes, an entry's fields in the usual order, the metadata first or last. None for others.
    """
    front = _FRONT.match(text)
    if front is None:
        return None
    leading = _usual_metadata(text, front.end(), _NEXT)
    metadata, at = leading or ({}, front.end())
    tensors: list[TensorInfo] = []
    forms: dict[str, Form | None] = {}
    position, ordered, closed, rest = 0, True, False, ""
    for name, kind, first, last, more, rest in map(re.Match.groups, _ENTRY.finditer(text, at)):
        if rest:
            break
        form = forms.get(kind)
        if form is None:
            form = forms[kind] = _form(name, kind)
        begin, end = int(first), int(last)
        if form is None or end - begin != form.nbytes:
            return None
        ordered, position, closed = ordered and begin == position, end, "}" in more
        tensors.append(TensorInfo(sys.intern(name), data_offset + begin, form))  # inputs of a merge have the same names
    if not closed:
        trailing = None if leading or not tensors else _usual_metadata(text, len(text) - len(rest or ""), _LAST)
        if trailing is None:
            return None
        metadata = trailing[0]
    if not ordered:
        tensors.sort(key=lambda info: (info.offset, info.nbytes))
        position = _end_of(tensors, data_offset)
    names = {info.name for info in tensors}
    if position != data_size or not len(tensors) == len(names) <= MAX_ENTRIES or METADATA in names:
        return None
    return tensors, metadata


def _form(name: str, kind: str) -> Form | None:
    """What an entry says of its tensor's dtype and shape; None where that needs a closer look."""
    stated = json.loads(f'{{"dtype":{kind}}}')
    try:
        dtype, shape = BY_NAME[stated["dtype"]], tuple(stated["shape"])
        return Form(dtype, shape, nbytes_of(name, dtype, shape))
    except (KeyError, InputRefused):
        return None


def _usual_metadata(text: str, at: int, behind: re.Pattern[str]) -> tuple[dict[str, str], int] | None:
    """The metadata where they stand at ``at`` and need no closer look, and the index after what is ``behind`` them."""
    key = _METADATA_KEY.match(text, at)
    try:
        if key is not None:
            value, end = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(text, key.end())
            rest = behind.match(text, end)
            if rest is not None and not ESCAPED_HALF_PAIR.search(text, at, end):
                return parse_metadata(value), rest.end()
    except (ValueError, RecursionError, InputRefused):
        pass  # parsed finds out what is wrong
    return None


def _end_of(tensors: Sequence[TensorInfo], data_offset: int) -> int:
    """Where the last of the sorted tensors ends, counted from the start of the data; -1 unless they tile them."""
    position = data_offset
    for info in tensors:
        if info.offset != position:
            return -1
        position += info.nbytes
    return position - data_offset


# ---------------------------------------------------------------- writing


class FileLayout(NamedTuple):
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
    names = {METADATA}
    offsets, end = array("Q"), 0
    packing, packed, listed = zlib.compressobj(1), bytearray(), 0
    texts: list[str] = []
    kinds: dict[tuple[DType, tuple[int, ...]], tuple[int, str]] = {}
    for name, dtype, shape in tensors:
        if name in names:
            if name == METADATA:
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
        texts.append(f'{comma}{_quoted(name)}:{{{kind[1]},"data_offsets":[{offsets[-1]},{end}]}}')
        if len(texts) == _TOGETHER:
            listed += _packed(texts, packing, packed)
    listed += _packed(texts, packing, packed)
    packed += packing.flush()
    length = -(-(sum(map(len, _around(listed, metadata))) + listed) // 8) * 8
    if length > MAX_HEADER:
        raise UsageError(f"the output's header would take {length} bytes, the format allows {MAX_HEADER}")
    start = _PREFIX + length
    return FileLayout(bytes(packed), listed, start, array("Q", [start + offset for offset in offsets]), start + end)


_TOGETHER = 1000  # entries that are packed at once


def _packed(texts: list[str], packing: Any, packed: bytearray) -> int:
    """Bytes of the texts, which are added to what is packed and cleared."""
    data = _encoded("".join(texts))
    packed += packing.compress(data)
    texts.clear()
    return len(data)


def _around(entries: int, metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    """What stands before and behind the tensors' entries, which take so many bytes."""
    if entries and not metadata:
        return b"{", b"}"
    quoted = json.dumps(_checked_metadata(metadata), ensure_ascii=False, separators=(",", ":"))
    return _encoded(f'{{"{METADATA}":{quoted}{"," if entries else ""}'), b"}"


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
        return nbytes_of(name, dtype, shape)
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
