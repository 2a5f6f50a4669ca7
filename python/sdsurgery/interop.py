"""NumPy and torch at the edges: views of checkpoints, and the native kernels on arrays. The only place that may
import torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from .dtypes import BY_NAME, F32, DType
from .errors import UsageError, printable

if TYPE_CHECKING:
    from .backends import PlainRows
    from .checkpoint import Checkpoint, TensorInfo
    from .methods import Method
    from .program import Formula

_NUMPY = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
_TORCH = {
    **_NUMPY, "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def numpy_view(checkpoint: Checkpoint, name: str) -> Any:
    """Read-only NumPy array over the mapped file. TypeError for a dtype NumPy lacks, UsageError once it is closed."""
    import numpy as np

    from .engine import native_errors

    info = checkpoint.info(name)
    if info.dtype.name not in _NUMPY:
        raise TypeError(f"NumPy has no {info.dtype.name}; use torch({name!r})")
    dtype = np.dtype(_NUMPY[info.dtype.name]).newbyteorder("<")
    if info.nbytes == 0:
        return np.empty(info.shape, dtype)
    with native_errors(UsageError):
        raw = np.frombuffer(memoryview(checkpoint.data.map()), np.uint8)[info.offset :]
    strides = None if info.strides is None else tuple(stride * dtype.itemsize for stride in info.strides)
    # Data may start at any byte of a file; such a view is unaligned, which NumPy allows.
    array = np.ndarray(info.shape, dtype, buffer=raw.data, strides=strides)
    array.flags.writeable = False
    return array


def torch_view(checkpoint: Checkpoint, name: str) -> Any:
    """torch tensor over a copy-on-write mapping; a copy when the data is not aligned for its dtype. TypeError for a
    dtype that torch lacks, UsageError once the checkpoint is closed."""
    import torch

    from .engine import native_errors

    info = checkpoint.info(name)
    dtype = getattr(torch, _TORCH.get(info.dtype.name, ""), None)
    if dtype is None:
        raise TypeError(f"torch has no {info.dtype.name}")
    if info.nbytes == 0:
        return torch.empty(info.shape, dtype=dtype)
    with native_errors(UsageError):
        return _torch_bytes(checkpoint, info, dtype)


def _torch_bytes(checkpoint: Checkpoint, info: TensorInfo, dtype: Any) -> Any:
    import torch

    if info.strides is not None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(info.shape, info.strides, strict=True))
        raw = bytearray(checkpoint.data.read(info.offset, span * info.dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).as_strided(info.shape, info.strides)
    if info.offset % info.dtype.itemsize:
        raw = bytearray(checkpoint.data.read(info.offset, info.nbytes))
        return torch.frombuffer(raw, dtype=dtype).reshape(info.shape)
    mapping = checkpoint.data.map(copy_on_write=True)
    return torch.frombuffer(mapping, dtype=dtype, offset=info.offset, count=info.elements).reshape(info.shape)


def apply(
    method: str,
    *inputs: Any,
    out: Any = None,
    dtype: str | None = None,
    overflow: str = "default",
    compute: str = "fp32",
    threads: int = 0,
    **params: Any,
) -> Any:
    """Evaluate a method on NumPy arrays or torch tensors, through the native kernels.

    ``inputs``: arrays of one shape and any float dtype, mixed as you like, contiguous or not. ``out``: an array of
    that shape that receives the result (it may be one of the inputs); else a new one like the first input, in
    ``dtype`` ("fp32", "fp16", "bf16", …) when given. Returns ``out``. Parameters are keywords, as in ``merge``.
    Tensors on a GPU are evaluated there (docs/gpu.md), on the caller's current stream and without waiting for it.
    Raises UsageError for an unknown method or parameter, shapes that differ, or a dtype that is no float.
    """
    request = _Request(method, len(inputs), params, dtype=dtype, overflow=overflow, compute=compute, threads=threads)
    return request.evaluate([(inputs, out)])[0]


def apply_many(
    method: str,
    *inputs: Mapping[str, Any],
    out: MutableMapping[str, Any] | None = None,
    dtype: str | None = None,
    overflow: str = "default",
    compute: str = "fp32",
    threads: int = 0,
    **params: Any,
) -> MutableMapping[str, Any]:
    """``apply`` for every name of the first of several dictionaries of arrays or tensors (state dicts), in as few
    kernel launches as possible where they are on a GPU.

    Every input must have every name. ``out``: a dictionary with the tensors that receive the results, or that gets
    the new ones for names it lacks; else a new one. Returns it. Tied weights (one memory under two names) are
    evaluated once, in place too. Raises UsageError as ``apply`` does, naming the tensor.
    """
    request = _Request(method, len(inputs), params, dtype=dtype, overflow=overflow, compute=compute, threads=threads)
    results: MutableMapping[str, Any] = {} if out is None else out
    names = list(inputs[0]) if inputs else []
    columns = []
    for number, item in enumerate(inputs):
        try:
            columns.append([item[name] for name in names])
        except KeyError:
            name = next(name for name in names if name not in item)
            raise UsageError(f"tensor '{printable(name)}' is missing in input {number + 1}") from None
    calls = list(zip(zip(*columns, strict=True), map(results.get, names), strict=True))
    for name, result in zip(names, request.evaluate(calls, names), strict=True):
        results[name] = result
    return results


class _Request:
    """A method with its parameters and the options of ``apply``, checked once for any number of tensors."""

    def __init__(
        self, method: str, count: int, params: Any, *, dtype: str | None, overflow: str, compute: str, threads: int
    ) -> None:
        from .dtypes import BY_OPTION
        from .methods import get
        from .verbs.common import CHOICES

        for option, value in (("overflow", overflow), ("compute", compute)):
            if value not in CHOICES[option]:
                raise UsageError(f"{option} cannot be {value!r}; known: {', '.join(CHOICES[option])}")
        if dtype is not None and dtype not in BY_OPTION:
            raise UsageError(f"dtype cannot be {dtype!r}; known: {', '.join(BY_OPTION)}")
        chosen = get(method, ("merge", "cast"))
        self.formula = _formula(chosen, count, chosen.bind(count, params))
        self.dtype = BY_OPTION[dtype] if dtype else None
        self.overflow, self.wide, self.threads = overflow, compute == "fp64", threads

    def evaluate(self, calls: Sequence[tuple[Sequence[Any], Any]], names: Sequence[str] | None = None) -> list[Any]:
        """The results of (inputs, out) in order. Calls on tensors of a GPU go there, the others one by one here."""
        results: list[Any] = [None] * len(calls)
        plain = self._plain(calls, results)
        away: dict[Any, list[int]] = {}  # by device
        seen = set()
        for index in range(len(calls)) if plain is None else plain.left:
            inputs, out = calls[index]
            if out is not None and len(calls) > 1:
                memory = tuple(_memory(item) for item in (out, *inputs))
                if memory in seen:  # tied weights under two names: in place they would be evaluated twice
                    results[index] = out
                    continue
                seen.add(memory)
            try:
                device = _device(inputs, out)
                if device is None:
                    results[index] = self._here(inputs, out)
                else:
                    results[index] = self._out_there(inputs, out)
                    away.setdefault(device, []).append(index)
            except UsageError as error:
                raise UsageError(f"tensor '{printable(names[index])}': {error}") if names else error from None
        if plain is not None:
            plain.evaluate(self.formula, overflow=self.overflow, wide=self.wide)
        for numbers in away.values():
            self._launch([(results[index], calls[index][0]) for index in numbers])
        return results

    def _here(self, inputs: Sequence[Any], out: Any) -> Any:
        from . import _native
        from .backends.cpu import OVERFLOW, code_of, program
        from .engine import native_errors

        arrays = [_Array(item) for item in inputs]
        result = arrays[0].new(self.dtype or arrays[0].dtype) if out is None else _Array(out, output=True)
        self._check(arrays, result)
        operands = [array.apart_from(result) for array in arrays]
        with native_errors(UsageError):
            _, overflows = _native.apply(
                program(self.formula, self.wide),
                [(array.address, code_of(array.dtype)) for array in operands],
                result.address,
                code_of(result.dtype),
                result.size,
                overflow=OVERFLOW[self.overflow],
                threads=self.threads,
                target=os.environ.get("SDS_CPU", ""),
            )
        if self.overflow == "error" and overflows:
            from .errors import RunFailed

            raise RunFailed(f"{overflows} values do not fit {result.dtype.name}")
        return result.give_back()

    def _check(self, arrays: Sequence[Any], result: Any) -> None:
        if self.dtype is not None and self.dtype is not result.dtype:
            raise UsageError(f"out is {result.dtype.name}, but dtype asks for {self.dtype.option}")
        for array in (*arrays[1:], result):
            if array.shape != arrays[0].shape:
                raise UsageError(f"shapes differ: {list(array.shape)} and {list(arrays[0].shape)}")

    # ---- on a GPU

    def _plain(self, calls: Sequence[tuple[Sequence[Any], Any]], results: list[Any]) -> PlainRows | None:
        """The calls that the GPU's backend takes as they are; their outputs are put into ``results``. None where that
        is no way: on the CPU, for a backend that launches tensors one by one, and to count overflows."""
        if self.overflow == "error" or not calls or not calls[0][0] or not _is_torch(calls[0][0][0]):
            return None
        try:
            if _device(calls[0][0], None) is None:
                return None
        except UsageError:
            return None  # said below, with the tensor's name
        import torch

        from .gpu.tensors import choose

        backend = choose(self.formula, (), F32, self.wide)
        kind = getattr(torch, _TORCH[self.dtype.name]) if self.dtype else None
        rows: list[Any] = []
        for index, (inputs, out) in enumerate(calls):
            if out is None and isinstance(inputs[0], torch.Tensor):
                out = torch.empty_like(inputs[0], dtype=kind)  # noqa: PLW2901
            elif kind is not None and getattr(out, "dtype", None) != kind:
                rows.append(None)  # refused below
                rows += inputs
                continue
            results[index] = out
            rows.append(out)
            rows += inputs
        return backend.plain_rows(rows, 1 + len(calls[0][0]))

    def _out_there(self, inputs: Sequence[Any], out: Any) -> Any:
        """Check the tensors and make the output, if there is none."""
        import torch

        views = [_Tensor(item) for item in inputs]
        if out is None:
            dtype = self.dtype or views[0].dtype
            out = torch.empty_like(inputs[0], dtype=getattr(torch, _TORCH[dtype.name]), requires_grad=False)
        elif isinstance(out, torch.Tensor):
            _require_separate(out.shape, out.stride())
        self._check(views, _Tensor(out))
        return out

    def _launch(self, rows: Sequence[tuple[Any, Sequence[Any]]]) -> None:
        """One batch for all rows of equal dtypes."""
        from .gpu.tensors import evaluate

        batches: dict[Any, list[Any]] = {}
        for out, inputs in rows:
            if out.numel():
                batches.setdefault((out.dtype, *(item.dtype for item in inputs)), []).append((out, inputs))
        for batch in batches.values():
            out, inputs = batch[0]
            dtypes = tuple(_torch_dtype(item) for item in inputs)
            evaluate(self.formula, batch, dtypes, _torch_dtype(out), overflow=self.overflow, wide=self.wide)


_formulas: dict[tuple[Any, int, str], Formula] = {}  # traced lately: tracing takes longer than a launch


def _formula(method: Method, count: int, params: Mapping[str, Any]) -> Formula:
    from .program import trace

    key = (method.body, count, repr(params))  # as text, in which 0.0 and −0.0 differ
    found = _formulas.get(key)
    if found is None:
        if len(_formulas) >= 256:
            _formulas.clear()
        found = _formulas[key] = trace(method, count, params)
    return found


def _is_torch(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch"


def _device(inputs: Sequence[Any], out: Any) -> Any:
    """The GPU that all tensors are on; None when they are all on the CPU. UsageError when they are not together."""
    given = [*inputs, out] if out is not None else inputs
    found: set[Any] = {item.device if _is_torch(item) else "cpu" for item in given}
    found = {"cpu" if getattr(item, "type", item) == "cpu" else item for item in found}
    if len(found) > 1:
        raise UsageError(f"the tensors are on different devices: {', '.join(sorted(map(str, found)))}")
    (device,) = found or {"cpu"}
    if device == "cpu":
        return None
    if device.type != "cuda":
        raise UsageError(f"apply works on CPU and CUDA tensors, not on {device}")
    return device


def _memory(value: Any) -> Any:
    """Where an array or a dense tensor lies, and how: equal for two views of the same elements."""
    if _is_torch(value):
        dense = str(value.layout) == "torch.strided"
        return (value.data_ptr(), value.shape, value.stride(), value.dtype) if dense else id(value)
    if hasattr(value, "ctypes"):
        return value.ctypes.data, value.shape, value.strides, str(value.dtype)
    return id(value)


@functools.cache
def _dtype_of_torch() -> dict[Any, DType]:
    import torch

    names = {getattr(torch, torch_name, None): name for name, torch_name in _TORCH.items()}
    return {kind: BY_NAME[name] for kind, name in names.items()}


def _torch_dtype(value: Any) -> DType:
    found = _dtype_of_torch().get(value.dtype)
    if found is None or not found.computable:
        return _float_dtype(found.name if found else str(value.dtype))
    return found


class _Tensor:
    """What is checked of a tensor on a GPU: its dtype and shape."""

    def __init__(self, value: Any) -> None:
        if str(value.layout) != "torch.strided":
            raise UsageError(f"apply works on dense tensors, not on {value.layout}")
        self.dtype, self.shape = _torch_dtype(value), value.shape


class _Array:
    """A NumPy array or torch CPU tensor as an address, a dtype and a shape; holds what keeps the memory alive."""

    def __init__(self, value: Any, output: bool = False) -> None:
        self.original = value
        self.is_torch = _is_torch(value)
        if self.is_torch:
            if str(value.layout) != "torch.strided":
                raise UsageError(f"apply works on dense tensors, not on {value.layout}")
            if output:
                _require_separate(value.shape, value.stride())
            self.value = value.detach().resolve_neg().contiguous()
            self.dtype = _torch_dtype(value)
            self.shape = tuple(value.shape)
            self.address, self.size = self.value.data_ptr(), self.value.numel()
            return
        import numpy as np

        if not isinstance(value, np.ndarray):
            raise UsageError(f"apply works on NumPy arrays and torch tensors, not on {type(value).__name__}")
        if output and not value.flags.writeable:
            raise UsageError("out is read-only")
        if output:
            _require_separate(value.shape, value.strides)
        if not value.dtype.isnative:
            raise UsageError(f"apply needs arrays in the machine's byte order, not {value.dtype.str}")
        self.value = np.ascontiguousarray(value).reshape(value.shape)
        names = {numpy_name: name for name, numpy_name in _NUMPY.items()} | {
            "bfloat16": "BF16",
            "float8_e4m3fn": "F8_E4M3",
            "float8_e5m2": "F8_E5M2",
        }  # fmt: skip  (the names of the ml_dtypes package)
        self.dtype = _float_dtype(names.get(value.dtype.name, value.dtype.name))
        self.shape = value.shape
        self.address, self.size = self.value.ctypes.data, self.value.size

    def new(self, dtype: DType) -> _Array:
        """A new array of the same kind and shape."""
        if self.is_torch:
            import torch

            return _Array(torch.empty(self.shape, dtype=getattr(torch, _TORCH[dtype.name])))
        import numpy as np

        if dtype.name in _NUMPY:
            return _Array(np.empty(self.shape, _NUMPY[dtype.name]))
        if dtype is self.dtype:  # an ml_dtypes array
            return _Array(np.empty_like(self.value))
        raise UsageError(f"NumPy has no {dtype.name}; pass torch tensors, or out=")

    def apart_from(self, result: _Array) -> _Array:
        """Itself, or a copy where the result would overwrite elements that are still to be read."""
        end, result_end = (a.address + a.size * a.dtype.itemsize for a in (self, result))
        overlaps = self.address < result_end and result.address < end
        in_place = self.address == result.address and self.dtype is result.dtype
        if not overlaps or in_place:
            return self
        return _Array(self.value.clone() if self.is_torch else self.value.copy())

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


def _require_separate(shape: Sequence[int], strides: Sequence[int]) -> None:
    if any(size > 1 and step == 0 for size, step in zip(shape, strides, strict=True)):
        raise UsageError("out is a broadcast view: several of its elements are the same memory")


def _float_dtype(name: str) -> DType:
    dtype = BY_NAME.get(name)
    if dtype is None or not dtype.computable:
        raise UsageError(f"apply works on float arrays, not on {name}")
    return dtype
