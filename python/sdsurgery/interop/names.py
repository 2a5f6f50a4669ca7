"""What NumPy and torch call our dtypes, and back."""

from __future__ import annotations

import functools
from typing import Any

from ..dtypes import BY_NAME, NUMPY, TORCH, DType
from ..errors import UsageError

__all__ = ["NUMPY", "TORCH", "float_dtype", "torch_dtype"]


@functools.cache
def _dtype_of_torch() -> dict[Any, DType]:
    import torch

    names = {getattr(torch, torch_name, None): name for name, torch_name in TORCH.items()}
    return {kind: BY_NAME[name] for kind, name in names.items()}


def stored_dtype(value: Any) -> DType | None:
    """The dtype of a torch tensor, whatever can be done with it; None for one that no file holds."""
    return _dtype_of_torch().get(value.dtype)


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
