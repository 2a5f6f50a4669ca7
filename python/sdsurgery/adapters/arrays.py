"""Tensors of opened files as float32 arrays, one at a time."""

from __future__ import annotations

from typing import Any

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, printable
from ..outline import require_computable
from ..plan import Operand, Plan, View

Array = Any


def array(checkpoint: Checkpoint, info: TensorInfo) -> Array:
    """A tensor, widened to float32 (float64 of F64). InputRefused for one that can't be computed with, or that holds
    NaN or Inf: no factors can be found of those."""
    import numpy as np

    from ..backends import Options
    from ..backends.reference import ReferenceRun, widen
    from ..dtypes import F64
    from ..files import native_errors

    require_computable(info)
    view = None if info.strides is None else View(info.shape, info.strides)
    encoding = None if info.encoded is None else info.encoded.encoding
    place = Operand(info.file, info.dtype, info.offset, view, encoding)
    reader = ReferenceRun(Plan((), (), (), 0, 0), checkpoint.files, None, Options())
    with native_errors(InputRefused):
        stored, dtype = reader.stored(place, 0, info.elements)
    values = widen(stored, dtype, info.dtype is F64).reshape(info.shape)
    if not np.isfinite(values).all():
        raise InputRefused(
            f"{printable(checkpoint.path)}: tensor '{printable(info.name)}' holds NaN or Inf",
            code="nonfinite",
            tensor=info.name,
            path=checkpoint.path,
        )
    return values


def part_of(checkpoint: Checkpoint, info: TensorInfo, transform: str) -> Array:
    """The part of a stored tensor that is a module's own, as an adapter knows it (``names.Slot``)."""
    values = array(checkpoint, info)
    if transform == "transpose":
        return values.T.copy()
    if transform.startswith("split_qkv"):
        rows = len(values) // 3
        first = int(transform[-1]) * rows
        return values[first : first + rows]
    return values
