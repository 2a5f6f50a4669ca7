"""Synthetic checkpoints with the true layouts, tiny or full size, for tests, benchmarks and the demo.

Written by the native engine itself (values are generated as the file streams), so a full-size SDXL file takes seconds
and no memory. The same arguments give the same bytes on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import engine
from .backends import Options
from .dtypes import BY_OPTION, F32, I32, I64, DType
from .errors import UsageError
from .files import target_path
from .formats import writer_for
from .metadata import Metadata
from .outline import FILLED, Outline, Piece, Region, whole
from .plan import Fill

if TYPE_CHECKING:
    from .layouts import Layout, LayoutTensor


def write_checkpoint(
    path: str | os.PathLike[str],
    family: str = "sd1",
    *,
    dtype: str = "fp16",
    seed: int = 0,
    ema: bool = False,
    size: str = "full",
    metadata: Mapping[str, str] | None = None,
    keep: Callable[[LayoutTensor], bool] | None = None,
    overwrite: bool = False,
) -> int:
    """Write a checkpoint of ``family`` (a name from ``layouts``) and return its size in bytes.

    The suffix of ``path`` decides the format, as for every verb (``formats``).

    ``size``: ``full`` has the true shapes; ``tiny`` has all names, with every dimension of 64 or more divided by 16
    unless that dimension identifies the family. ``dtype``: of the float weights. ``ema``: with the EMA twin.
    ``keep``: a filter over the layout's tensors. Weights are normally distributed with deviation 1/√fan-in,
    norm weights around 1.
    """
    from .layouts import get

    if size not in ("full", "tiny"):
        raise UsageError(f"size must be full or tiny, not {size!r}")
    if dtype not in BY_OPTION:
        raise UsageError(f"dtype cannot be {dtype!r}; known: {', '.join(BY_OPTION)}")
    target = target_path(path, overwrite)
    pieces: list[Piece] = []
    literals: list[bytes] = []
    layout = get(family)
    for index, tensor in enumerate(layout.tensors(ema=ema)):
        if keep is not None and not keep(tensor):
            continue
        shape = tensor.shape if size == "full" else tiny_shape(layout, tensor)
        if tensor.dtype_class == "float":
            kind = F32 if tensor.component == "buffers" else BY_OPTION[dtype]
            pieces.append(_generated(tensor.key, kind, shape, (seed << 48) + (index << 34)))
        else:
            data, kind = _integers(tensor.dtype_class, shape)
            segments = whole(None, _elements(shape), (Region(len(literals), kind, 0),))
            pieces.append(Piece(tensor.key, kind, shape, FILLED, segments))
            literals.append(data)
    texts = {"format": "pt", **(metadata or {})}
    outline = Outline("generate", tuple(literals), tuple(pieces), Metadata(texts), family=family)
    placed = outline.placed(writer_for(target))
    engine.execute(
        placed.plan,
        placed.sources(),
        [engine.Target(target, placed.structure)],
        options=Options(flush=False),
        replace=overwrite,
        sync=False,
    )
    return placed.plan.size


def tiny_shape(layout: Layout, tensor: LayoutTensor) -> tuple[int, ...]:
    """The shape of a family's tensor in a tiny checkpoint: that of evidence is true, so the family is recognised."""
    if layout.is_evidence(tensor.key) or tensor.dtype_class != "float":
        return tensor.shape
    return tuple(max(8, size // 16) if size >= 64 else size for size in tensor.shape)


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _generated(name: str, dtype: DType, shape: tuple[int, ...], seed: int) -> Piece:
    if len(shape) >= 2:
        rule = Fill(seed, 0.0, _elements(shape[1:]) ** -0.5)
    elif name.endswith("weight"):
        rule = Fill(seed, 1.0, 0.1)  # of a normalisation
    else:
        rule = Fill(seed, 0.0, 0.05)
    return Piece(name, dtype, shape, FILLED, whole(rule, _elements(shape), ()))


def _integers(dtype_class: str, shape: tuple[int, ...]) -> tuple[bytes, DType]:
    """0, 1, 2, … (position_ids), or a step counter for a scalar."""
    dtype = {"int64": I64, "int32": I32}[dtype_class]
    values = range(_elements(shape)) if shape else (1000,)
    return b"".join(value.to_bytes(dtype.itemsize, "little") for value in values), dtype
