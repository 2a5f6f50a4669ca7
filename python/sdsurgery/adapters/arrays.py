"""Tensors of opened files as float32 arrays, one at a time."""

from __future__ import annotations

from typing import Any

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, printable
from ..files import native_errors
from ..outline import Region, operand, require_computable
from ..plan import Jobs, Operand, Plan

Array = Any


def values(checkpoint: Checkpoint, region: Region, elements: int) -> Array:
    """A region of one of the checkpoint's files, flat, widened to float32 (float64 of F64), decoded where it is
    encoded."""
    from ..backends import Options
    from ..backends.reference import ReferenceRun
    from ..definitions.conversions import widen
    from ..dtypes import F64

    encoding = None if region.encoded is None else region.encoded.encoding
    place = Operand(region.file, region.dtype, region.offset, region.view, encoding)
    reader = ReferenceRun(Plan((), (), Jobs(()), 0, 0), checkpoint.files, None, Options())
    with native_errors(InputRefused):
        stored, dtype = reader.stored(place, 0, elements)
    return widen(stored, dtype, region.dtype is F64)


def array(checkpoint: Checkpoint, info: TensorInfo) -> Array:
    """A tensor's values. InputRefused for one that can't be computed with, or that holds NaN or Inf: no factors can be
    found of those."""
    import numpy as np

    require_computable(info)
    found = values(checkpoint, operand(0, info), info.elements).reshape(info.shape)
    if not np.isfinite(found).all():
        raise InputRefused(
            f"{printable(checkpoint.path)}: tensor '{printable(info.name)}' holds NaN or Inf",
            code="nonfinite",
            tensor=info.name,
            path=checkpoint.path,
        )
    return found


def integers(checkpoint: Checkpoint, info: TensorInfo) -> Array:
    """A tensor of integers of at most 24 bits, float32."""
    return values(checkpoint, operand(0, info), info.elements).reshape(info.shape)


def part_of(checkpoint: Checkpoint, info: TensorInfo, transform: str) -> Array:
    """The part of a stored tensor that is a module's own, as an adapter knows it (``names.Slot``)."""
    found = array(checkpoint, info)
    if transform == "transpose":
        return found.T.copy()
    if transform.startswith("split_qkv"):
        rows = len(found) // 3
        first = int(transform[-1]) * rows
        return found[first : first + rows]
    return found
