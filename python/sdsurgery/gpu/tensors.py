"""``apply`` on torch tensors that are already on a GPU: on the caller's current stream, without waiting for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..dtypes import DType
from ..errors import RunFailed, UsageError
from ..program import Formula

if TYPE_CHECKING:
    from ..backends import Backend

BACKENDS = ("cuda", "triton")  # the first that can
_found_usable: list[Backend] = []  # asked once: it does not change while a process runs, and takes longer than a launch


@dataclass(frozen=True)
class Batch:
    """One formula over rows of equal dtypes on one device. Each row is the output and its inputs: tensors whose
    elements lie in memory in the same order without gaps. ``stream`` is the handle of the caller's CUDA stream;
    ``counts`` an int64 tensor of two numbers a row (non-finite, overflow) to be added to, or None."""

    formula: Formula
    wide: bool
    dtypes: tuple[DType, ...]
    dtype: DType
    overflow: str
    device: int
    stream: int
    rows: Sequence[tuple[Any, Sequence[Any]]]
    counts: Any


def choose(formula: Formula, dtypes: Sequence[DType], dtype: DType, wide: bool) -> Backend:
    """The backend for tensors on a GPU. UsageError with every reason when there is none."""
    reasons = []
    for name in BACKENDS:
        module = f"sdsurgery.backends.{name}"
        backend: Backend = (sys.modules.get(module) or import_module(module)).BACKEND
        reason = None
        if not any(backend is usable for usable in _found_usable):
            reason = backend.available()
            if reason is None:
                _found_usable.append(backend)
        reason = reason or backend.supports(formula.program, dtypes, dtype, wide)
        if reason is None:
            return backend
        reasons.append(f"{name}: {reason}")
    raise UsageError(
        f"no backend can do this on the GPU ({'; '.join(reasons)}); move the tensors to the CPU", code="backend"
    )


def alike(tensors: Sequence[Any]) -> bool:
    """Whether the tensors can be walked in the order of their memory: equal strides, no gaps, no overlaps."""
    first = tensors[0]
    strides = first.stride()
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    return bool(_dense(first)) and all(tensor.stride() == strides for tensor in tensors)


def _dense(tensor: Any) -> bool:
    expected = 1
    steps = sorted((step, size) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    for step, size in steps:
        if step != expected:
            return False
        expected *= size
    return True


def evaluate(
    formula: Formula, rows: Sequence[tuple[Any, Sequence[Any]]], dtypes: tuple[DType, ...], dtype: DType, *,
    overflow: str, wide: bool,
) -> None:  # fmt: skip
    """Enqueue the formula for every row (output, inputs) of tensors on one device. A row whose tensors are not laid
    out alike is copied (that needs memory, everything else does not). ``overflow="error"`` waits for the result and
    raises RunFailed."""
    import torch

    device = rows[0][0].device
    backend = choose(formula, dtypes, dtype, wide)
    assert backend.on_tensors is not None
    with torch.cuda.device(device) if device.type == "cuda" else _nowhere():
        ready: list[tuple[Any, Sequence[Any]]] = []
        later = []
        for out, inputs in rows:
            plain = [_apart(item.detach().resolve_neg(), out) for item in inputs]
            if not alike([out, *plain]):
                plain = [item.contiguous() for item in plain]
                if not out.is_contiguous():
                    later.append((out, torch.empty_like(out, memory_format=torch.contiguous_format)))
                    ready.append((later[-1][1], plain))
                    continue
            ready.append((out.detach(), plain))
        counts = None
        if overflow == "error":
            counts = torch.zeros(2 * len(ready), dtype=torch.int64, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        backend.on_tensors(
            Batch(formula, wide, dtypes, dtype, overflow, device.index or 0, stream, ready, counts)
        )  # fmt: skip
        for out, result in later:
            out.copy_(result)
    if counts is not None:
        overflows = int(counts[1::2].sum())
        if overflows:
            raise RunFailed(f"{overflows} values do not fit {dtype.name}", code="overflow")


def _apart(item: Any, out: Any) -> Any:
    """The input, or a copy where the output would overwrite elements that are still to be read."""
    if item.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
        return item
    same = item.data_ptr() == out.data_ptr() and item.stride() == out.stride() and item.dtype == out.dtype
    return item if same else item.clone()


def _nowhere() -> Any:
    import contextlib

    return contextlib.nullcontext()
