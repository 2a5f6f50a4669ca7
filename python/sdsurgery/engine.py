"""Runs a Plan: lets a backend stream the jobs into a Sink, hashes beside it, commits or aborts."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from . import _native, backends
from .backends import Options, Reduced, RunHandle, ValuesHandle
from .errors import DeviceFailed, Failure, InputRefused, Interrupted, RunFailed, SdsError, UsageError, printable
from .files import native_errors, with_suppressed

if TYPE_CHECKING:
    from ._native import Sink, Source
    from .plan import Check, Plan

Raised = TypeVar("Raised", bound=Failure)
Progress = Callable[[int, int], None]  # bytes done, bytes in all
Structure = Callable[[Sequence[str | None], str | None, Sequence[int], str | None], Iterable[tuple[int, bytes]]]


@dataclass
class Outcome:
    """What a run met, by the number of the tensor: non-finite inputs and overflows counted, reductions, what stages
    found; hashes, times, how it ran."""

    nonfinite: dict[int, int] = field(default_factory=dict)
    overflow: dict[int, int] = field(default_factory=dict)
    reduced: dict[int, Reduced] = field(default_factory=dict)
    values: dict[int, Sequence[float]] = field(default_factory=dict)
    damaged: list[Check] = field(default_factory=list)  # only of a run that goes on in spite of them
    seconds: float = 0.0
    how: dict[str, Any] = field(default_factory=dict)
    input_hashes: tuple[str | None, ...] = ()
    body_hash: str | None = None
    hash_seconds: float = 0.0  # waited for hashes after the last byte was written
    notes: list[str] = field(default_factory=list)


def preview(plan: Plan, sources: Sequence[Source], backend: str, options: Options) -> dict[str, Any]:
    """How a run of the plan would work here (threads, io, buffers), without starting it."""
    chosen, _ = _choose(backend, options)
    with native_errors():
        return {"backend": chosen.name, **_described(chosen, _prepare(chosen, plan, sources, None, options))}


def examine(
    plan: Plan, sources: Sequence[Source], options: Options, progress: Progress | None = None, backend: str = "cpu", *,
    values: bool = False,
) -> Outcome:  # fmt: skip
    """Read and evaluate everything and keep nothing: non-finite values for ``verify``, reductions for ``compare``.

    ``values``: ``Outcome.values`` is wanted too: what the stages of each job found of whole tensors (not of rows or
    columns), in the order of the program's values. UsageError for a backend that does not keep it.
    """
    chosen, failed = _choose(backend, options)
    if values and not chosen.values:
        raise UsageError(f'the backend {chosen.name} keeps no values of stages; use backend="cpu"', code="backend")
    started = time.monotonic()
    looks = _LOOKS
    with native_errors(InputRefused):
        while True:
            try:
                run = _prepare(chosen, plan, sources, None, options)
                _drive(run, plan, progress and _of_reading(plan, progress))
                touched = [source for source in sources if source.touched]
                looks -= bool(touched)
                if not touched or not looks:
                    break
                for source in touched:
                    source.settle()
            except DeviceFailed as error:
                chosen, failed = _instead(chosen, options, error)
    outcome = _outcome(plan, run, chosen, started)
    if values:
        kept = cast(ValuesHandle, run).values()
        outcome.values = {plan.jobs[job].tensor: found for job, found in kept}
    if failed:
        outcome.how["fallback"] = failed
    return outcome


class Target(NamedTuple):
    """A file to write: its resolved path (``target_path``), who gives the bytes that are not tensor data, once the
    SHA-256 of the inputs, (``hash_body``) of the tensor data and of ``window`` (offset and length, within the tensor
    data; None: not wanted), and the CRC-32 of ``Plan.sums`` are known."""

    path: str
    structure: Structure
    hash_body: bool = False
    window: tuple[int, int] | None = None


def execute(
    plan: Plan,
    sources: Sequence[Source],
    targets: Sequence[Target],
    *,
    backend: str = "auto",
    options: Options | None = None,
    replace: bool = False,
    sync: bool = True,
    hash_files: Sequence[Source] = (),
    progress: Progress | None = None,
) -> list[Outcome]:
    """Write the plan's outputs to ``targets``, in one reading of the inputs: each whole, or not at all.

    Raises RunFailed when the disk is full or an input changes or cannot be read any more, InputRefused for a NaN or Inf
    that is not wanted, Interrupted on KeyboardInterrupt; the targets are as they were then, but for those that the
    error's ``details["finished"]`` lists.
    """
    options = options or Options(flush=sync)
    chosen, failed = _choose(backend, options)
    started = time.monotonic()
    writing = _Writing(plan, targets, hash_files)
    finished: list[str] = []

    def once() -> tuple[RunHandle, list[Outcome]]:
        run = writing.begin(chosen, sources, options)
        _drive(run, plan, progress)
        writing.written()
        outcomes = [_outcome(plan, run, chosen, started, output) for output in range(len(targets))]
        writing.collect(outcomes)
        return run, outcomes

    try:
        with native_errors():
            writing.open()
        while True:
            try:
                with native_errors():
                    run, outcomes = once()
                break
            except DeviceFailed as error:
                # From the beginning, over what is written: every backend writes the same bytes.
                chosen, failed = _instead(chosen, options, error)
                writing.stop()
        run, outcomes = _look_again(writing, sources, (run, outcomes), once)
        with native_errors():
            for target, sink, outcome in zip(targets, writing.sinks, outcomes, strict=True):
                if failed:
                    outcome.how["fallback"] = failed
                window = None if target.window is None else _hash_of(sink, *target.window)
                for offset, data in target.structure(outcome.input_hashes, outcome.body_hash, run.sums(), window):
                    sink.write(offset, data)
                sink.commit(replace, sync)
                finished.append(target.path)
                outcome.seconds = time.monotonic() - started
                outcome.notes += [
                    f"removed {printable(name)}, left behind by a run that was killed" for name in sink.leftovers
                ]
        return outcomes
    except KeyboardInterrupt:
        finished = [target.path for target, sink in zip(targets, writing.sinks, strict=False) if sink.committed]
        when = "just after the output was written" if len(finished) == len(targets) else "nothing was written"
        text = "interrupted" if 0 < len(finished) < len(targets) else f"interrupted; {when}"
        raise with_finished(Interrupted(text), finished, targets) from None
    except SdsError as error:
        raise with_finished(error, finished, targets) from None
    finally:
        writing.close()


def _hash_of(sink: Sink, offset: int, nbytes: int) -> str:
    part = bytearray(nbytes)
    sink.read_into(offset, part)
    return _native.sha256([bytes(part)])[0]


_LOOKS = 3


def _look_again(
    writing: _Writing, sources: Sequence[Source], done: tuple[RunHandle, list[Outcome]],
    again: Callable[[], tuple[RunHandle, list[Outcome]]],
) -> tuple[RunHandle, list[Outcome]]:  # fmt: skip
    """An input that was only touched (a hard link, a new mode or attribute) is no reason to fail, but its bytes may
    have been changed and their time put back: the run is done once more, and must write the same. One that is touched
    all the time is looked at ``_LOOKS`` times. Gives the last run and its outcomes.
    """
    for _ in range(_LOOKS):
        with native_errors():
            touched = [source for source in sources if source.touched]
            if not touched:
                break
            before, hashes = writing.digests(), done[1][0].input_hashes
            for source in touched:
                source.settle()
            writing.stop()
            done = again()
            same = writing.digests() == before and done[1][0].input_hashes == hashes
        if not same:
            path = touched[0].path
            raise RunFailed(f"{printable(path)}: the file changed while it was being read", code="changed", path=path)
    return done


def with_finished(error: Raised, finished: Sequence[str], targets: Sequence[object]) -> Raised:
    """The error, saying which of several outputs were finished when it came."""
    if len(targets) > 1:
        error.details["finished"] = list(finished)
        names = ", ".join(printable(os.path.basename(path)) for path in finished)
        error.args = (f"{error}; finished before: {names}" if finished else f"{error}; none of the outputs is written",)
    return error


class _Writing:
    """The files that a run writes, and the hashing beside it."""

    def __init__(self, plan: Plan, targets: Sequence[Target], hash_files: Sequence[Source]) -> None:
        self.plan, self.targets, self.hash_files = plan, targets, hash_files
        self.sinks: list[Sink] = []
        self._hashing: list[Any] = []  # of the inputs and the first body, and of each further body
        self._starts = [plan.data_start, *(version.data_start for version in plan.further)]
        self._sizes = [plan.size, *(version.size for version in plan.further)]

    def open(self) -> None:
        """Reserve the space of all."""
        for target, size in zip(self.targets, self._sizes, strict=True):
            self.sinks.append(_native.Sink(os.fsencode(target.path), size))

    def begin(self, chosen: backends.Backend, sources: Sequence[Source], options: Options) -> RunHandle:
        from .hashing import Hashing

        busy = 0
        for number, (target, sink, start) in enumerate(zip(self.targets, self.sinks, self._starts, strict=True)):
            sink.watermark = 0
            files = self.hash_files if number == 0 else ()
            if files or target.hash_body:
                body = start if target.hash_body else None
                self._hashing.append(Hashing(files, sink, body, map=options.io in ("auto", "mmap")))
                busy += self._hashing[-1].processors
            else:
                self._hashing.append(None)
        options = options._replace(busy=busy)
        run = _prepare(chosen, self.plan, sources, self.sinks[0], options, further=self.sinks[1:])
        for hashing in filter(None, self._hashing):
            hashing.start()
        return run

    def written(self) -> None:
        for sink, size in zip(self.sinks, self._sizes, strict=True):
            sink.watermark = size

    def collect(self, outcomes: Sequence[Outcome]) -> None:
        """Wait for the hashes."""
        started = time.monotonic()
        for outcome, hashing in zip(outcomes, self._hashing, strict=True):
            if hashing is not None:
                files, outcome.body_hash = hashing.result()
                outcome.input_hashes = files or outcomes[0].input_hashes
            outcome.hash_seconds = time.monotonic() - started

    def digests(self) -> list[bytes]:
        """SHA-256 of the tensor data of each file."""
        from hashlib import sha256

        found, buffer = [], memoryview(bytearray(1 << 20))
        for sink, start, size in zip(self.sinks, self._starts, self._sizes, strict=True):
            hashed = sha256()
            for at in range(start, size, len(buffer)):
                piece = buffer[: min(len(buffer), size - at)]
                sink.read_into(at, piece)
                hashed.update(piece)
            found.append(hashed.digest())
        return found

    def stop(self) -> None:
        for hashing in filter(None, self._hashing):
            hashing.cancel()
        self._hashing.clear()

    def close(self) -> None:
        self.stop()  # before the sinks go: the threads read from them
        for sink in self.sinks:
            sink.abort()  # does nothing after the commit


def writes_versions(backend: str) -> bool:
    """Whether the backend makes several outputs from one reading of the inputs."""
    return backends.get(backend).versions


def _choose(backend: str, options: Options) -> tuple[backends.Backend, str]:
    """The backend, and why it is not the one that was asked for (empty when it is)."""
    try:
        return backends.choose(backend), ""
    except UsageError as error:
        if options.fallback == "none" or backend not in backends.names():
            raise
        return backends.choose(options.fallback), str(error)


def _instead(chosen: backends.Backend, options: Options, error: DeviceFailed) -> tuple[backends.Backend, str]:
    """The backend that starts over, and why; the error itself when there is none."""
    if options.fallback in ("none", chosen.name):
        raise error
    return backends.choose(options.fallback), str(error)


def _prepare(
    chosen: backends.Backend, plan: Plan, sources: Sequence[Source], sink: Sink | None, options: Options, *,
    further: Sequence[Sink] = (),
) -> RunHandle:  # fmt: skip
    """The backend's run of the plan, after the checks of what no job reads from end to end."""
    apart = tuple(check for check in plan.checks if not check.parts)
    if apart:
        backends.damaged_of(plan._replace(checks=apart), sources, options)
        plan = plan._replace(checks=plan.checks[: -len(apart)])
    return chosen.prepare(plan, sources, sink, options, *((further,) if further else ()))


def _described(chosen: backends.Backend, run: Any) -> dict[str, Any]:
    return chosen.describe(run)


def _drive(run: RunHandle, plan: Plan, progress: Progress | None) -> None:
    total = plan.size - plan.data_start
    run.start()
    try:
        while not run.wait(0.1):
            if progress is not None:
                progress(run.bytes_done, total)
    except BaseException:
        run.cancel()
        with_suppressed(run.finish)
        raise
    run.finish()
    if progress is not None:
        progress(total, total)


def _of_reading(plan: Plan, progress: Progress) -> Progress:
    """``progress`` in the bytes that are read: what is made of a tensor may be a single number."""
    starts = [job.offset - plan.data_start for job in plan.jobs]
    read = list(accumulate((job.bytes_to_read() for job in plan.jobs), initial=0))

    def update(done: int, total: int) -> None:
        number = bisect_right(starts, done) - 1
        if done >= total or number < 0:
            return progress(read[-1] if done >= total else 0, read[-1])
        part = (done - starts[number]) / max(1, plan.jobs[number].nbytes)
        progress(read[number] + int(min(1.0, part) * (read[number + 1] - read[number])), read[-1])

    return update


def _outcome(plan: Plan, run: RunHandle, chosen: backends.Backend, started: float, output: int = 0) -> Outcome:
    outcome = Outcome(how={"backend": chosen.name, **_described(chosen, run)})
    for job, nonfinite, overflow in run.tallies(output):
        number = plan.jobs[job].tensor
        if nonfinite:
            outcome.nonfinite[number] = outcome.nonfinite.get(number, 0) + nonfinite
        if overflow:
            outcome.overflow[number] = outcome.overflow.get(number, 0) + overflow
    for job, *values in run.reductions():
        outcome.reduced[plan.jobs[job].tensor] = Reduced(*values)
    outcome.damaged = [plan.checks[index] for index in run.damaged()]
    outcome.seconds = time.monotonic() - started
    return outcome
