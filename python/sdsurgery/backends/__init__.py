"""The backends: one file each, one table. A backend evaluates Jobs; it never sees a tensor's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..discovery import module_names
from ..errors import NONFINITE, OVERFLOW, InputRefused, RunFailed, UsageError, of_job, printable

if TYPE_CHECKING:
    from .._native import Sink, Source
    from ..dtypes import DType
    from ..gpu.tensors import Batch
    from ..plan import Plan
    from ..program import Formula, Program
    from ..settings import Settings


class Options(NamedTuple):
    """How to run, as opposed to what: none of these changes a byte of the output, except the two policies that are
    part of the recipe (``overflow`` and ``wide``)."""

    threads: int = 0  # 0: one for every processor, but for light work on one that is ``busy``
    io: str = "auto"
    tile_bytes: int = 0
    cpu: str = ""
    overflow: str = "default"  # default | inf | saturate | error
    on_nonfinite: str = "keep"  # keep | error
    wide: bool = False  # --compute fp64
    flush: bool = True
    gpu_memory: int = 0  # bytes of buffers on each GPU (and as many pinned on the host); 0: a default
    fallback: str = "none"  # the backend that starts over when a GPU fails
    busy: int = 0  # processors that hash meanwhile: a worker on one of those would only hold the hashing up
    refuse_damaged: bool = True  # False: ``damaged`` lists the checks that failed

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """What the settings of a verb say about it; ``SDS_CPU`` chooses the CPU target."""
        return cls(
            threads=settings.threads,
            io=settings.io,
            tile_bytes=settings.tile_bytes,
            cpu=os.environ.get("SDS_CPU", ""),
            overflow=settings.overflow,
            on_nonfinite=settings.on_nonfinite,
            wide=settings.compute == "fp64",
            flush=settings.sync,
            gpu_memory=settings.gpu_memory,
            fallback=settings.fallback,
        )


class Reduced(NamedTuple):
    """What a reduction of two tensors gives (``csrc/reduce.h`` and docs/numerics.md define each to the bit).

    Sums and maxima are float64, over the elements that are finite in both; ``aa`` is Σ a², ``dd`` Σ (a − b)².
    """

    dot: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    dd: float = 0.0
    a_max: float = 0.0
    b_max: float = 0.0
    difference_max: float = 0.0
    a_nonfinite: int = 0
    b_nonfinite: int = 0
    equal: int = 0


class RunHandle(Protocol):
    """A run in progress (the native Run is one). It keeps ``Sink.watermark`` up to date."""

    def start(self) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def cancel(self) -> None: ...
    def finish(self) -> None: ...
    def tallies(self, output: int = 0) -> Sequence[tuple[int, int, int]]: ...  # (job, nonfinite, overflow), if any
    def reductions(self) -> Sequence[tuple[Any, ...]]: ...  # (job, *Reduced), after finish()
    def sums(self) -> Sequence[int]: ...  # CRC-32 of every range of Plan.sums, after finish()
    def damaged(self) -> Sequence[int]: ...  # which of Plan.checks failed, when that is not an error
    @property
    def bytes_done(self) -> int: ...


class ValuesHandle(RunHandle, Protocol):
    """A run of a backend with ``Backend.values``."""

    def values(self) -> Sequence[tuple[int, Sequence[float]]]: ...  # (job, Outcome.values), after finish()


class PlainRows(Protocol):
    """Rows of tensors (an output and its inputs) that need no care. ``left`` are the numbers of those that do."""

    left: Sequence[int]

    def evaluate(self, formula: Formula, *, overflow: str, wide: bool) -> None: ...  # enqueued, on the current stream


class Backend(NamedTuple):
    """``available`` gives None, or the reason why it can't be used here. ``prepare`` makes a run of a Plan (``sink``
    None: evaluate and keep nothing); ``describe`` says how a prepared run will work. ``supports`` gives None, or why
    a program cannot be evaluated on these dtypes. ``versions``: whether a run takes a plan with further outputs, whose
    sinks are ``prepare``'s last argument. ``values``: whether a run without a sink keeps what its jobs' stages find.
    ``on_tensors`` evaluates one on tensors of the backend's devices
    (gpu/tensors.py), where there is such a thing; ``plain_rows`` takes the tensors among many that it can evaluate
    without a Python call for each."""

    name: str
    available: Callable[[], str | None]
    prepare: Callable[..., RunHandle]  # (plan, sources, sink or None, options[, further sinks])
    describe: Callable[[Any], dict[str, Any]]
    supports: Callable[[Program, Sequence[DType], DType, bool], str | None] = lambda *_: None
    on_tensors: Callable[[Batch], None] | None = None
    plain_rows: Callable[[Sequence[Any], int], PlainRows | None] = lambda *_: None
    devices: Callable[[], list[dict[str, Any]]] = list
    versions: bool = False
    values: bool = False


def sums_of(plan: Plan, sink: Sink) -> list[int]:
    """``RunHandle.sums`` for a backend that does not compute them while it writes: the output is read back."""
    return [_crc32(sink.read_into, offset, nbytes) for offset, nbytes in plan.sums]


def refuse_values(job: int, nonfinite: int, overflow: int, options: Options) -> None:
    """InputRefused or RunFailed where the options want no NaN, Inf or overflow; the same lines as the native engine's
    (``files.native_errors``)."""
    if nonfinite and options.on_nonfinite == "error":
        raise of_job(job, InputRefused(NONFINITE, code="nonfinite"))
    if overflow and options.overflow == "error":
        raise of_job(job, RunFailed(OVERFLOW, code="overflow"))


def damaged_of(plan: Plan, sources: Sequence[Source], options: Options) -> list[int]:
    """``RunHandle.damaged`` for a backend that does not check its inputs while it reads them.

    RunFailed for the first one with ``options.refuse_damaged``.
    """
    damaged = []
    for index, check in enumerate(plan.checks):
        if _crc32(sources[check.source].read_into, check.offset, check.nbytes) == check.crc32:
            continue
        if options.refuse_damaged:
            path = printable(sources[check.source].path)
            error = RunFailed(f"{path}: damaged: its bytes differ from their CRC-32", code="damaged")
            raise of_job(check.parts[0][0], error) if check.parts else error
        damaged.append(index)
    return damaged


def _crc32(read_into: Callable[[int, memoryview], None], offset: int, nbytes: int) -> int:
    import zlib

    block, crc = memoryview(bytearray(min(nbytes, 1 << 20))), 0
    for at in range(0, nbytes, 1 << 20):
        part = block[: min(1 << 20, nbytes - at)]
        read_into(offset + at, part)
        crc = zlib.crc32(part, crc)
    return crc


def names() -> list[str]:
    """The backends' names: the modules of this package. None is imported for it (some need NumPy or more)."""
    return module_names(__path__)


def get(name: str) -> Backend:
    """The backend of that name, whether or not it can be used here; ``auto`` is the one that is fastest for files.
    UsageError with close matches for an unknown name."""
    import importlib

    if name == "auto":
        name = "cpu"
    try:
        backend: Backend = importlib.import_module(f"{__name__}.{name}").BACKEND
    except ImportError:
        if name in names():
            raise
        from ..errors import printable
        from ..suggest import did_you_mean

        hint = did_you_mean(name, names()) or f"; known: auto, {', '.join(names())}"
        raise UsageError(f"unknown backend '{printable(name)}'{hint}", code="unknown_name") from None
    return backend


def choose(name: str) -> Backend:
    """``get``, and a UsageError with the reason when the backend can't be used here."""
    backend = get(name)
    reason = backend.available()
    if reason is not None:
        raise UsageError(f"the backend {backend.name} cannot be used here: {reason}", code="backend")
    return backend
