"""Which tensors of a state dict no formula is evaluated on: those that ``merge`` copies from A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..checkpoint import Form, TensorInfo
from ..dtypes import F32
from ..errors import UsageError
from .arrays import is_torch
from .names import stored_dtype

_NUMPY_KINDS = {"i": "int", "u": "int", "b": "bool"}


def copied_names(tables: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The first table's names of integers (in any table), empty tensors, and what its family copies exactly."""
    if not tables:
        return frozenset()
    first = tables[0]
    shapes = tuple(tuple(getattr(value, "shape", ())) for value in first.values())
    found = {name for name, shape in zip(first, shapes, strict=True) if 0 in shape}
    for table in tables:
        found |= {name for name in first if name in table and _kind(table[name]) in ("int", "bool")}
    return frozenset(found) | _exact(tuple(first), shapes)


def _kind(value: Any) -> str | None:
    """``int``, ``bool`` or something else."""
    if is_torch(value):
        dtype = stored_dtype(value)
        return None if dtype is None else dtype.kind
    return _NUMPY_KINDS.get(getattr(getattr(value, "dtype", None), "kind", ""))


@lru_cache(maxsize=16)
def _exact(names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> frozenset[str]:
    """What the family copies exactly; recognising it takes longer than a launch."""
    from ..layouts import detect

    infos = (TensorInfo(name, 0, Form(F32, shape, 0)) for name, shape in zip(names, shapes, strict=True))
    layout = detect({info.name: info for info in infos}).layout
    return frozenset(name for name in names if layout.exact_copy(name))


def copy_of(value: Any, out: Any, name: str) -> Any:
    """A copy of an array or tensor, or the value itself put into ``out``. UsageError where it doesn't fit there."""
    if out is value:
        return out
    if out is None:
        return value.detach().clone() if is_torch(value) else value.copy()
    if tuple(out.shape) != tuple(value.shape) or out.dtype != value.dtype:
        found, expected = (f"{item.dtype} {list(item.shape)}" for item in (out, value))
        raise UsageError(
            f"tensor '{name}' is copied exactly: out has {found} there, expected {expected}", code="shape", tensor=name
        )
    if is_torch(out):
        out.copy_(value)
    else:
        out[...] = value
    return out
