"""``save``: a dictionary of arrays or tensors as a file, written whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

from ..dtypes import BY_NAME, DType
from ..errors import UsageError, printable
from .names import NUMPY, TORCH


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
    from ..engine import native_errors, target_path
    from ..formats import writer_for

    target = target_path(path, overwrite)
    writer = writer_for(target)
    entries = [(name, *_described(name, tensors[name])) for name in _names(tensors)]
    if writer.by_width:
        entries.sort(key=lambda entry: -entry[1].bits)
    texts = {"format": "pt", **(metadata or {})}
    placed = writer.place(entries, {}, texts)
    sums: dict[int, int] = {}
    with native_errors():
        sink = _native.Sink(os.fsencode(target), placed.size)
        try:
            for (name, _, _), offset in zip(entries, placed.offsets, strict=True):
                data = _bytes(tensors[name])
                sink.write(offset, data)
                if placed.sums:
                    sums[offset] = zlib.crc32(data)
            for offset, piece in placed.structure(texts, [sums.get(start, 0) for start, _ in placed.sums]):
                sink.write(offset, piece)
            sink.commit(overwrite, sync)
        finally:
            sink.abort()  # does nothing after the commit


def _names(tensors: Mapping[str, Any]) -> list[str]:
    names = list(tensors)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"a tensor's name must be text, not {type(name).__name__}", code="bad_array")
    return names


def _described(name: str, value: Any) -> tuple[DType, tuple[int, ...]]:
    """A value's dtype and shape. UsageError, with the tensor's name, for what cannot be written."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr"):
        if str(value.layout) != "torch.strided":
            raise _refused(name, f"a {value.layout} tensor")
        known = {f"torch.{torch_name}": ours for ours, torch_name in TORCH.items()}
    else:
        import numpy as np

        if not isinstance(value, np.ndarray | np.generic):
            raise _refused(name, type(value).__name__)
        known = {numpy_name: ours for ours, numpy_name in NUMPY.items()}
        known |= {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}  # of ml_dtypes
    ours = known.get(str(value.dtype.newbyteorder("=") if hasattr(value.dtype, "newbyteorder") else value.dtype))
    if ours is None:
        raise _refused(name, f"{value.dtype} values")
    return BY_NAME[ours], tuple(value.shape)


def _refused(name: str, what: str) -> UsageError:
    text = f"tensor '{printable(name)}': save writes NumPy arrays and dense torch tensors, not {what}"
    return UsageError(text, code="bad_array", tensor=name)


def _bytes(value: Any) -> memoryview:
    """The elements, row by row and little-endian; a copy only where they don't lie so already."""
    import numpy as np

    if hasattr(value, "data_ptr"):
        import torch

        flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy())
    array = np.ascontiguousarray(value).reshape(-1)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    data: memoryview = array.view(np.uint8).data
    return data
