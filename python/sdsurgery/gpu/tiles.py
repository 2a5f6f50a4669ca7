"""A Plan's jobs cut into tiles: stretches of the output file that fit a pair of buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..plan import Job, Plan, Reduction
from ..program import INPUT, Program

ALIGNMENT = 16  # bytes: of operands in the input buffer; the output lies in its buffer as in the file, modulo this
CHUNK = 1 << 18  # elements of a reduction that are added up by themselves (csrc/reduce.h)
UNLIMITED = 1 << 62
_PAGE = 4096


@dataclass(frozen=True)
class Part:
    """A stretch of one job: ``count`` elements (bytes of a copy) from element ``first`` on. ``out`` and ``ins`` are
    byte offsets in the tile's output and input buffers; a copy has no ``ins``: it is read into the output buffer."""

    job: int
    first: int
    count: int
    out: int
    ins: tuple[int, ...]


@dataclass
class Tile:
    """Output bytes ``start`` to ``end`` of the file. The output buffer's first byte is the file's byte ``base``."""

    start: int
    end: int
    in_bytes: int = 0
    parts: list[Part] = field(default_factory=list)

    @property
    def base(self) -> int:
        return self.start - self.start % ALIGNMENT


def is_reduced(job: Job, plan: Plan) -> bool:
    """Whether all that is wanted of a job is what it finds of whole tensors: nothing is made of that."""
    if job.program is None:
        return False
    program = plan.programs[job.program]
    if not isinstance(program, Program):
        return isinstance(program, Reduction)
    return job.read > 0 and not program.steps and program.result[0] == INPUT


def ratio(plan: Plan) -> float:
    """The most input bytes that a formula reads for one output byte."""
    return max(
        (
            sum(operand.dtype.itemsize for operand in job.operands) / job.dtype.itemsize
            for job in plan.jobs
            if job.program is not None and not is_reduced(job, plan)
        ),
        default=0.0,
    )


def tiles(plan: Plan, out_limit: int, in_limit: int) -> Iterator[Tile]:
    """Tiles in the order of the file, none needing more than so many bytes of either buffer. A job is split where it
    does not fit, at a page of the file where that can be."""
    tile: Tile | None = None
    for index, job in enumerate(plan.jobs):
        reduced = is_reduced(job, plan)  # makes no output, or one element
        total = job.nbytes if job.program is None else job.elements if reduced else job.count
        unit = 1 if job.program is None else job.dtype.itemsize
        done = 0
        while done < total:
            at = job.offset + (0 if reduced and job.read else done * unit)
            if tile is None:
                tile = Tile(at, at)
            if reduced:
                count = _fitting(job, tile, at, total - done, (UNLIMITED, in_limit))
                count -= 0 if count == total - done else count % CHUNK
            else:
                count = _fitting(job, tile, at, total - done, (out_limit, in_limit))
            if count == 0:
                if not tile.parts:
                    raise ValueError("the buffers are too small for a single element")
                yield tile
                tile = None
                continue
            tile.parts.append(Part(index, done, count, at - tile.base, _place(job, tile, count)))
            done += count
            tile.end = job.offset + job.nbytes * (done == total) if reduced and job.read else at + count * unit
    if tile is not None:
        yield tile


def _fitting(job: Job, tile: Tile, at: int, left: int, limits: tuple[int, int]) -> int:
    """How many of the job's last ``left`` elements, which start at the file's byte ``at``, fit into the tile."""
    out_limit, in_limit = limits
    unit = 1 if job.program is None else job.dtype.itemsize
    count = min(left, (out_limit - (at - tile.base)) // unit)
    if job.program is not None:
        size = sum(operand.dtype.itemsize for operand in job.operands)
        room = in_limit - tile.in_bytes - ALIGNMENT * len(job.operands)
        count = min(count, room // size if size else count)
    if count <= 0:
        return 0
    past = (at + count * unit) % _PAGE
    if count < left and past % unit == 0 and past // unit < count:
        count -= past // unit
    return count


def _place(job: Job, tile: Tile, count: int) -> tuple[int, ...]:
    """Give the operands their places in the input buffer."""
    if job.program is None:
        return ()
    places = []
    for operand in job.operands:
        places.append(tile.in_bytes)
        nbytes = count * operand.dtype.itemsize
        tile.in_bytes += (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return tuple(places)
