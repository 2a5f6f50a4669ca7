"""The Outline: what becomes of each tensor, and why.

The surgery says it as Pieces: an output tensor's name, dtype and shape, the action, its operands and the reason. The
format that will be written places the outline once, which gives a Plan: from there on nothing knows a tensor's name.
Merge, cast, EMA extraction, pruning and component swaps differ only in their pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .dtypes import DType
from .errors import InputRefused, SdsError, printable
from .metadata import Metadata, placeholder_hashes
from .operands.modules import Module
from .operands.view import View
from .placing import aliases_of, checks_of, files_of, jobs_of
from .plan import Fill, Plan, Reduction
from .program import Formula, identity
from .structure import NESTED, Structure

if TYPE_CHECKING:
    from ._native import Source
    from .checkpoint import Checkpoint, TensorInfo
    from .formats import Placed, Writer
    from .operands.encoding import Encoded

Value = TypeVar("Value")

# What becomes of a tensor.
MERGED = "merged"  # the formula over all inputs
CAST = "cast"  # one input, rounded to another dtype
COPIED = "copied"  # one input, byte for byte
KEPT = "kept"  # A's tensor, because another input lacks it or the method leaves it
ADDED = "added"  # a tensor that only another input has
FILLED = "filled"  # generated data (test files)
COMPARED = "compared"  # two inputs, looked at
BAKED = "baked"  # one input, changed by adapters
EXTRACTED = "extracted"  # computed from two, as a part of an adapter

Work = Formula | Fill | Reduction | None
"""What makes a tensor's bytes; None: they are copied."""


class Region(NamedTuple):
    """Elements of an input where they are stored, in file number ``file`` of ``Outline.sources[source]``. The Plan,
    which knows only files, has Operands instead. ``parts``: (elements, where) of several tensors that follow each
    other; they are all that counts then."""

    source: int
    dtype: DType
    offset: int
    view: View | None = None
    file: int = 0
    encoded: Encoded | None = None
    parts: tuple[tuple[int, Region], ...] = ()

    def at(self, element: int) -> Region:
        """The same without its first elements."""
        for number, (count, part) in enumerate(self.parts):
            if element < count:
                rest = ((count - element, part.at(element)), *self.parts[number + 1 :])
                return self._replace(parts=rest) if len(rest) > 1 else rest[0][1]
            element -= count
        if self.encoded is not None and self.encoded.encoding is not None:
            return self._replace(encoded=self.encoded._replace(encoding=self.encoded.encoding.at(element)))
        if self.view is not None:
            return self._replace(view=self.view._replace(start=self.view.start + element))
        return self._replace(offset=self.offset + (self.dtype.nbytes(element) or 0))


class Segment(NamedTuple):
    """``count`` elements of a piece from element ``first`` on, made by one formula (None: copied). What it gives goes
    through the adapters' ``modules``, whose ``factors`` are (region, elements). ``elements``, where not 0: how many of
    each operand the formula's stages read, when it gives only what they find; ``shape`` is then that of the operands,
    where it matters. ``finish``: of all that, the codes or the scale (``program/scaling.py``) are wanted."""

    formula: Work
    first: int
    count: int  # type: ignore[assignment]
    operands: tuple[Region, ...]
    modules: tuple[Module, ...] = ()
    factors: tuple[tuple[Region, int], ...] = ()
    elements: int = 0
    shape: tuple[int, ...] = ()
    finish: str = ""


class Whole(Sequence[Segment]):
    """The usual case, as the only segment of a piece: one formula makes the whole tensor from whole tensors of inputs.

    A plan may hold hundreds of thousands, so the Segment and its Regions are made when they are asked for. ``sources``
    are the inputs' numbers, by default 0, 1, 2, …
    """

    __slots__ = ("formula", "infos", "sources")

    def __init__(self, formula: Work, infos: tuple[TensorInfo, ...], sources: Sequence[int] | None = None) -> None:
        self.formula, self.infos, self.sources = formula, infos, sources

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        return self._segments()[index]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._segments() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._segments())

    def __repr__(self) -> str:
        return repr(self._segments())

    def parts(self, first: Sequence[int]) -> tuple[tuple[int, DType], ...] | None:
        """File and dtype of each input, by the number of its source's ``first`` file. None unless all are stored
        plainly."""
        forms = [info.form for info in self.infos]
        if not all(form.plain for form in forms):
            return None
        sources = range(len(forms)) if self.sources is None else self.sources
        return tuple([(first[source] + form.file, form.dtype) for source, form in zip(sources, forms, strict=True)])

    def _segments(self) -> tuple[Segment]:
        sources = range(len(self.infos)) if self.sources is None else self.sources
        regions = tuple([_region(source, info) for source, info in zip(sources, self.infos, strict=True)])
        return (Segment(self.formula, 0, self.infos[0].elements, regions),)


class Piece(NamedTuple):
    """One output tensor: its header entry, what is done (``action``), from what (``segments``), and why (``note``).

    ``facts`` is what else a dry run shows of it, in JSON types: a merge's block and ratios.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    action: str
    segments: Sequence[Segment]
    note: str = ""
    facts: Mapping[str, Any] | None = None

    @property
    def whole(self) -> Whole | None:
        """Its segments where they are the usual one."""
        return self.segments if isinstance(self.segments, Whole) else None


class Dropped(NamedTuple):
    """An input tensor that is left out of the output. ``source`` indexes ``Outline.sources``."""

    source: int
    name: str
    reason: str


class Outline(NamedTuple):
    """Every tensor of the output and what it is made of. ``sources`` are the opened inputs (or bytes of its own).

    ``keep_order`` keeps the given order of the pieces when no tensor changes its dtype (so that a header-free hash of
    unchanged tensors stays what it was); else the format decides. ``hashed`` reserves room in the metadata for hashes
    that are known only at the end: the tensor data's and, with ``hash_inputs``, those of the input files.
    """

    verb: str
    sources: tuple[Checkpoint | bytes, ...]
    pieces: tuple[Piece, ...]
    metadata: Metadata = Metadata()
    hashed: bool = False
    hash_inputs: bool = True
    keep_order: bool = False
    dropped: tuple[Dropped, ...] = ()
    missing: tuple[tuple[int, str], ...] = ()  # (source, name): A's tensors that another input lacks
    notes: tuple[str, ...] = ()
    family: str = "unknown"
    structure: Structure = NESTED  # of a pickle

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

    def placed(self, writer: Writer) -> PlacedOutline:
        """The outline as a file of the writer's format."""
        inputs = self.checkpoints()
        stand_ins = zip(inputs, placeholder_hashes(len(inputs)), strict=True)
        known: Sequence[str | None] = [None if item.source.in_memory else text for item, text in stand_ins]
        if not (self.hashed and self.hash_inputs):
            known = (None,) * len(known)
        body = placeholder_hashes(1)[0] if self.hashed and writer.body_hashed else None
        pieces = self.pieces
        if writer.by_width and not (self.keep_order and all(piece.action == COPIED for piece in pieces)):
            pieces = tuple(sorted(pieces, key=lambda piece: -piece.dtype.bits))
        aliases = aliases_of(self.sources, pieces) if writer.shares else {}
        given = {"structure": self.structure} if writer.structured else {}
        entries = ((piece.name, piece.dtype, piece.shape) for piece in pieces)
        texts = self.metadata.texts(known, body, body if self.metadata.is_adapter else None)
        file = writer.place(list(entries), aliases, texts, **given)
        jobs, programs = jobs_of(pieces, file.offsets, aliases, self.sources)
        plan = Plan(
            files_of(self.sources), programs, jobs, file.data_start, file.size, file.sums, checks_of(self.sources, jobs)
        )
        return PlacedOutline(self, pieces, plan, file, body is not None)

    def unwritten(self) -> PlacedOutline:
        """The outline for a run that reads and writes nothing: the pieces one after the other, without a header."""
        offsets, size = [], 0
        for piece in self.pieces:
            size = (size + 7) // 8 * 8  # the engine wants outputs aligned to their elements
            offsets.append(size)
            size += sum(piece.dtype.nbytes(segment.count) or 0 for segment in piece.segments)
        jobs, programs = jobs_of(self.pieces, offsets, {}, self.sources)
        plan = Plan(files_of(self.sources), programs, jobs, 0, size, (), checks_of(self.sources, jobs))
        return PlacedOutline(self, self.pieces, plan, None, False)


class PlacedOutline(NamedTuple):
    """An outline and the plan that makes it, with the tensors' names and all of the file that is not tensor data.

    ``pieces`` are in file order; a job's ``tensor`` indexes them.
    """

    outline: Outline
    pieces: tuple[Piece, ...]
    plan: Plan
    file: Placed | None  # None: nothing is written
    body_hashed: bool  # whether the metadata hold the hash of the tensor data

    def sources(self) -> list[Source]:
        """The native sources, in the order of ``Plan.files``."""
        from . import _native

        inputs = self.outline.sources
        files = ([_native.Source.memory(item)] if isinstance(item, bytes) else item.files for item in inputs)
        return [file for each in files for file in each]

    def structure(
        self, input_hashes: Sequence[str | None], body_hash: str | None, sums: Sequence[int], window: str | None = None
    ) -> Iterable[tuple[int, bytes]]:
        """Every byte of the file that is not tensor data, as (offset, bytes), for the inputs' SHA-256 (None where
        unknown), the tensor data's, the CRC-32 of ``Plan.sums``, and the SHA-256 of the window that an adapter's
        metadata are about."""
        if self.file is None:
            return []
        if not self.outline.hashed:
            input_hashes, body_hash, window = (None,) * len(input_hashes), None, None
        return self.file.structure(self.outline.metadata.texts(input_hashes, body_hash, window), sums)

    def by_name(self, found: Mapping[int, Value]) -> dict[str, Value]:
        """What a run found, by tensors' names instead of numbers."""
        return {self.pieces[number].name: value for number, value in found.items()}

    @contextmanager
    def names_in_errors(self) -> Iterator[None]:
        """An error of one job leaves with the tensor's name in front."""
        try:
            yield
        except SdsError as error:
            if error.job is None:
                raise
            raise error.of_tensor(self.pieces[self.plan.jobs[error.job].tensor].name) from None


def whole(formula: Work, elements: int, operands: Sequence[Region]) -> tuple[Segment, ...]:
    """The usual case: one formula makes the whole tensor."""
    return (Segment(formula, 0, elements, tuple(operands)),)


def operand(source: int, info: TensorInfo) -> Region:
    """A whole input tensor as an operand. InputRefused for codes that cannot be decoded."""
    if info.encoded is not None:
        require_computable(info)
    return _region(source, info)


def _region(source: int, info: TensorInfo) -> Region:
    if info.strides is None and not info.parts:
        return Region(source, info.dtype, info.offset, None, info.file, info.encoded)
    view = None if info.strides is None else View(info.shape, info.strides)
    parts = tuple((part.elements, _region(source, part)) for part in info.parts)
    return Region(source, info.dtype, info.offset, view, info.file, info.encoded, parts)


def copied(source: int, info: TensorInfo, *, name: str | None = None, action: str = COPIED, note: str = "") -> Piece:
    """The input tensor unchanged, perhaps under another name. Of an encoded weight that is all that it is stored in
    (``as_stored``)."""
    segments = Whole(None, (info,), (source,))
    return Piece(name or info.name, info.dtype, info.shape, action, segments, note)


def rounded(
    source: int, info: TensorInfo, dtype: DType | None, *, name: str | None = None,
    action: str | None = None, note: str = "", watched: bool = False,
) -> Piece:  # fmt: skip
    """The input tensor in ``dtype`` (None: its own). Copied when nothing changes; refused when it can't be computed.

    An empty tensor is a marker and keeps its dtype. ``watched``: NaN and Inf must be noticed, which a copy of bytes
    does not; evaluating the identity gives the same bytes where there are none.
    """
    if dtype is None or (dtype is info.dtype and info.encoded is None) or info.elements == 0:
        if info.encoded is not None or not (watched and info.dtype.computable and info.elements):
            return copied(source, info, name=name, action=action or COPIED, note=note)
        dtype, action = info.dtype, action or COPIED
    require_computable(info)
    segments = Whole(identity(), (info,), (source,))
    return Piece(name or info.name, dtype, info.shape, action or CAST, segments, note)


def as_stored(pieces: Sequence[Piece]) -> tuple[list[Piece], dict[str, str]]:
    """The pieces, with every copy of an encoded weight as copies of the codes and scales that it is stored in; and the
    formats of those that were decoded instead, by name."""
    apart: list[Piece] = []
    decoded: dict[str, str] = {}
    for piece in pieces:
        region = next((part for each in piece.segments for part in each.operands if part.encoded is not None), None)
        if region is None:
            apart.append(piece)
        elif piece.segments[0].formula is None:
            apart += _stored_pieces(region, piece)
        else:
            assert region.encoded is not None
            decoded[piece.name] = region.encoded.format
            apart.append(piece)
    return apart, decoded


def _stored_pieces(region: Region, piece: Piece) -> list[Piece]:
    encoded = region.encoded
    assert encoded is not None
    layer = piece.name.removesuffix("weight").removesuffix(".")
    made = []
    for info in encoded.stored:
        name = info.name.removeprefix(encoded.layer).removeprefix(".")
        name = f"{layer}.{name}" if layer else name
        made.append(copied(region.source, info, name=name, action=piece.action, note=piece.note))
    return made


def require_computable(info: TensorInfo) -> None:
    """InputRefused unless a formula can be evaluated on the tensor."""
    if info.encoded is not None and info.encoded.encoding is None:
        raise InputRefused(
            f"tensor '{printable(info.name)}' is encoded ({printable(info.encoded.format)}) and cannot be decoded: "
            f"{info.encoded.reason}; decode it with the program that made the file, or leave it as it is "
            '(dtype="keep")',
            code="encoded",
            tensor=info.name,
            details={"format": info.encoded.format, "reason": info.encoded.reason},
        )
    if not info.dtype.computable:
        raise InputRefused(
            f"tensor '{printable(info.name)}' is {info.dtype.name}, which can only be copied; "
            'leave its dtype (dtype="keep"), or give a file with fp16 or fp32 weights',
            code="unusable_tensor",
            tensor=info.name,
            details={"dtype": info.dtype.name},
        )
