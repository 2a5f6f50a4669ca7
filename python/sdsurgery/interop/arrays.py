"""An argument of ``apply``: where its elements lie, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dtypes import DType
from ..errors import UsageError
from .names import NUMPY, TORCH, float_dtype, torch_dtype


def is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def device_of(inputs: Sequence[Any], out: Any) -> Any:
    """The GPU that all tensors are on; None when they are all on the CPU. UsageError when they are not together."""
    given = [*inputs, out] if out is not None else inputs
    found: set[Any] = {item.device if is_torch(item) else "cpu" for item in given}
    found = {"cpu" if getattr(item, "type", item) == "cpu" else item for item in found}
    if len(found) > 1:
        raise UsageError(
            f"the tensors are on different devices: {', '.join(sorted(map(str, found)))}", code="bad_array"
        )
    (device,) = found or {"cpu"}
    if device == "cpu":
        return None
    if device.type != "cuda":
        raise UsageError(f"apply works on CPU and CUDA tensors, not on {device}", code="bad_array")
    return device


def memory_of(value: Any) -> Any:
    """Where an array or a dense tensor lies, and how: equal for two views of the same elements."""
    if is_torch(value):
        dense = str(value.layout) == "torch.strided"
        return (value.data_ptr(), value.shape, value.stride(), value.dtype) if dense else id(value)
    if hasattr(value, "ctypes"):
        return value.ctypes.data, value.shape, value.strides, str(value.dtype)
    return id(value)


class Tensor:
    """What is checked of a tensor on a GPU: its dtype and shape."""

    def __init__(self, value: Any) -> None:
        if str(value.layout) != "torch.strided":
            raise UsageError(f"apply works on dense tensors, not on {value.layout}", code="bad_array")
        self.dtype, self.shape = torch_dtype(value), value.shape


class Array:
    """A NumPy array or torch CPU tensor as an address, a dtype and a shape; holds what keeps the memory alive."""

    def __init__(self, value: Any, output: bool = False) -> None:
        self.original = value
        self.is_torch = is_torch(value)
        if self.is_torch:
            if str(value.layout) != "torch.strided":
                raise UsageError(f"apply works on dense tensors, not on {value.layout}", code="bad_array")
            if output:
                require_separate(value.shape, value.stride())
            self.value = value.detach().resolve_neg().contiguous()
            self.dtype = torch_dtype(value)
            self.shape = tuple(value.shape)
            self.address, self.size = self.value.data_ptr(), self.value.numel()
            return
        import numpy as np

        if not isinstance(value, np.ndarray):
            raise UsageError(
                f"apply works on NumPy arrays and torch tensors, not on {type(value).__name__}", code="bad_array"
            )
        if output and not value.flags.writeable:
            raise UsageError("out is read-only", code="bad_array")
        if output:
            require_separate(value.shape, value.strides)
        if not value.dtype.isnative:
            raise UsageError(f"apply needs arrays in the machine's byte order, not {value.dtype.str}", code="bad_array")
        self.value = np.ascontiguousarray(value).reshape(value.shape)
        names = {word: name for name, word in TORCH.items()}
        self.dtype = float_dtype(names.get(value.dtype.name, value.dtype.name))
        self.shape = value.shape
        self.address, self.size = self.value.ctypes.data, self.value.size

    def new(self, dtype: DType) -> Array:
        """A new array of the same kind and shape."""
        if self.is_torch:
            import torch

            return Array(torch.empty(self.shape, dtype=getattr(torch, TORCH[dtype.name])))
        import numpy as np

        if dtype.name in NUMPY:
            return Array(np.empty(self.shape, NUMPY[dtype.name]))
        if dtype is self.dtype:  # an ml_dtypes array
            return Array(np.empty_like(self.value))
        raise UsageError(f"NumPy has no {dtype.name}; pass torch tensors, or out=", code="bad_array")

    def apart_from(self, result: Array) -> Array:
        """Itself, or a copy where the result would overwrite elements that are still to be read."""
        end, result_end = (a.address + a.size * a.dtype.itemsize for a in (self, result))
        overlaps = self.address < result_end and result.address < end
        in_place = self.address == result.address and self.dtype is result.dtype
        if not overlaps or in_place:
            return self
        return Array(self.value.clone() if self.is_torch else self.value.copy())

    def give_back(self) -> Any:
        """The caller's own object, with the values copied into it when it was not contiguous."""
        if self.value is self.original:
            return self.original
        if self.is_torch:
            if self.value.data_ptr() != self.original.data_ptr():
                self.original.copy_(self.value)
        elif self.value.ctypes.data != self.original.ctypes.data:
            self.original[...] = self.value
        return self.original


def require_separate(shape: Sequence[int], strides: Sequence[int]) -> None:
    if any(size > 1 and step == 0 for size, step in zip(shape, strides, strict=True)):
        raise UsageError("out is a broadcast view: several of its elements are the same memory", code="bad_array")
