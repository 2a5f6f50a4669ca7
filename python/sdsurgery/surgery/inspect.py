"""inspect: what a file is, from its header."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .. import encodings
from ..checkpoint import open_checkpoint
from ..layouts import aliases, detect
from ..layouts.completeness import completeness
from .ema import state as ema_state
from .position_ids import remarks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings import Reading


@dataclass
class Component:
    """Totals of one part of a model: tensors, elements, bytes, and how many tensors of each dtype."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)


@dataclass(repr=False)
class Inspection:
    """What ``inspect`` found. ``ema`` is full, partial, counters or none; ``recipe`` is the stored merge recipe."""

    path: str
    format: str
    bytes: int
    family: str
    title: str
    evidence: str | None
    components: dict[str, Component]
    total: Component
    ema: str
    metadata: dict[str, str]
    recipe: dict[str, Any] | None
    notes: list[str]
    absent: list[str] = field(default_factory=list)  # of components of which the file has other tensors

    def __repr__(self) -> str:
        return f"<Inspection of {self.path}: {self.format}, family {self.family}, {self.total.tensors} tensors>"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(path: str | os.PathLike[str], **opening: Unpack[Reading]) -> Inspection:
    """Family, components, EMA, dtypes, metadata, recipe and faulty position_ids; no other tensor is read.

    ``opening``: as ``open_checkpoint`` takes them.
    """
    from ..metadata import recipe_of

    with open_checkpoint(path, **opening) as checkpoint:
        found = detect(checkpoint.tensors)
        layout = found.layout
        components: dict[str, Component] = {}
        total = Component()
        for name, info in checkpoint.tensors.items():
            for part in (components.setdefault(layout.component(name), Component()), total):
                part.tensors += 1
                part.parameters += info.elements
                part.bytes += info.nbytes
                part.dtypes[info.dtype.name] = part.dtypes.get(info.dtype.name, 0) + 1
        weights = checkpoint.borrowed()
        encodings.decode(weights)
        whole = completeness({name: info.shape for name, info in weights.tensors.items()}, layout)
        evidence = None
        if found.evidence_key is not None:
            evidence = f"{found.evidence_key} {list(found.evidence_shape or ())}"
        return Inspection(
            path=os.fspath(path),
            format=checkpoint.format,
            bytes=checkpoint.bytes,
            family=layout.name,
            title=layout.title,
            evidence=evidence,
            components=components,
            total=total,
            ema=ema_state(checkpoint, layout),
            metadata=checkpoint.metadata(),
            recipe=recipe_of(checkpoint.metadata()),
            notes=[
                *checkpoint.notes,
                *found.notes,
                *(f"warning: {line}" for line in whole.lines()),
                *aliases.remarks(checkpoint.tensors, layout),
                *remarks(checkpoint, layout),
            ],
            absent=list(whole.absent),
        )
