"""``apply`` and ``apply_many``: a method on arrays and tensors, on the CPU or where they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from ..dtypes import F32, F64
from ..errors import UsageError, printable
from ..methods.across import APART, in_role, role_of
from .arrays import Array, Tensor, device_of, is_torch, memory_of, require_separate
from .kept import copied_names, copy_of
from .names import TORCH, torch_dtype

if TYPE_CHECKING:
    from ..backends import PlainRows
    from ..checkpoint import Checkpoint
    from ..methods.registry import Method
    from ..program import Formula
    from ..program.tracing import Body
    from ..settings import Compute, Dtype, Overflow


def apply(
    method: str,
    *inputs: Any,
    out: Any = None,
    dtype: Dtype | None = None,
    overflow: Overflow = "default",
    compute: Compute = "fp32",
    threads: int = 0,
    variant: str | None = None,
    **params: float | Sequence[float],
) -> Any:
    """Evaluate a method on NumPy arrays or torch tensors, through the native kernels.

    ``inputs``: arrays of one shape and any float dtype, mixed as you like, contiguous or not. ``out``: an array of
    that shape that receives the result (it may be one of the inputs); else a new one like the first input, in
    ``dtype`` ("fp32", "fp16", "bf16", …) when given. Returns ``out``. Parameters are keywords, as in ``merge``;
    ``variant`` is a word after the method's name.
    Tensors on a GPU are evaluated there (docs/gpu.md), on the caller's current stream and without waiting for it.
    Raises UsageError for an unknown method or parameter, shapes that differ, or a dtype that is not a float.
    """
    request = _Request(
        method, len(inputs), params, variant=variant, dtype=dtype, overflow=overflow, compute=compute, threads=threads
    )
    return request.evaluate([(inputs, out)])[0]


def apply_many(
    method: str,
    *inputs: Mapping[str, Any] | Checkpoint | str | os.PathLike[str],
    out: MutableMapping[str, Any] | None = None,
    dtype: Dtype | None = None,
    overflow: Overflow = "default",
    compute: Compute = "fp32",
    threads: int = 0,
    variant: str | None = None,
    **params: float | Sequence[float],
) -> MutableMapping[str, Any]:
    """``apply`` for every name of the first of several dictionaries of arrays or tensors (state dicts), in as few
    kernel launches as possible where they are on a GPU.

    An input may also be an opened checkpoint or a file. What ``merge`` copies is copied here too: of the first input's
    integers, empty tensors, and what the family that the names show copies exactly (``position_ids``, noise schedules,
    markers), whatever the others have there. Of the other names every input must have every one. ``out``: a dictionary
    with the tensors that receive the results, or that gets the new ones for names it lacks; else a new one. Returns
    it. Tied weights (one memory under two names) are evaluated once, in place too. Raises UsageError as ``apply`` does,
    naming the tensor.
    """
    request = _Request(
        method, len(inputs), params, variant=variant, dtype=dtype, overflow=overflow, compute=compute, threads=threads
    )
    results: MutableMapping[str, Any] = {} if out is None else out
    tables = [_table(item) for item in inputs]
    everything = list(tables[0]) if tables else []
    kept = copied_names(tables)
    names = [name for name in everything if name not in kept]
    columns = []
    for number, item in enumerate(tables):
        try:
            columns.append([item[name] for name in names])
        except KeyError:
            name = next(name for name in names if name not in item)
            raise UsageError(
                f"tensor '{printable(name)}' is missing in input {number + 1}", code="wrong_inputs", tensor=name
            ) from None
    calls = list(zip(zip(*columns, strict=True), map(results.get, names), strict=True))
    made = dict(zip(names, request.evaluate(calls, names), strict=True))
    for name in everything:
        if name in kept:
            results[name] = copy_of(tables[0][name], results.get(name), name)
        else:
            results[name] = made[name]
    return results


def _table(item: Mapping[str, Any] | Checkpoint | str | os.PathLike[str]) -> Mapping[str, Any]:
    """An input as a dictionary; a file's tensors are views, which hold its mapping."""
    from ..checkpoint import Checkpoint, open_checkpoint

    if isinstance(item, Checkpoint):
        return dict(item.items())
    if isinstance(item, str | os.PathLike):
        with open_checkpoint(item) as opened:
            return dict(opened.items())
    return item


class _Request:
    """A method with its parameters and the options of ``apply``, checked once for any number of tensors."""

    def __init__(
        self,
        method: str,
        count: int,
        params: Any,
        *,
        variant: str | None,
        dtype: Any,
        overflow: str,
        compute: str,
        threads: int,
    ) -> None:
        from ..dtypes import BY_OPTION
        from ..methods.registry import get
        from ..settings import dtype_word, require_word

        dtype = dtype_word(dtype)
        for option, value in (("overflow", overflow), ("compute", compute)):
            require_word(option, value)
        if dtype is not None and dtype not in BY_OPTION:
            raise UsageError(f"dtype cannot be {dtype!r}; known: {', '.join(BY_OPTION)}", code="bad_value")
        self.method = get(method, variant)
        self.params = self.method.bind(count, params)
        if self.method.across is None:
            self._use(self.method, count)
        self.dtype = BY_OPTION[dtype] if dtype else None
        self.overflow, self.wide, self.threads = overflow, compute == "fp64", threads

    def _use(self, method: Method, count: int) -> None:
        self.body, self.formula = _traced(method, count, self.params)

    def evaluate(self, calls: Sequence[tuple[Sequence[Any], Any]], names: Sequence[str] | None = None) -> list[Any]:
        """The results of (inputs, out) in order; all tensors together are the model of a method that looks at whole
        models."""
        method = self.method
        if method.across is None and method.roles is None:
            return self._evaluated(calls, names)
        words = names or [""] * len(calls)
        family = "sdxl" if any(word.startswith("conditioner.") for word in words) else ""
        by_role: dict[str, list[int]] = {}
        for number, word in enumerate(words):
            by_role.setdefault(role_of(method, word, family), []).append(number)
        if method.across is not None:
            method = method.across.known(method, _statistics(method, calls, by_role))
        results: list[Any] = [None] * len(calls)
        for role, numbers in by_role.items():
            self._use(in_role(method, role), len(calls[0][0]))
            made = self._evaluated([calls[k] for k in numbers], [words[k] for k in numbers] if names else None)
            for number, result in zip(numbers, made, strict=True):
                results[number] = result
        return results

    def _evaluated(self, calls: Sequence[tuple[Sequence[Any], Any]], names: Sequence[str] | None) -> list[Any]:
        """Calls on tensors of a GPU go there, the others one by one here. Random numbers are those of each name."""
        results: list[Any] = [None] * len(calls)
        draws = names is not None and self.body.draws(self.params)

        def formula(index: int) -> Formula:
            return self.body.formula(self.params, names[index]) if draws and names else self.formula

        plain = self._plain(calls, results)
        away: dict[Any, list[int]] = {}  # by device
        seen = set()
        for index in range(len(calls)) if plain is None else plain.left:
            inputs, out = calls[index]
            if out is not None and len(calls) > 1:
                memory = tuple(memory_of(item) for item in (out, *inputs))
                if memory in seen:  # tied weights under two names: in place they would be evaluated twice
                    results[index] = out
                    continue
                seen.add(memory)
            try:
                device = device_of(inputs, out)
                if device is None:
                    results[index] = self._here(inputs, out, formula(index))
                else:
                    results[index] = self._out_there(inputs, out)
                    away.setdefault(device, []).append(index)
            except UsageError as error:
                raise error.of_tensor(names[index]) if names else error from None
        if plain is not None:
            plain.evaluate(self.formula, overflow=self.overflow, wide=self.wide)
        for numbers in away.values():
            self._launch([(results[index], calls[index][0], formula(index)) for index in numbers])
        return results

    def _here(self, inputs: Sequence[Any], out: Any, formula: Formula) -> Any:
        from .. import _native
        from ..backends.cpu import OVERFLOW, code_of, native_program
        from ..files import native_errors

        arrays = [Array(item) for item in inputs]
        result = arrays[0].new(self.dtype or arrays[0].dtype) if out is None else Array(out, output=True)
        self._check(arrays, result)
        operands = [array.apart_from(result) for array in arrays]
        with native_errors(UsageError):
            _, overflows = _native.apply(
                native_program(formula.program, self.wide),
                formula.numbers,
                [(array.address, code_of(array.dtype)) for array in operands],
                result.address,
                code_of(result.dtype),
                result.size,
                overflow=OVERFLOW[self.overflow],
                threads=self.threads,
                target=os.environ.get("SDS_CPU", ""),
                shape=tuple(result.shape),
            )
        if self.overflow == "error" and overflows:
            from ..errors import RunFailed

            raise RunFailed(f"{overflows} values do not fit {result.dtype.name}", code="overflow")
        return result.give_back()

    def _check(self, arrays: Sequence[Any], result: Any) -> None:
        if self.dtype is not None and self.dtype is not result.dtype:
            raise UsageError(f"out is {result.dtype.name}, but dtype asks for {self.dtype.option}", code="conflict")
        for array in (*arrays[1:], result):
            if array.shape != arrays[0].shape:
                raise UsageError(f"shapes differ: {list(array.shape)} and {list(arrays[0].shape)}", code="shape")

    # ---- on a GPU

    def _plain(self, calls: Sequence[tuple[Sequence[Any], Any]], results: list[Any]) -> PlainRows | None:
        """The calls that the GPU's backend takes unchanged; their outputs are put into ``results``. None where that
        is impossible: on the CPU, for a backend that launches tensors one by one, and to count overflows."""
        if self.overflow == "error" or not calls or not calls[0][0] or not is_torch(calls[0][0][0]):
            return None
        if self.formula.program.in_stages:
            return None
        try:
            if device_of(calls[0][0], None) is None:
                return None
        except UsageError:
            return None  # said below, with the tensor's name
        import torch

        from ..gpu.tensors import choose

        backend = choose(self.formula, (), F32, self.wide)
        kind = getattr(torch, TORCH[self.dtype.name]) if self.dtype else None
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

        views = [Tensor(item) for item in inputs]
        if out is None:
            dtype = self.dtype or views[0].dtype
            out = torch.empty_like(inputs[0], dtype=getattr(torch, TORCH[dtype.name]), requires_grad=False)
        elif isinstance(out, torch.Tensor):
            require_separate(out.shape, out.stride())
        self._check(views, Tensor(out))
        return out

    def _launch(self, rows: Sequence[tuple[Any, Sequence[Any], Formula]]) -> None:
        """One batch for all rows of equal dtypes; a formula that reduces or draws has other numbers for each row."""
        from ..gpu.tensors import evaluate

        if self.formula.program.in_stages:
            for out, inputs, formula in rows:
                if out.numel():
                    left, all_of_them = self._last_stage(inputs, formula)
                    dtypes = tuple(torch_dtype(item) for item in all_of_them)
                    evaluate(
                        left, [(out, all_of_them)], dtypes, torch_dtype(out), overflow=self.overflow, wide=self.wide
                    )
            return
        batches: dict[Any, list[Any]] = {}
        for out, inputs, _ in rows:
            if out.numel():
                batches.setdefault((out.dtype, *(item.dtype for item in inputs)), []).append((out, inputs))
        for batch in batches.values():
            out, inputs = batch[0]
            dtypes = tuple(torch_dtype(item) for item in inputs)
            evaluate(self.formula, batch, dtypes, torch_dtype(out), overflow=self.overflow, wide=self.wide)

    def _last_stage(self, inputs: Sequence[Any], formula: Formula) -> tuple[Formula, list[Any]]:
        """What is left of the formula once the host has reduced the tensors of a GPU, and the tensors that it takes:
        behind the inputs those that the host generates."""
        import torch

        from .. import _native
        from ..backends.cpu import last_stage
        from ..files import native_errors
        from ..plan import Job, Operand

        first, program = inputs[0], formula.program
        dtypes = [torch_dtype(item) for item in inputs]
        operands = tuple(Operand(number, dtype, 0) for number, dtype in enumerate(dtypes))
        job = Job(0, dtypes[0], 0, first.numel(), operands, 0, formula.numbers, tuple(first.shape))
        here = [item.detach().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8) for item in inputs]
        with native_errors(UsageError):
            sources = [_native.Source.memory(item.numpy().data) for item in here]
            left = last_stage(job, program, sources, self.wide)
        kind = F64 if self.wide or F64 in dtypes else F32
        further = []
        for number in range(len(program.further())):
            made = torch.empty(first.shape, dtype=getattr(torch, TORCH[kind.name]))
            left.generate(number, 0, made.view(torch.uint8).numpy().reshape(-1).data, kind)
            further.append(made.to(first.device))
        return left.formula, [*inputs, *further]


def _statistics(method: Method, calls: Sequence[tuple[Sequence[Any], Any]], by_role: Mapping[str, list[int]]) -> Any:
    """What a method must know of all tensors, as float64."""
    import numpy as np

    assert method.across is not None
    found = [np.empty(0)]
    for role, numbers in by_role.items():
        for number in numbers if not role.endswith(APART) else ():
            with np.errstate(all="ignore"):
                found.append(method.across.statistic(*calls[number][0]).values.reshape(-1))
    return np.concatenate(found)


_bodies: dict[tuple[Any, int, str], tuple[Body, Formula]] = {}  # traced lately: tracing takes longer than a launch


def _traced(method: Method, count: int, params: Mapping[str, Any]) -> tuple[Body, Formula]:
    """The method's body, and its formula for a tensor without a name."""
    from ..program.tracing import body_of

    key = (method.body, count, repr(params))  # as text, in which 0.0 and −0.0 differ
    found = _bodies.get(key)
    if found is None:
        if len(_bodies) >= 256:
            _bodies.clear()
        body = body_of(method, count, params)
        found = _bodies[key] = body, body.formula(params)
    return found
