"""The way from an Outline's pieces to a Plan's jobs: from here on nothing knows a tensor's name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputRefused
from .operands.mixing import Mixing
from .operands.modules import Factor, adapted
from .plan import Check, Common, Fill, Job, Jobs, Operand, Reduction
from .program import Formula, Program, scaling

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .dtypes import DType
    from .outline import Piece, Region, Segment, Whole


def files_of(sources: Sequence[Checkpoint | bytes]) -> tuple[str | bytes, ...]:
    return tuple(file for source in sources for file in ([source] if isinstance(source, bytes) else source.paths))


def _first_files(sources: Sequence[Checkpoint | bytes]) -> list[int]:
    """For each input the number of its first file among ``Plan.files``."""
    counts = [1 if isinstance(source, bytes) else len(source.files) for source in sources]
    return [sum(counts[:number]) for number in range(len(counts))]


def aliases_of(sources: Sequence[Any], pieces: Sequence[Piece]) -> dict[str, str]:
    """Pieces whose bytes are those of an earlier one because their inputs share theirs: name -> the earlier name."""
    places: dict[tuple[Any, ...], int] = {}
    for source, item in enumerate(sources):
        for info in () if isinstance(item, bytes) else item.tensors.values():
            place = (source, info.file, info.offset, info.nbytes, info.strides)
            places[place] = places.get(place, 0) + 1
    shared = {place[:3] for place, count in places.items() if count > 1}
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for piece in pieces:
        parts = (part for segment in piece.segments for part in segment.operands)
        if any((part.source, part.file, part.offset) in shared for part in parts):
            same = first.setdefault((piece.dtype, piece.segments), piece.name)
            if same != piece.name:
                aliases[piece.name] = same
    return aliases


def checks_of(sources: Sequence[Any], jobs: Sequence[Job]) -> tuple[Check, ...]:
    """The records of the inputs that the jobs read completely, so that their CRC-32 can be checked on the way."""
    first = _first_files(sources)
    records = [
        (first[source] + record.file, record)
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
            if part.view is None and not part.computed and nbytes > reads.get((part.source, part.offset), (0,))[0]:
                reads[part.source, part.offset] = (nbytes, (index, number))
    factors = {(part.source, part.offset) for job in jobs for part in job.factors}
    checks, apart = [], []
    for source, record in records:
        at, parts = record.offset, []
        while (read := reads.get((source, at))) is not None and at < record.offset + record.nbytes:
            at += read[0]
            parts.append(read[1])
        if parts and at == record.offset + record.nbytes:
            assert record.crc32 is not None
            checks.append(Check(source, record.offset, record.nbytes, record.crc32, tuple(parts)))
        elif (source, record.offset) in factors:
            assert record.crc32 is not None
            apart.append(Check(source, record.offset, record.nbytes, record.crc32, ()))
    return (*checks, *apart)


def jobs_of(
    pieces: Sequence[Piece], offsets: Sequence[int], aliases: Mapping[str, str], sources: Sequence[Checkpoint | bytes]
) -> tuple[Jobs, tuple[Program | Fill | Reduction, ...]]:
    placing = _Placing(_first_files(sources))
    for index, (piece, offset) in enumerate(zip(pieces, offsets, strict=True)):
        if piece.name in aliases or placing.plainly(piece, index, offset):
            continue
        for segment in (run for whole_one in piece.segments for run in runs(whole_one)):
            if segment.count:
                placing.add(piece, segment, index, offset)
    return placing.jobs, tuple(placing.programs)


class _Placing:
    """The jobs of pieces, and the programs numbered as they are met."""

    def __init__(self, first: Sequence[int]) -> None:
        self.first = first
        self.jobs = Jobs()
        self.programs: dict[Program | Fill | Reduction, int] = {}
        # Tensors with one formula, whose inputs have the same forms, have all but their places in common.
        self._groups: dict[tuple[Any, ...], tuple[Common | None, int]] = {}
        self._last: Any = None  # nearly all pieces have the one before's work, and a program is slow to look up
        self._split: tuple[int | None, tuple[float, ...], Program | None] = (None, (), None)

    def plainly(self, piece: Piece, index: int, offset: int) -> bool:
        """The job of a whole tensor, made of whole ones that are stored plainly; False where it takes more."""
        whole = piece.whole
        if whole is None:
            return False
        infos = whole.infos
        group = (id(whole.formula), piece.dtype, whole.sources, *[id(info.form) for info in infos])
        if group not in self._groups:
            self._groups[group] = self._common(piece.dtype, whole), infos[0].elements
        common, count = self._groups[group]
        if common is not None and count:
            self.jobs.add_plain(common, offset, count, [info.offset for info in infos], index)
        return common is not None

    def _common(self, dtype: DType, whole: Whole) -> Common | None:
        parts = whole.parts(self.first)
        if parts is None:
            return None
        number, numbers, program = self._numbered(whole.formula)
        return None if program is not None and program.in_stages else Common(number, dtype, numbers, parts)

    def add(self, piece: Piece, segment: Segment, index: int, offset: int) -> None:
        work = segment.formula
        operands = tuple([_operand(self.first[region.source], region) for region in segment.operands])
        mixings: tuple[Mixing, ...] = ()
        if segment.modules and isinstance(work, Formula):
            factors = [Factor(_operand(self.first[region.source], region), n) for region, n in segment.factors]
            rows = segment.shape or _rows(piece, segment)
            try:
                work, operands, mixings = adapted(work, operands, segment.modules, factors, rows)
            except InputRefused as error:
                raise error.of_tensor(piece.name) from None
        if segment.finish and isinstance(work, Formula):
            work = scaling.finished(work, segment.finish)
        number, numbers, program = self._numbered(work)
        at, count = offset + (piece.dtype.nbytes(segment.first) or 0), segment.count
        shape = _whole_shape(piece, segment, program) if program is not None and program.in_stages else ()
        self.jobs.add(Job(number, piece.dtype, at, count, operands, index, numbers, shape, mixings, segment.elements))

    def _numbered(self, work: Any) -> tuple[int | None, tuple[float, ...], Program | None]:
        """The number of what makes bytes, None for a copy; its constants, and itself where it is a Program."""
        if work is not self._last:
            program, numbers = work if isinstance(work, Formula) else (work, ())
            number = None if program is None else self.programs.setdefault(program, len(self.programs))
            self._last, self._split = work, (number, numbers, program if isinstance(program, Program) else None)
        return self._split


def _operand(first: int, region: Region) -> Operand:
    encoding = None
    if region.encoded is not None and region.encoded.encoding is not None:
        encoding = region.encoded.encoding.shifted(first)
    return Operand(first + region.file, region.dtype, region.offset, region.view, encoding)


def runs(segment: Segment) -> Iterator[Segment]:
    """The segment, cut where one of its operands goes on in another tensor."""
    while len(segment.operands) and (ends := [part.parts[0][0] for part in segment.operands if part.parts]):
        count = min(*ends, segment.count)
        heads = tuple(part.parts[0][1] if part.parts else part for part in segment.operands)
        yield segment._replace(count=count, operands=heads)
        if count == segment.count:
            return
        rest = tuple(part.at(count) for part in segment.operands)
        segment = segment._replace(first=segment.first + count, count=segment.count - count, operands=rest)
    yield segment


WHOLE_MEMORY = 4 << 30
"""Bytes, at most, of one tensor's arguments and results of functions of whole tensors (``functions.whole``), and of
what these work in."""


def _rows(piece: Piece, segment: Segment) -> tuple[int, ...]:
    """The shape of the rows of a tensor that a segment makes."""
    return (segment.count // math.prod(piece.shape[1:]), *piece.shape[1:]) if piece.shape else ()


def _whole_shape(piece: Piece, segment: Segment, program: Program) -> tuple[int, ...]:
    """The shape of a tensor whose formula reduces it. InputRefused for a part of a tensor."""
    if segment.elements:
        return segment.shape or (segment.elements,)
    if not segment.modules and (segment.first or segment.count != math.prod(piece.shape)):
        raise InputRefused(
            "this method needs the whole tensor, and only some of its channels are merged here",
            code="unusable_tensor",
            tensor=piece.name,
        ).of_tensor(piece.name)
    if program.whole_arrays:
        wide = any(part.dtype.name == "F64" for part in segment.operands)
        needed = program.whole_arrays * segment.count * (8 if wide else 4) + program.working(_rows(piece, segment))
        if needed > WHOLE_MEMORY:
            raise InputRefused(
                f"this method needs {needed >> 20} MB of memory for this tensor, more than {WHOLE_MEMORY >> 20} MB; "
                "leave it out, or use another method",
                code="unusable_tensor",
                tensor=piece.name,
            ).of_tensor(piece.name)
    return _rows(piece, segment)
