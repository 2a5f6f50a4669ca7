"""inspect: what a file is, from its header."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .. import encodings
from ..adapters.read import adapter_of, file_of, read_adapter
from ..checkpoint import Checkpoint, TensorInfo, open_checkpoint
from ..errors import UsageError, number_of, printable
from ..layouts import aliases, detect
from ..layouts.completeness import completeness
from ..report.warnings import in_json, warned
from .adapter_anatomy import Anatomy, anatomy
from .ancestry import Generation, ancestry
from .ema import state as ema_state
from .position_ids import remarks
from .prune import patterns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..layouts import Layout
    from ..settings import Progress, Reading


@dataclass
class Component:
    """Totals of one part of a model: tensors, elements, bytes, and how many tensors of each dtype."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorRow:
    """A tensor as the file holds it."""

    name: str
    dtype: str
    shape: list[int]
    component: str
    bytes: int


@dataclass(repr=False)
class Inspection:
    """What ``inspect`` found. ``ema`` is full, partial, counters or none; ``encodings`` counts encoded
    weights by format; ``recipe`` is the stored merge recipe.

    ``hashes`` by the names of ``FileHashes``: those that the file states of its tensor data and that an earlier run
    remembers of the file; all of them, computed, where that was asked for. ``tensors`` are those asked for."""

    path: str
    format: str
    bytes: int
    family: str
    title: str
    evidence: str | None
    components: dict[str, Component]
    total: Component
    ema: str
    encodings: dict[str, int]
    metadata: dict[str, str]
    recipe: dict[str, Any] | None
    notes: list[str]
    absent: list[str] = field(default_factory=list)  # of components of which the file has other tensors
    adapter: Anatomy | None = None  # of LoRA, LyCORIS and the like
    hashes: dict[str, str] = field(default_factory=dict)
    tensors: list[TensorRow] = field(default_factory=list)
    ancestry: list[Generation] = field(default_factory=list)  # the youngest first

    def __repr__(self) -> str:
        return f"<Inspection of {self.path}: {self.format}, family {self.family}, {self.total.tensors} tensors>"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **in_json(self.notes)}


def inspect(
    path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, *, keys: str | None = None,
    hashes: bool = False, progress: Progress | None = None, **opening: Unpack[Reading],
) -> Inspection:  # fmt: skip
    """``sdsurgery.inspect``. ``opening``: as ``open_checkpoint`` takes them."""
    from ..metadata import recipe_of

    wanted = patterns("keys=", keys)
    file = file_of(path)
    with open_checkpoint(file, **opening) as checkpoint:
        adapter = read_adapter(checkpoint) if file != os.fspath(path) else adapter_of(checkpoint)
        if adapter is None and base is not None:
            raise UsageError(f"{printable(file)} is not an adapter, so base= does not apply", code="conflict")
        parts = None if adapter is None else anatomy(adapter, base, **opening)
        stored = checkpoint.tensors
        encodings.decode(checkpoint)  # a family is recognised by the weights' own shapes
        found = detect(checkpoint.tensors)
        layout = found.layout
        components: dict[str, Component] = {}
        total = Component()
        for name, info in stored.items():
            for part in (components.setdefault(layout.component(name), Component()), total):
                part.tensors += 1
                part.parameters += info.elements
                part.bytes += info.nbytes
                part.dtypes[info.dtype.name] = part.dtypes.get(info.dtype.name, 0) + 1
        kinds = checkpoint.encodings
        whole = completeness(checkpoint.tensors, layout)
        evidence = None
        if found.evidence_key is not None:
            evidence = f"{found.evidence_key} {list(found.evidence_shape or ())}"
        return Inspection(
            path=file,
            format=checkpoint.format,
            bytes=checkpoint.bytes,
            family=layout.name,
            title=layout.title,
            evidence=evidence,
            components=components,
            total=total,
            ema=ema_state(checkpoint, layout),
            encodings=dict(kinds),
            metadata=checkpoint.metadata(),
            recipe=recipe_of(checkpoint.metadata()),
            notes=[
                *checkpoint.notes,
                *(f"{number_of(count, 'weight')} encoded: {printable(format)}" for format, count in kinds.items()),
                *_undecodable(checkpoint),
                *found.notes,
                *(warned("incomplete", what=line) for line in whole.lines()),
                *aliases.remarks(checkpoint.tensors, layout),
                *remarks(checkpoint, layout),
            ],
            absent=list(whole.absent),
            adapter=parts,
            hashes=_computed(checkpoint, progress) if hashes else _known(checkpoint),
            ancestry=ancestry(checkpoint.metadata(), file),
            tensors=[row for info in stored.values() for row in _rows(info, layout, wanted)],
        )


def _rows(info: TensorInfo, layout: Layout, wanted: Sequence[re.Pattern[str]]) -> list[TensorRow]:
    if not any(pattern.search(info.name) for pattern in wanted):
        return []
    return [TensorRow(info.name, info.dtype.name, list(info.shape), layout.component(info.name), info.nbytes)]


def _computed(checkpoint: Checkpoint, progress: Progress | None) -> dict[str, str]:
    from ..file_hashes import file_hashes

    return {name: digits for name, digits in file_hashes(checkpoint, progress).to_dict().items() if digits}


def _known(checkpoint: Checkpoint) -> dict[str, str]:
    """What is known of the file's hashes without reading it."""
    from ..hashing import autov2, autov3, recalled
    from ..metadata import stated_body_hash

    whole, body = recalled(checkpoint.source), stated_body_hash(checkpoint.metadata())
    found = {"sha256": whole, "autov2": autov2(whole)} if whole else {}
    return found | ({"body_sha256": body, "autov3": autov3(body)} if body else {})


def _undecodable(checkpoint: Checkpoint) -> list[str]:
    """One line for the weights of each format that cannot be decoded."""
    reasons: dict[str, str] = {}
    for name, info in checkpoint.tensors.items():
        if info.encoded is not None and info.encoded.encoding is None:
            line = f"'{printable(name)}' ({printable(info.encoded.format)}) cannot be decoded: {info.encoded.reason}"
            reasons.setdefault(info.encoded.format, line)
    return list(reasons.values())
