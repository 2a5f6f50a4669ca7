"""The Plan: numbers only. Byte ranges in, a program and its constants, a byte range out.

Nothing here knows a tensor's name: a job carries the number of its tensor, and ``outline.py``, which knows names,
turns that into a line. A Plan is a value: frozen, printable, comparable, picklable.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, NamedTuple, overload

from .dtypes import DType
from .operands.encoding import Companion, Encoding
from .operands.low_rank import LowRank, bytes_of
from .operands.mixing import Mixing
from .operands.view import View
from .program import Program


class Operand(NamedTuple):
    """Bytes of one input: which source, the element type, and where the tensor's first element lies in that file. Of
    an encoded weight the codes lie there, and ``dtype`` is F32, which a formula sees. Of what an adapter's factors make
    (``low_rank``) nothing lies there."""

    source: int
    dtype: DType
    offset: int
    view: View | None = None
    encoding: Encoding | None = None
    low_rank: LowRank | None = None

    @property
    def computed(self) -> bool:
        """Whether the engine computes its float32 values from what is stored."""
        return self.encoding is not None or self.low_rank is not None

    def at(self, element: int) -> Operand:
        """The same without its first elements."""
        if self.encoding is not None:
            return self._replace(encoding=self.encoding.at(element))
        if self.low_rank is not None:
            return self._replace(low_rank=self.low_rank.at(element))
        if self.view is not None:
            return self._replace(view=self.view._replace(start=self.view.start + element))
        return self._replace(offset=self.offset + (self.dtype.nbytes(element) or 0))

    def stored_bytes(self, count: int) -> int:
        """Bytes of ``count`` elements as they are stored; of what is computed, all that it is computed from."""
        made = self.encoding or self.low_rank
        return (self.dtype.nbytes(count) or 0) if made is None else made.stored_bytes


class Fill(NamedTuple):
    """Generated, normally distributed values: element i depends only on seed + i."""

    seed: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Reduction:
    """How alike two operands are, in one pass (``csrc/reduce.h``). Makes no bytes, so only a plan
    that writes nothing has it."""


class Job(NamedTuple):
    """One byte range of the output. ``program`` indexes ``Plan.programs`` (or is None for a copy of bytes) and
    ``numbers`` are its constants; ``count`` is in elements of ``dtype``, ``offset`` in bytes of the output; ``tensor``
    is the number of its tensor. ``shape`` is the tensor's, for a program that is evaluated in
    stages: such a job makes a whole tensor; ``mixings`` are what they mix of it. ``read``, where not 0: its stages read
    so many elements, and it makes ``count`` of what they find."""

    program: int | None
    dtype: DType
    offset: int
    count: int  # type: ignore[assignment]
    operands: tuple[Operand, ...]
    tensor: int
    numbers: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    mixings: tuple[Mixing, ...] = ()
    read: int = 0

    @property
    def elements(self) -> int:
        """How many elements of each operand are read."""
        return self.read or self.count

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.count) or 0

    @property
    def factors(self) -> list[Companion]:
        """Of adapters: what its operands and mixings are computed from."""
        made = [operand.low_rank.factors for operand in self.operands if operand.low_rank is not None]
        return [part for factors in (*made, *(mixing.factors for mixing in self.mixings)) for part in factors]

    def bytes_to_read(self) -> int:
        mixed = sum([bytes_of(mixing.factors) for mixing in self.mixings])
        return mixed + sum([part.stored_bytes(self.elements) for part in self.operands])


class Common(NamedTuple):
    """What usual jobs share; ``parts`` are the sources and dtypes of their operands."""

    program: int | None
    dtype: DType
    numbers: tuple[float, ...]
    parts: tuple[tuple[int, DType], ...]


class Jobs(Sequence[Job]):
    """The jobs of a plan: a tuple of them, but in a fifth of the memory, since a plan may have hundreds of thousands.

    Of a usual job five numbers are kept, and the places of its operands; what jobs have in common, once: program,
    dtype, constants, and of each operand source and dtype. ``unusual`` are the others, by their index.
    """

    __slots__ = ("_common", "_known", "_places", "_rows", "unusual")

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._rows, self._places = array("Q"), array("Q")
        self._common: list[Common] = []
        self.unusual: dict[int, Job] = {}
        # Constants are told apart by their identity: 0.0 equals -0.0.
        self._known: dict[tuple[int | None, DType, int, tuple[tuple[int, DType], ...]], int] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        """One more, while a plan is made."""
        program, dtype, offset, count, operands, tensor, numbers, shape, mixings, read = job
        if shape or mixings or read or any(each.view is not None or each.computed for each in operands):
            self.unusual[len(self)] = job
            self._rows.extend((0, 0, 0, 0, 0))
        else:
            parts = tuple([each[:2] for each in operands])
            places = [each.offset for each in operands]
            self.add_plain(Common(program, dtype, numbers, parts), offset, count, places, tensor)

    def add_plain(self, common: Common, offset: int, count: int, places: Sequence[int], tensor: int) -> None:
        """One more whose operands are elements as they are stored."""
        program, dtype, numbers, parts = common
        kind = self._known.setdefault((program, dtype, id(numbers), parts), len(self._common))
        if kind == len(self._common):
            self._common.append(common)
        self._rows.extend((kind, offset, count, tensor, len(self._places)))
        self._places.extend(places)

    def plainly(self) -> Iterator[Job | tuple[Common, int, int, Sequence[int]]]:
        """The jobs; of a usual one what it has in common with others, its offset, its count and its operands' places,
        which takes a third of the time."""
        for index, (kind, offset, count, _, place) in enumerate(zip(*[iter(self._rows)] * 5, strict=True)):
            if index in self.unusual:
                yield self.unusual[index]
            else:
                common = self._common[kind]
                yield common, offset, count, self._places[place : place + len(common.parts)]

    def __len__(self) -> int:
        return len(self._rows) // 5

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Job, ...]: ...
    def __getitem__(self, index: int | slice) -> Job | tuple[Job, ...]:
        at = range(len(self))[index]
        if isinstance(at, range):
            return tuple([self[each] for each in at])
        if at in self.unusual:
            return self.unusual[at]
        kind, offset, count, tensor, place = self._rows[5 * at : 5 * at + 5]
        program, dtype, numbers, parts = self._common[kind]
        operands = tuple([Operand(*part, self._places[at]) for at, part in enumerate(parts, place)])
        return Job(program, dtype, offset, count, operands, tensor, numbers)

    def usual_bytes(self) -> int:
        """Input bytes that the usual jobs read."""
        bits = [sum([dtype.bits for _, dtype in parts]) for _, _, _, parts in self._common]
        kinds, counts = self._rows[::5], self._rows[2::5]
        return sum([bits[kind] * count for kind, count in zip(kinds, counts, strict=True) if count]) // 8

    def __iter__(self) -> Iterator[Job]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Jobs) and len(self) == len(other) and all(map(eq, self, other))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Jobs, (tuple(self),)


class Check(NamedTuple):
    """A stretch of a source whose CRC-32 is known and whose bytes the ``parts`` (job, operand) read, one after the
    other and all of them. Without parts nothing of a plan reads it from end to end: what adapters' factors lie in."""

    source: int
    offset: int
    nbytes: int
    crc32: int
    parts: tuple[tuple[int, int], ...]


class Version(NamedTuple):
    """A further output of a plan: like the first but for where its tensor data lie, and the numbers of its jobs."""

    data_start: int
    size: int
    numbers: tuple[tuple[float, ...], ...]


class Plan(NamedTuple):
    """Everything that will be read, computed and written. ``jobs`` are in the order of their output bytes.

    ``files`` are the paths of the inputs, or the bytes of data that the plan itself carries. Tensor data lie from
    ``data_start`` to ``size``; ``sums`` are (offset, bytes) of the output whose CRC-32 the format asks for. These are
    the first output's; ``further`` are others that are made of the same bytes as they are read.
    """

    files: tuple[str | bytes, ...]
    programs: tuple[Program | Fill | Reduction, ...]
    jobs: Jobs
    data_start: int
    size: int
    sums: tuple[tuple[int, int], ...] = ()
    checks: tuple[Check, ...] = ()
    further: tuple[Version, ...] = ()

    def bytes_to_read(self) -> int:
        """Input bytes that the jobs will read; dropped tensors are never read."""
        return sum([job.bytes_to_read() for job in self.jobs.unusual.values()]) + self.jobs.usual_bytes()


def together(plans: Sequence[Plan]) -> Plan | None:
    """One plan for the outputs of all, or None when they differ in more than numbers and the length of their headers,
    or when their format wants checksums of what is written."""
    first = plans[0]
    further = []
    for other in plans[1:]:
        shift = other.data_start - first.data_start
        alike = (other.files, other.programs, other.checks) == (first.files, first.programs, first.checks)
        if not alike or first.sums or other.sums or len(other.jobs) != len(first.jobs):
            return None
        for job, same in zip(first.jobs, other.jobs, strict=True):
            if job._replace(offset=job.offset + shift, numbers=same.numbers) != same:
                return None
        further.append(Version(other.data_start, other.size, tuple([job.numbers for job in other.jobs])))
    return first._replace(further=tuple(further))
