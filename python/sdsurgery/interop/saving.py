"""``save``: a dictionary of arrays or tensors as a file, written whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

from .values import bytes_of, described, names_of


def save(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    sync: bool = True,
) -> None:
    """Write NumPy arrays and torch tensors (or an opened checkpoint) to a file; the suffix chooses the format.

    Any dtype that the format has; nothing is cast. Tensors on a GPU and views are copied one at a time. ``metadata`` is
    text by text; ``format=pt`` is added. ``sync`` waits for the disk. The file appears whole or not at all.

    Raises UsageError for an existing file without ``overwrite``, a value that is not an array or tensor, and a dtype or
    name that the format lacks; RunFailed when it cannot be written.
    """
    from .. import _native
    from ..files import native_errors, target_path
    from ..formats import writer_for

    target = target_path(path, overwrite)
    writer = writer_for(target)
    entries = [(name, *described(name, tensors[name])) for name in names_of(tensors)]
    if writer.by_width:
        entries.sort(key=lambda entry: -entry[1].bits)
    texts = {"format": "pt", **(metadata or {})}
    placed = writer.place(entries, {}, texts)
    sums: dict[int, int] = {}
    with native_errors():
        sink = _native.Sink(os.fsencode(target), placed.size)
        try:
            for (name, _, _), offset in zip(entries, placed.offsets, strict=True):
                data = bytes_of(tensors[name])
                sink.write(offset, data)
                if placed.sums:
                    sums[offset] = zlib.crc32(data)
            for offset, piece in placed.structure(texts, [sums.get(start, 0) for start, _ in placed.sums]):
                sink.write(offset, piece)
            sink.commit(overwrite, sync)
        finally:
            sink.abort()  # does nothing after the commit
