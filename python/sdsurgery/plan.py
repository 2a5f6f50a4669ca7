"""The Plan: the output file decided in every byte range before any arithmetic.

Verbs decide what becomes of each tensor and say so as Pieces; ``assemble`` puts the pieces in the file's order, lays
out the file and turns them into Jobs with absolute offsets. From there on nothing knows a tensor's name. Merge, cast,
EMA extraction, pruning and component swaps differ only in their pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from .dtypes import DType
from .errors import InputRefused, printable
from .program import Formula, Program, identity
from .records import NamedTuple, dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .checkpoint import Checkpoint, TensorInfo
    from .formats.writers import Writer

# What becomes of a tensor.
MERGED = "merged"  # the formula over all inputs
CAST = "cast"  # one input, rounded to another dtype
COPIED = "copied"  # one input, byte for byte
KEPT = "kept"  # A's tensor, because another input lacks it
ADDED = "added"  # a tensor that only another input has
FILLED = "filled"  # generated data (test files)
COMPARED = "compared"  # two inputs, looked at


@dataclass(frozen=True)
class View:
    """How a tensor that is not contiguous lies in its storage: strides in elements. ``start`` elements are skipped."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0


class Operand(NamedTuple):
    """Bytes of one input: which source, the element type, and where the tensor's first element lies in that file."""

    source: int
    dtype: DType
    offset: int
    view: View | None = None

    def at(self, element: int) -> Operand:
        """The same without its first elements."""
        if self.view is not None:
            return self._replace(view=replace(self.view, start=self.view.start + element))
        return self._replace(offset=self.offset + (self.dtype.nbytes(element) or 0))

    def tensor(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The input tensor that it is the whole of."""
        from .checkpoint import TensorInfo

        info = TensorInfo(name, self.dtype, shape, self.offset, 0)
        info = info._replace(nbytes=self.dtype.nbytes(info.elements) or 0)
        return info if self.view is None else info._replace(shape=self.view.shape, strides=self.view.strides)


@dataclass(frozen=True)
class Fill:
    """Generated, normally distributed values: element i depends on seed + i alone."""

    seed: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Reduction:
    """How alike two operands are, in one pass (``csrc/reduce.h``). Makes no bytes, so only an examination has it."""


Work = Formula | Fill | Reduction | None
"""What makes a tensor's bytes; None: they are copied."""


class Segment(NamedTuple):
    """``count`` elements of a piece from element ``first`` on, made by one formula (None: copied)."""

    formula: Work
    first: int
    count: int  # type: ignore[assignment]
    operands: tuple[Operand, ...]


class Piece(NamedTuple):
    """One output tensor: its header entry, what is done (``action``), from what (``segments``), and why (``note``).

    ``facts`` is what else a dry run tells of it, in JSON types: a merge's block and ratios.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    action: str
    segments: tuple[Segment, ...]
    note: str = ""
    facts: Mapping[str, Any] | None = None


class Job(NamedTuple):
    """One byte range of the output. ``program`` indexes ``Plan.programs`` (or is None for a copy of bytes) and
    ``numbers`` are its constants; ``count`` is in elements of ``dtype``, ``offset`` in bytes of the output; ``tensor``
    indexes ``Plan.pieces``."""

    program: int | None
    dtype: DType
    offset: int
    count: int  # type: ignore[assignment]
    operands: tuple[Operand, ...]
    tensor: int
    numbers: tuple[float, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.count) or 0


@dataclass(frozen=True)
class Check:
    """A stretch of a source whose CRC-32 is known and whose bytes the ``parts`` (job, operand) read, one after the
    other and all of them."""

    source: int
    offset: int
    nbytes: int
    crc32: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Dropped:
    """An input tensor that has no place in the output. ``source`` indexes ``Plan.sources``."""

    source: int
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything that will be done. ``pieces`` are in file order, ``jobs`` in the order of their output bytes.

    ``structure`` renders every byte of the file that is not tensor data, as (offset, bytes), for a list of the inputs'
    SHA-256 (None where unknown), the SHA-256 of all tensor data (from ``data_start`` on; None unless ``body_hashed``)
    and the CRC-32 of the ranges ``sums``. ``written_as`` is the same plan for a file of another format.
    """

    verb: str
    sources: tuple[Any, ...]  # Checkpoint, or bytes for data that the plan itself carries
    pieces: tuple[Piece, ...]
    jobs: tuple[Job, ...]
    programs: tuple[Program | Fill | Reduction, ...]
    data_start: int
    size: int
    body_hashed: bool
    sums: tuple[tuple[int, int], ...]  # (offset, bytes)
    checks: tuple[Check, ...]
    structure: Callable[[Sequence[str | None], str | None, Sequence[int]], list[tuple[int, bytes]]]
    written_as: Callable[[Writer], Plan]
    dropped: tuple[Dropped, ...] = ()
    missing: tuple[tuple[int, str], ...] = ()  # (source, name): A's tensors that another input lacks
    notes: tuple[str, ...] = ()
    family: str = "unknown"
    hash_inputs: bool = True  # whether the metadata hold the inputs' SHA-256 when hashes are asked for

    def checkpoints(self) -> list[Checkpoint]:
        """The inputs that are files, in order."""
        return [source for source in self.sources if not isinstance(source, bytes)]

    def counts(self) -> dict[str, int]:
        """Number of output tensors by action, and of dropped input tensors."""
        counts: dict[str, int] = {}
        for piece in self.pieces:
            counts[piece.action] = counts.get(piece.action, 0) + 1
        if self.dropped:
            counts["dropped"] = len(self.dropped)
        return counts

    def bytes_to_read(self) -> int:
        """Input bytes that the jobs will read; dropped tensors are never read."""
        return sum([job.count * part.dtype.bits for job in self.jobs for part in job.operands]) // 8


def whole(formula: Work, elements: int, operands: Sequence[Operand]) -> tuple[Segment, ...]:
    """The usual case: one formula makes the whole tensor."""
    return (Segment(formula, 0, elements, tuple(operands)),)


def operand(source: int, info: TensorInfo) -> Operand:
    """A whole input tensor as an operand."""
    view = None if info.strides is None else View(info.shape, info.strides)
    return Operand(source, info.dtype, info.offset, view)


def copied(source: int, info: TensorInfo, *, name: str | None = None, action: str = COPIED, note: str = "") -> Piece:
    """The input tensor as it is, perhaps under another name."""
    segments = whole(None, info.elements, (operand(source, info),))
    return Piece(name or info.name, info.dtype, info.shape, action, segments, note)


def rounded(
    source: int, info: TensorInfo, dtype: DType | None, *, name: str | None = None,
    action: str | None = None, note: str = "", watched: bool = False,
) -> Piece:  # fmt: skip
    """The input tensor in ``dtype`` (None: its own). Copied when nothing changes; refused when it can't be computed.

    An empty tensor is a marker and keeps its dtype. ``watched``: NaN and Inf must be noticed, which a copy of bytes
    does not; evaluating the identity gives the same bytes where there are none.
    """
    if dtype is None or dtype is info.dtype or info.elements == 0:
        if not (watched and info.dtype.computable and info.elements):
            return copied(source, info, name=name, action=action or COPIED, note=note)
        dtype, action = info.dtype, action or COPIED
    require_computable(info)
    segments = whole(identity(), info.elements, (operand(source, info),))
    return Piece(name or info.name, dtype, info.shape, action or CAST, segments, note)


def require_computable(info: TensorInfo) -> None:
    """InputRefused unless a formula can be evaluated on the tensor."""
    if not info.dtype.computable:
        raise InputRefused(
            f"tensor '{printable(info.name)}' is {info.dtype.name}, which can only be copied; "
            "convert the file to fp16 or fp32 first, or leave its dtype (--dtype keep)"
        )


def assemble(
    verb: str,
    sources: Sequence[Any],
    pieces: Sequence[Piece],
    metadata: Callable[[Sequence[str | None], str | None], Mapping[str, str]],
    *,
    hashed: bool,
    hash_inputs: bool = True,
    keep_order: bool = False,
    **facts: Any,
) -> Plan:
    """Order the pieces, lay out the file (as safetensors, see ``Plan.written_as``) and make the jobs.

    ``keep_order`` keeps the given order when no tensor changes its dtype (so that a header-free hash of unchanged
    tensors stays what it was); else tensors are listed by falling dtype width and then in the given order.
    ``hashed`` reserves room in the header for hashes that are known only at the end: the tensor data's and, with
    ``hash_inputs``, those of the input files.
    """
    from .formats.writers import SAFETENSORS
    from .metadata import placeholder_hashes

    given = list(pieces)
    files = sum(not isinstance(source, bytes) for source in sources)
    unhashed = (None,) * files

    @cache  # safetensors is laid out for the report of a run without an output, and written most of the time
    def written_as(writer: Writer) -> Plan:
        body_hashed = hashed and writer.body_hashed
        widest = metadata(unhashed, None)
        if hashed:
            known = placeholder_hashes(files) if hash_inputs else unhashed
            widest = metadata(known, placeholder_hashes(1)[0] if body_hashed else None)
        unchanged = keep_order and all(piece.action == COPIED for piece in given)
        ordered = given if unchanged or not writer.by_width else sorted(given, key=lambda piece: -piece.dtype.bits)
        aliases = _aliases(sources, ordered) if writer.shares else {}
        placed = writer.place([(piece.name, piece.dtype, piece.shape) for piece in ordered], aliases, widest)

        def structure(
            input_hashes: Sequence[str | None], body_hash: str | None, sums: Sequence[int]
        ) -> list[tuple[int, bytes]]:
            return placed.structure(metadata(input_hashes, body_hash) if hashed else metadata(unhashed, None), sums)

        jobs, programs = _jobs(ordered, placed.offsets, aliases)
        return Plan(
            verb, tuple(sources), tuple(ordered), jobs, programs, placed.data_start, placed.size, body_hashed,
            placed.sums, _checks(sources, jobs), structure, written_as, hash_inputs=hash_inputs, **facts,
        )  # fmt: skip

    return written_as(SAFETENSORS)


def examination(verb: str, sources: Sequence[Any], pieces: Sequence[Piece]) -> Plan:
    """A plan that reads and writes nothing (``engine.examine``): the pieces one after the other, without a header."""
    offsets, size = [], 0
    for piece in pieces:
        offsets.append(size)
        size += sum(piece.dtype.nbytes(segment.count) or 0 for segment in piece.segments)
    jobs, programs = _jobs(pieces, offsets, {})

    def written_as(writer: Writer) -> Plan:
        raise ValueError("an examination writes no file")

    return Plan(
        verb, tuple(sources), tuple(pieces), jobs, programs, 0, size, False, (), _checks(sources, jobs),
        lambda hashes, body, sums: [], written_as,
    )  # fmt: skip


def _aliases(sources: Sequence[Any], pieces: Sequence[Piece]) -> dict[str, str]:
    """Pieces whose bytes are those of an earlier one because their inputs share theirs: name -> the earlier name."""
    places: dict[tuple[Any, ...], int] = {}
    for source, item in enumerate(sources):
        for info in () if isinstance(item, bytes) else item.tensors.values():
            place = (source, info.offset, info.nbytes, info.strides)
            places[place] = places.get(place, 0) + 1
    shared = {place[:2] for place, count in places.items() if count > 1}
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for piece in pieces:
        if any((part.source, part.offset) in shared for segment in piece.segments for part in segment.operands):
            same = first.setdefault((piece.dtype, piece.segments), piece.name)
            if same != piece.name:
                aliases[piece.name] = same
    return aliases


def _checks(sources: Sequence[Any], jobs: Sequence[Job]) -> tuple[Check, ...]:
    """The records of the inputs that the jobs read completely, so that their CRC-32 can be checked on the way."""
    records = [
        (source, record)
        for source, item in enumerate(sources)
        for record in (() if isinstance(item, bytes) else item.records)
        if record.crc32 is not None
    ]
    if not records:
        return ()
    # What is read from each place on, in one piece: the longest, where there are several.
    reads: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}
    for index, job in enumerate(jobs):
        for number, part in enumerate(job.operands):
            nbytes = part.dtype.nbytes(job.count) or 0
            if part.view is None and nbytes > reads.get((part.source, part.offset), (0,))[0]:
                reads[part.source, part.offset] = (nbytes, (index, number))
    checks = []
    for source, record in records:
        at, parts = record.offset, []
        while (read := reads.get((source, at))) is not None and at < record.offset + record.nbytes:
            at += read[0]
            parts.append(read[1])
        if parts and at == record.offset + record.nbytes:
            assert record.crc32 is not None
            checks.append(Check(source, record.offset, record.nbytes, record.crc32, tuple(parts)))
    return tuple(checks)


def _jobs(
    pieces: Sequence[Piece], offsets: Sequence[int], aliases: Mapping[str, str]
) -> tuple[tuple[Job, ...], tuple[Program | Fill | Reduction, ...]]:
    programs: dict[Program | Fill | Reduction, int] = {}
    jobs = []
    last: Program | Fill | Reduction | None = None
    number: int | None = None
    for index, (piece, offset) in enumerate(zip(pieces, offsets, strict=True)):
        for segment in piece.segments:
            if segment.count == 0 or piece.name in aliases:
                continue
            work = segment.formula
            program, numbers = work if isinstance(work, Formula) else (work, ())
            if program is not last:  # nearly all have the one before's, and a program is slow to look up
                last = program
                number = None if program is None else programs.setdefault(program, len(programs))
            at = offset + (piece.dtype.nbytes(segment.first) or 0)
            jobs.append(Job(number, piece.dtype, at, segment.count, segment.operands, index, numbers))
    return tuple(jobs), tuple(programs)
