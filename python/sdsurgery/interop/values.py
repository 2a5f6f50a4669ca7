"""Arrays and tensors of a caller, as what a file holds of them: dtype, shape, bytes; and as an input of a verb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..dtypes import BY_NAME, DType
from ..errors import UsageError, printable
from .names import TORCH

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint


def checkpoint_of(tensors: Mapping[str, Any], name: str) -> Checkpoint:
    """A dictionary of arrays and tensors as an opened checkpoint, called ``name`` in messages. It reads them where they
    are; only those on a GPU, and views, are copied. UsageError, with the tensor's name, for other values."""
    from .. import _native
    from ..checkpoint import Checkpoint, Contents, Form, TensorInfo

    infos, buffers, offset = [], [], 0
    for key in names_of(tensors):
        dtype, shape = described(key, tensors[key])
        buffers.append(bytes_of(tensors[key]))
        infos.append(TensorInfo(key, offset, Form(dtype, shape, buffers[-1].nbytes)))
        offset += buffers[-1].nbytes
    source = _native.Source.memory(*buffers)
    return Checkpoint(name, source, Contents("memory", infos, files=[name]), [source])


def names_of(tensors: Mapping[str, Any]) -> list[str]:
    names = list(tensors)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"a tensor's name must be text, not {type(name).__name__}", code="bad_array")
    return names


def described(name: str, value: Any) -> tuple[DType, tuple[int, ...]]:
    """A value's dtype and shape. UsageError, with the tensor's name, for what cannot be written."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "data_ptr"):
        if str(value.layout) != "torch.strided":
            raise _refused(name, f"a {value.layout} tensor")
        known = {f"torch.{torch_name}": ours for ours, torch_name in TORCH.items()}
    else:
        import numpy as np

        if not isinstance(value, np.ndarray | np.generic):
            raise _refused(name, type(value).__name__)
        known = {word: ours for ours, word in TORCH.items()}  # ml_dtypes' too
    ours = known.get(str(value.dtype.newbyteorder("=") if hasattr(value.dtype, "newbyteorder") else value.dtype))
    if ours is None:
        raise _refused(name, f"{value.dtype} values")
    return BY_NAME[ours], tuple(value.shape)


def _refused(name: str, what: str) -> UsageError:
    text = f"tensor '{printable(name)}': NumPy arrays and dense torch tensors can be written, not {what}"
    return UsageError(text, code="bad_array", tensor=name)


def bytes_of(value: Any) -> memoryview:
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
