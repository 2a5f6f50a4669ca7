"""A checkpoint's tensors as NumPy arrays and torch tensors, without a copy where that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dtypes import U8
from ..errors import UsageError, printable
from .names import NUMPY, TORCH

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorInfo


_PAIRS = {"F4": "float4_e2m1fn_x2"}
"""Dtypes of which torch keeps two elements in one of its own."""


def numpy_view(checkpoint: Checkpoint, name: str) -> Any:
    """Read-only NumPy array over the mapped file. TypeError for a dtype NumPy lacks, UsageError once it is closed."""
    import numpy as np

    from ..files import native_errors

    info = checkpoint.info(name)
    if info.dtype.name not in NUMPY:
        raise TypeError(f"NumPy has no {info.dtype.name}; use torch({name!r})")
    dtype = np.dtype(NUMPY[info.dtype.name]).newbyteorder("<")
    if info.nbytes == 0:
        return np.empty(info.shape, dtype)
    with native_errors(UsageError):
        raw = np.frombuffer(memoryview(checkpoint.files[info.file].map()), np.uint8)[info.offset :]
    strides = None if info.strides is None else tuple(stride * dtype.itemsize for stride in info.strides)
    # Data may start at any byte of a file; such a view is unaligned, which NumPy allows.
    array = np.ndarray(info.shape, dtype, buffer=raw.data, strides=strides)
    array.flags.writeable = False
    return array


def torch_view(checkpoint: Checkpoint, name: str) -> Any:
    """torch tensor over a copy-on-write mapping; a copy when the data is not aligned for its dtype. F4 is given as
    torch has it: ``float4_e2m1fn_x2``, two in an element, so that the last dimension is half as long. TypeError for a
    dtype that torch lacks, UsageError once the checkpoint is closed."""
    import torch

    from ..files import native_errors

    info = checkpoint.info(name)
    if info.dtype.name in _PAIRS:
        with native_errors(UsageError):
            return _pairs(checkpoint, info)
    dtype = getattr(torch, TORCH.get(info.dtype.name, ""), None)
    if dtype is None:
        raise TypeError(f"torch has no {info.dtype.name}")
    if info.nbytes == 0:
        return torch.empty(info.shape, dtype=dtype)
    with native_errors(UsageError):
        return _torch_bytes(checkpoint, info, dtype)


def _pairs(checkpoint: Checkpoint, info: TensorInfo) -> Any:
    import torch

    dtype = getattr(torch, _PAIRS[info.dtype.name], None)
    if dtype is None:
        raise TypeError(f"torch {torch.__version__} has no {info.dtype.name}; it came with torch 2.8")
    *outer, last = info.shape or (1,)
    if last % 2:
        raise TypeError(
            f"torch holds {info.dtype.name} in pairs, and the last dimension of '{printable(info.name)}' is odd"
        )
    codes = info.with_form(info.form._replace(dtype=U8, shape=(*outer, last // 2)))
    if not info.nbytes:
        return torch.empty(codes.shape, dtype=torch.uint8).view(dtype)
    return _torch_bytes(checkpoint, codes, torch.uint8).view(dtype)


def _torch_bytes(checkpoint: Checkpoint, info: TensorInfo, dtype: Any) -> Any:
    import torch

    from ..files import native_errors

    if info.strides is not None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(info.shape, info.strides, strict=True))
        with native_errors():
            raw = bytearray(checkpoint.files[info.file].read(info.offset, span * info.dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).as_strided(info.shape, info.strides)
    if info.offset % info.dtype.itemsize:
        raw = bytearray(checkpoint.read(info))
        return torch.frombuffer(raw, dtype=dtype).reshape(info.shape)
    mapping = checkpoint.files[info.file].map(copy_on_write=True)
    return torch.frombuffer(mapping, dtype=dtype, offset=info.offset, count=info.elements).reshape(info.shape)
