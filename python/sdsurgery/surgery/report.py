"""The report of a writing verb: what it did, or what its plan would do."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..report.formula import formula, names_of
from ..report.warnings import Warned, in_json

if TYPE_CHECKING:
    from ..errors import SdsError
    from ..outline import PlacedOutline


@dataclass(repr=False)
class Report:
    """What a verb did, or (``dry_run``) would do."""

    verb: str
    output: str | None
    family: str
    inputs: list[str]
    counts: dict[str, int]  # tensors by action: merged, cast, copied, kept, added, dropped
    missing: dict[str, list[str]]  # per input: A's tensors that it lacks
    only_there: dict[str, list[str]]  # per input: tensors that A lacks and that were not added
    dropped: dict[str, int]  # reason -> tensors of A
    dropped_components: dict[str, dict[str, int]]  # component -> tensors and bytes of A that were dropped
    bytes_saved: int  # tensor data of A less that of the output
    bytes_read: int
    bytes_written: int
    recipe: dict[str, Any]
    formula: str = ""  # what the output is, in file names
    notes: list[str] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)  # tensor -> elements with NaN or Inf in an input
    overflow: dict[str, int] = field(default_factory=dict)  # tensor -> elements that did not fit
    how: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    hash_seconds: float | None = None
    sha256: list[str | None] = field(default_factory=list)  # of the inputs
    body_sha256: str | None = None  # of the output's tensor data
    output_sha256: str | None = None  # of the whole output, with hash="full"
    dry_run: bool = False
    refusal: SdsError | None = None  # of a dry run: why the run would be refused
    tensors: list[dict[str, Any]] = field(default_factory=list)  # of a dry run, and for a page: what becomes of each
    adapters: list[dict[str, Any]] = field(default_factory=list)  # what became of each adapter's modules and keys
    checked: dict[str, dict[str, float]] = field(default_factory=dict)  # of bake(check=True): by tensor

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items() if count)
        return f"<Report of {self.verb}: {self.output or 'no output'}, {self.bytes_written} bytes, {counts}>"

    @property
    def warnings(self) -> list[Warned]:
        """Those of the notes that warn, each with its ``code``."""
        return [note for note in self.notes if isinstance(note, Warned)]

    @property
    def hashes(self) -> dict[str, Any]:
        """Those of the inputs, in their order, and of the output, under the names by which sites and UIs know them;
        None for one that was not computed."""
        from ..hashing import autov2, autov3

        digests = [*self.sha256, *([None] * (len(self.inputs) - len(self.sha256)))]
        whole, body = self.output_sha256, self.body_sha256
        return {
            "inputs": [
                {"path": path, "sha256": digest, "autov2": digest and autov2(digest)}
                for path, digest in zip(self.inputs, digests, strict=False)
            ],
            "output": {
                "path": self.output, "sha256": whole, "autov2": whole and autov2(whole),
                "body_sha256": body, "autov3": body and autov3(body),
            },
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        refusal = self.refusal and self.refusal.to_dict()
        return {**asdict(self), "hashes": self.hashes, **in_json(self.notes), "refusal": refusal}


def describe(
    placed: PlacedOutline, out: str | os.PathLike[str] | None, recipe: dict[str, Any], *, dry_run: bool
) -> Report:
    """What the plan will do; what only a run can find out is left empty."""
    outline, plan = placed.outline, placed.plan
    paths = [checkpoint.path for checkpoint in outline.checkpoints()]
    missing: dict[str, dict[str, None]] = {}  # sets that keep their order: one file may be two of the inputs
    for source, name in outline.missing:
        missing.setdefault(paths[source], {})[name] = None
    only_there: dict[str, dict[str, None]] = {}
    dropped: dict[str, int] = {}
    for item in outline.dropped:
        if item.source > 0:
            only_there.setdefault(paths[item.source], {})[item.name] = None
        else:
            dropped[item.reason] = dropped.get(item.reason, 0) + 1
    components, saved = _losses(placed)
    counts = outline.counts()
    counts["dropped"] = sum(dropped.values())
    return Report(
        verb=outline.verb,
        output=os.fspath(out) if out else None,
        family=outline.family,
        inputs=paths,
        counts=counts,
        missing={path: list(names) for path, names in missing.items()},
        only_there={path: list(names) for path, names in only_there.items()},
        dropped=dropped,
        dropped_components=components,
        bytes_saved=saved,
        bytes_read=plan.bytes_to_read(),
        bytes_written=plan.size,
        recipe=recipe,
        formula=formula(outline.verb, recipe, names_of(paths)),
        notes=list(outline.notes),
        dry_run=dry_run,
    )


def _losses(placed: PlacedOutline) -> tuple[dict[str, dict[str, int]], int]:
    """A's dropped tensors and bytes by component, and the bytes of tensor data that the output has less than A."""
    from ..layouts import get as layout_named

    outline, plan = placed.outline, placed.plan
    layout, first = layout_named(outline.family), outline.checkpoints()[0]
    components: dict[str, dict[str, int]] = {}
    for item in outline.dropped:
        if item.source == 0:
            row = components.setdefault(layout.component(item.name), {"tensors": 0, "bytes": 0})
            row["tensors"] += 1
            info = first.tensors.get(item.name)  # None for one that cannot be read
            row["bytes"] += info.nbytes if info else 0
    before = sum(info.nbytes for info in first.tensors.values())
    return components, before - (plan.size - plan.data_start)
