"""What NumPy and torch call our dtypes, and back."""

from __future__ import annotations

import functools
from typing import Any

from ..dtypes import BY_NAME, DType
from ..errors import UsageError

NUMPY = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
TORCH = {
    **NUMPY, "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@functools.cache
def _dtype_of_torch() -> dict[Any, DType]:
    import torch

    names = {getattr(torch, torch_name, None): name for name, torch_name in TORCH.items()}
    return {kind: BY_NAME[name] for kind, name in names.items()}


def torch_dtype(value: Any) -> DType:
    found = _dtype_of_torch().get(value.dtype)
    if found is None or not found.computable:
        return float_dtype(found.name if found else str(value.dtype))
    return found


def float_dtype(name: str) -> DType:
    dtype = BY_NAME.get(name)
    if dtype is None or not dtype.computable:
        raise UsageError(f"apply works on float arrays, not on {name}", code="bad_array")
    return dtype
