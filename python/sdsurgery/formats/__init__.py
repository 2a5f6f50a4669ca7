"""File formats, one file of ``kinds`` each: how a file is recognised, read, placed and written.

A file's format is recognised by its content, an output's is chosen by its suffix.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from ..discovery import module_names
from . import kinds

if TYPE_CHECKING:
    from .._native import Source
    from ..checkpoint import Contents
    from ..dtypes import DType

    Entries = Sequence[tuple[str, DType, tuple[int, ...]]]  # name, dtype, shape

Pieces = Iterable[tuple[int, bytes]]  # offset in the file, bytes


class Placed(NamedTuple):
    """Where everything goes. ``offsets``: of each tensor, the same for tensors that share their bytes.

    ``sums``: (offset, bytes) of what ``structure`` needs the CRC-32 of. ``structure(metadata, sums)`` gives every byte
    of the file that is not tensor data, for metadata no longer than what the file was laid out with.
    """

    offsets: Sequence[int]
    data_start: int
    size: int
    sums: tuple[tuple[int, int], ...]
    structure: Callable[[Mapping[str, str], Sequence[int]], Pieces]


class Writer(NamedTuple):
    """How a format is written: ``place(entries, aliases, metadata)`` says where each tensor goes. The engine streams
    the tensors there, and the rest of the file is made once hashes and checksums are known.

    ``structured``: ``place`` takes a ``structure`` (``structure.py``) too.
    ``by_width``: it wants tensors by falling dtype width. ``shares``: tensors can share their bytes (``aliases``: name
    to the earlier name). ``body_hashed``: its metadata hold the hash of all tensor data.
    """

    name: str
    suffixes: tuple[str, ...]
    by_width: bool
    shares: bool
    body_hashed: bool
    place: Callable[..., Placed]
    structured: bool = False


class Format(NamedTuple):
    """One format: ``sniff`` looks at the first bytes, ``read`` parses the structure (never tensor data).

    ``options`` are those of ``open_checkpoint`` that ``read`` takes. ``writer`` is None for a format that is only read.
    """

    name: str
    sniff: Callable[[Source], bool]
    read: Callable[..., Contents]
    options: tuple[str, ...] = ()
    writer: Writer | None = None


_registered: list[Format] = []


def register(added: Format) -> Format:
    """Add a format; it is asked before the package's own."""
    _registered.insert(0, added)
    return added


def unregister(added: Format) -> None:
    """Take a format that was added away again."""
    _registered.remove(added)


def formats() -> Iterator[Format]:
    """Every format: the added ones, then the modules of ``kinds`` by name, each imported when its turn comes. The first
    that recognises a file wins."""
    yield from _registered
    yield from map(_own, _names())


@functools.cache
def _names() -> Sequence[str]:
    return module_names(kinds.__path__)


def _own(name: str) -> Format:
    found: Format = import_module(f".kinds.{name}", __name__).FORMAT
    return found


def recognise(source: Source) -> Format | None:
    """The format of a file's content, or None."""
    return next((each for each in formats() if each.sniff(source)), None)


def known() -> str:
    """Names of the formats, for messages."""
    return ", ".join(each.name for each in formats())


def writers() -> Iterator[Writer]:
    """The formats that can be written."""
    return (each.writer for each in formats() if each.writer)


def writer_for(path: str | os.PathLike[str] | None) -> Writer:
    """The writer that the file's suffix asks for; safetensors where the suffix says nothing."""
    found = _named(path) or _own("safetensors").writer
    assert found is not None
    return found


def is_named(path: str | os.PathLike[str]) -> bool:
    """Whether the file's suffix is that of a format that can be written."""
    return _named(path) is not None


def _named(path: str | os.PathLike[str] | None) -> Writer | None:
    suffix = os.path.splitext(os.fspath(path or ""))[1].lower()
    return next((writer for writer in writers() if suffix in writer.suffixes), None) if suffix else None
