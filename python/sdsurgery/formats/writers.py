"""The formats that can be written, one table; the suffix of the output's name chooses.

A writer says where in the file each tensor goes; the engine streams the tensors there, and the writer makes the rest
of the file once hashes and checksums are known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..dtypes import DType

    Entries = Sequence[tuple[str, DType, tuple[int, ...]]]  # name, dtype, shape

Pieces = list[tuple[int, bytes]]  # offset in the file, bytes


@dataclass(frozen=True)
class Placed:
    """Where everything goes. ``offsets``: of each tensor, the same for tensors that share their bytes.

    ``sums``: (offset, bytes) of what ``structure`` needs the CRC-32 of. ``structure(metadata, sums)`` gives every byte
    of the file that is not tensor data, for metadata that are no longer than those that the file was laid out with.
    """

    offsets: tuple[int, ...]
    data_start: int
    size: int
    sums: tuple[tuple[int, int], ...]
    structure: Callable[[Mapping[str, str], Sequence[int]], Pieces]


@dataclass(frozen=True)
class Writer:
    """One format. ``by_width``: it wants tensors by falling dtype width. ``shares``: tensors can share their bytes.
    ``body_hashed``: its metadata hold the hash of all tensor data."""

    name: str
    suffixes: tuple[str, ...]
    by_width: bool
    shares: bool
    body_hashed: bool
    place: Callable[[Entries, Mapping[str, str], Mapping[str, str]], Placed]


def _safetensors(entries: Entries, aliases: Mapping[str, str], metadata: Mapping[str, str]) -> Placed:
    from .safetensors import layout

    placed = layout(entries, metadata)

    def structure(given: Mapping[str, str], sums: Sequence[int]) -> Pieces:
        return [(0, placed.header(given))]

    return Placed(placed.offsets, placed.start, placed.size, (), structure)


def _torch(entries: Entries, aliases: Mapping[str, str], metadata: Mapping[str, str]) -> Placed:
    from .torch_zip_writer import layout

    placed = layout(entries, aliases=aliases, metadata=metadata)
    start = placed.records[0][0] if placed.records else placed.total

    def structure(given: Mapping[str, str], sums: Sequence[int]) -> Pieces:
        return placed.finish(sums, given)

    return Placed(placed.offsets, start, placed.total, placed.records, structure)


SAFETENSORS = Writer("safetensors", (".safetensors",), True, False, True, _safetensors)
TORCH = Writer("ckpt", (".ckpt", ".pt", ".pth", ".bin"), False, True, False, _torch)
WRITERS = (SAFETENSORS, TORCH)


def writer_for(path: str | os.PathLike[str]) -> Writer:
    """The writer that the file's suffix asks for; safetensors where the suffix says nothing."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return next((writer for writer in WRITERS if suffix in writer.suffixes), SAFETENSORS)


def is_named(path: str | os.PathLike[str]) -> bool:
    """Whether the file's suffix is that of a format that can be written."""
    return os.path.splitext(os.fspath(path))[1].lower() in writer_for(path).suffixes
