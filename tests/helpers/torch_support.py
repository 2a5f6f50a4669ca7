"""What the tests of torch's files share: saving with torch, reading with ours, comparing byte for byte."""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from pickle_builder import Memory
from sdsurgery import formats
from sdsurgery.checkpoint import Contents, TensorInfo

RECORD = struct.pack("<6f", *range(6))


def saved(obj: object, form: str = "zip", protocol: int = 2) -> bytes:
    out = io.BytesIO()
    torch.save(obj, out, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    return out.getvalue()


def read(data: bytes, **options: bool) -> Contents:
    source = Memory(data)
    reader = formats.recognise(source)
    assert reader is not None, "not recognised"
    return reader.read(source, **options)


def elements(data: bytes, info: TensorInfo) -> bytes:
    """The tensor's elements in row-major order, gathered by its strides."""
    size = info.dtype.itemsize
    if info.strides is None:
        return data[info.offset : info.offset + info.nbytes]
    span = 1 + sum((n - 1) * s for n, s in zip(info.shape, info.strides, strict=True))
    flat = np.frombuffer(data, f"V{size}", span, info.offset)
    view = np.lib.stride_tricks.as_strided(flat, info.shape, [s * size for s in info.strides])
    return np.ascontiguousarray(view).tobytes()


def raw(value: torch.Tensor) -> bytes:
    if not value.numel():
        return b""
    flat = value.detach().contiguous().as_strided((value.numel(),), (1,))
    return bytes(flat.view(torch.uint8).numpy())


def check(data: bytes, expected: dict[str, torch.Tensor], **options: bool) -> Contents:
    found = read(data, **options)
    assert [info.name for info in found.tensors] == list(expected)
    for info in found.tensors:
        value = expected[info.name]
        assert info.shape == tuple(value.shape)
        assert info.nbytes == value.numel() * value.element_size()
        assert elements(data, info) == raw(value), info.name
    return found


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def sample(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    data = (np.arange(count) * 37 % 251).astype(np.uint8)
    if dtype == torch.bool:
        data &= 1
    return torch.from_numpy(data).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
