"""From what a pickle says of a tensor to a checked place in the file: bounds, dtypes, strides. No engine, no data.

A storage is a record (a run of bytes in the file); a tensor is a strided window on it. Every number comes from a file
that may lie, so everything is compared before it is used, and Python's integers do not overflow.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Form, Record, TensorInfo
from ..errors import InputRefused, printable
from .torch_values import DTYPES, Storage, Tensor

MAX_BLOWUP = 64 << 20  # bytes by which a tensor of overlapping elements (stride 0) may be larger than its storage


def record_of(storage: Storage, records: Mapping[str, Record]) -> Record:
    """The record of a storage, of exactly the size that the pickle gives it. Raises InputRefused."""
    record = records.get(storage.key)
    if record is None:
        raise InputRefused(f"storage '{printable(storage.key)}' is missing from the file")
    if storage.numel < 0 or storage.numel * storage.itemsize != record.nbytes:
        raise InputRefused(
            f"storage '{printable(storage.key)}' has {record.nbytes} bytes; "
            f"its {storage.numel} elements of {storage.itemsize} bytes need {storage.numel * storage.itemsize}"
        )
    return record


def place(name: str, tensor: Tensor, records: Mapping[str, Record]) -> TensorInfo:
    """Where a usable tensor lies. Raises InputRefused, naming it, when any part of it is outside its storage.

    ``nbytes`` of the result counts the elements; a tensor with ``strides`` may reach over more bytes than that.
    """
    dtype = DTYPES[tensor.dtype]
    assert dtype is not None and tensor.storage is not None
    label = f"tensor '{printable(name)}'"
    try:
        record = record_of(tensor.storage, records)
    except InputRefused as error:
        raise InputRefused(f"{label}: {error}") from None
    first, available = 0, record.nbytes // dtype.itemsize
    if tensor.storage.view is not None:
        first, available = _view(label, tensor.storage, available)
    elements = _check_bounds(label, tensor, available)
    nbytes = elements * dtype.itemsize
    if nbytes > record.nbytes + MAX_BLOWUP:
        raise InputRefused(
            f"{label}: its overlapping elements would make {nbytes} bytes of a storage of {record.nbytes}; "
            f"at most {MAX_BLOWUP >> 20} MiB more are accepted"
        )
    strides = None if is_contiguous(tensor.shape, tensor.stride) else tensor.stride
    offset = record.offset + (first + (tensor.offset if elements else 0)) * dtype.itemsize
    return TensorInfo(name, offset, Form(dtype, tensor.shape, nbytes, strides))


def _view(label: str, storage: Storage, available: int) -> tuple[int, int]:
    assert storage.view is not None
    _, first, numel = storage.view
    if first < 0 or numel < 0 or first + numel > available:
        raise InputRefused(f"{label}: its storage view of {numel} elements at {first} leaves a storage of {available}")
    return first, numel


def _check_bounds(label: str, tensor: Tensor, available: int) -> int:
    """The number of elements; refuses what reaches outside ``available`` elements."""
    if min((*tensor.shape, *tensor.stride, tensor.offset)) < 0:
        raise InputRefused(f"{label}: a negative size, stride or offset")
    elements, last = 1, tensor.offset
    for size, stride in zip(tensor.shape, tensor.stride, strict=True):
        elements *= size
        last += (size - 1) * stride
    if elements and last >= available:
        raise InputRefused(
            f"{label}: shape {list(tensor.shape)} with strides {list(tensor.stride)} at element {tensor.offset} "
            f"reaches element {last} of a storage of {available}"
        )
    return elements


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie row by row without gaps; dimensions of size 1 may have any stride."""
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
