"""verify: is a file whole, finite, and what its own hashes say it is?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import encodings, engine
from ..backends import Options
from ..checkpoint import Checkpoint, open_checkpoint
from ..dtypes import U8
from ..errors import UsageError, printable
from ..file_hashes import Expected, FileHashes, expected, file_hashes
from ..layouts import detect
from ..layouts.completeness import completeness
from ..outline import COPIED, Outline, Piece, Region, operand, whole
from ..plan import Check
from ..program import identity
from ..report.warnings import in_json
from ..settings import Settings
from .position_ids import remarks


@dataclass(repr=False)
class Verification:
    """What ``verify`` found. ``nonfinite`` counts NaN and Inf per tensor; ``differs`` lists stored and expected hashes
    and CRC-32 that do not match, and what the file lacks of its family (then the command's exit code is 4).
    ``storages_checked`` counts those whose CRC-32 was compared, None where the format has none; ``matches`` has the
    expected digests that were found, and which hash each one is."""

    path: str
    format: str
    family: str
    tensors: int
    bytes: int
    nonfinite: dict[str, int]
    hashes: FileHashes | None = None
    storages_checked: int | None = None
    matches: dict[str, str] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # tensors that the file lacks of components of its family
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        verdict = "ok" if self.ok else f"{len(self.differs)} differ"
        return f"<Verification of {self.path}: {verdict}, {self.tensors} tensors, {len(self.nonfinite)} not finite>"

    @property
    def ok(self) -> bool:
        return not self.differs

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **in_json(self.notes), "ok": self.ok}


def verify(path: str | os.PathLike[str], settings: Settings, expect: Sequence[str] = ()) -> Verification:
    """``sdsurgery.verify``."""
    wanted = [expected(text) for text in ([expect] if isinstance(expect, str) else expect)]
    if wanted and not settings.hash:
        raise UsageError("expect= needs the hashes, which hash=False leaves out", code="conflict")
    with open_checkpoint(path, **settings.opening) as checkpoint:
        stored = len(checkpoint)
        encodings.decode(checkpoint)
        layout = detect(checkpoint.tensors).layout
        placed = _outline(checkpoint).unwritten()
        options = Options.of(settings)._replace(refuse_damaged=False)
        with placed.names_in_errors():
            outcome = engine.examine(placed.plan, placed.sources(), options, settings.callback)
        result = Verification(
            path=os.fspath(path),
            format=checkpoint.format,
            family=layout.name,
            tensors=stored,
            bytes=checkpoint.bytes,
            nonfinite=placed.by_name(outcome.nonfinite),
            notes=[*checkpoint.notes, *remarks(checkpoint, layout)],
        )
        whole = completeness(checkpoint.tensors, layout)
        result.absent = list(whole.absent)
        result.differs += whole.lines()
        if checkpoint.records:
            result.storages_checked = len(placed.plan.checks)
        for check in outcome.damaged:
            result.differs.append(f"CRC-32 of {_owner(checkpoint, check)}: damaged")
        if settings.hash:
            result.hashes = file_hashes(checkpoint)
            _compare_hashes(checkpoint, result.hashes, wanted, result)
        return result


def _outline(checkpoint: Checkpoint) -> Outline:
    """Every float tensor evaluated in its own dtype; it is never written.

    Records with a CRC-32 that no single float tensor fills are read once more, whole.
    """
    pieces = []
    for name, info in checkpoint.tensors.items():
        if info.encoded is not None and info.encoded.encoding is None:
            continue
        if info.dtype.computable and info.elements:
            segments = whole(identity(), info.elements, (operand(0, info),))
            pieces.append(Piece(name, info.dtype, info.shape, COPIED, segments))
    parts = [(part, segment.count) for piece in pieces for segment in piece.segments for part in segment.operands]
    filled = {
        (part.file, part.offset, part.dtype.nbytes(count)) for part, count in parts if not (part.view or part.encoded)
    }
    for record in checkpoint.records:
        if record.crc32 is not None and (record.file, record.offset, record.nbytes) not in filled:
            segments = whole(None, record.nbytes, (Region(0, U8, record.offset, file=record.file),))
            pieces.append(Piece(f"(storage at byte {record.offset})", U8, (record.nbytes,), COPIED, segments))
    return Outline("verify", (checkpoint,), tuple(pieces))


def _owner(checkpoint: Checkpoint, check: Check) -> str:
    """The first tensor of a record, for the message."""
    end = check.offset + check.nbytes
    held = (info for info in checkpoint.tensors.values() if info.file == check.source and info.nbytes)
    name = next((info.name for info in held if check.offset <= info.offset < end), "")
    return f"tensor '{printable(name)}'" if name else f"the storage at byte {check.offset} (not of the state dict)"


def _compare_hashes(
    checkpoint: Checkpoint, hashes: FileHashes, wanted: Sequence[Expected], result: Verification
) -> None:
    """The hashes that the metadata state and the user expects, beside those of the file."""
    for each in wanted:
        found = each.found(hashes)
        if found is None:
            result.differs.append(each.missed(hashes))
        else:
            result.matches[each.text] = found
    metadata = checkpoint.metadata()
    for key in ("modelspec.hash_sha256", "sshs_model_hash") if hashes.body_sha256 else ():
        stored = metadata.get(key)
        if stored is not None and stored.strip().lower().removeprefix("0x") != hashes.body_sha256:
            result.differs.append(f"{key}: stored {stored[:80]}, computed {hashes.body_sha256}")
