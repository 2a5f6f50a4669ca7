"""bake: adapters into a checkpoint. What a UI computes each time that it loads them, once, rounded once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from ..adapters.apply import Change, Effects, Strength, effects
from ..adapters.apply import Checkpoint as Adapted
from ..adapters.blocks import parse
from ..adapters.facts import training_facts
from ..adapters.lora import RESULT, Lora
from ..adapters.names import UNET, Place
from ..adapters.read import Adapter, label, open_adapter
from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F16
from ..errors import InputRefused, UsageError, number_of, printable
from ..layouts import Layout, detect
from ..operands.modules import Module
from ..outline import BAKED, Dropped, Outline, Piece, Region, Segment, operand, require_computable
from ..program import Formula, identity
from ..report.warnings import warned
from ..settings import Settings
from .common import Input, close_all, open_input, planned, run_all, single_metadata, single_piece, title_of
from .outputs import require_free
from .report import Report
from .sweep import variants


@dataclass
class AdapterReport:
    """What became of an adapter: modules by component that were applied, ignored (by reason) and unmatched, and the
    number of keys of each."""

    path: str
    strength: float
    te: float
    kinds: dict[str, int]
    base: str
    applied: dict[str, int]
    ignored: dict[str, list[str]]
    unmatched: list[str]
    keys: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """``applied 722 modules, ignored 4 (bundled embeddings), unmatched 2: lora_te2_foo, …``"""
        text = f"{label(self.path)}: applied {number_of(sum(self.applied.values()), 'module')}"
        if self.applied:
            text += f" ({', '.join(f'{name} {count}' for name, count in self.applied.items())})"
        for reason, modules in self.ignored.items():
            text += f", ignored {len(modules)} ({reason})"
        if self.unmatched:
            shown = ", ".join(printable(name) for name in self.unmatched[:3])
            text += f", unmatched {len(self.unmatched)}: {shown}" + (", …" if len(self.unmatched) > 3 else "")
        return text


def bake(
    path: Input,
    loras: Sequence[Lora],
    settings: Settings,
    *,
    out: str | os.PathLike[str] | None = None,
    strict: bool = False,
    check: bool = False,
) -> Report:
    """``sdsurgery.bake``."""
    (one,) = variants(None, {}, out, [[lora] for lora in loras])
    (report,) = _bake(path, [(one.out, one.loras)], settings, strict=strict, check=check)
    return report


def bake_all(
    inputs: Sequence[Input], loras: Sequence[Sequence[Lora]], settings: Settings, *,
    out: str | os.PathLike[str] | None,
) -> list[Report]:  # fmt: skip
    """``sdsurgery.sweep("bake", …)``: each adapter at one or several strengths, from one reading of the inputs."""
    if len(inputs) != 1:
        raise UsageError(f"bake takes one checkpoint, not {len(inputs)}", code="wrong_inputs")
    return _bake(inputs[0], [(each.out, each.loras) for each in variants(None, {}, out, loras)], settings)


def _bake(
    path: Input,
    wanted: Sequence[tuple[str | os.PathLike[str] | None, tuple[Lora, ...]]],
    settings: Settings,
    *,
    strict: bool = False,
    check: bool = False,
) -> list[Report]:
    """Outputs with the same adapters, at other strengths."""
    if not wanted[0][1]:
        raise UsageError("bake needs at least one adapter (loras=[…])", code="wrong_inputs")
    for out, _ in wanted:
        require_free(out, settings)
    adapters: list[Adapter] = []
    checkpoint = open_input(path, settings)
    try:
        adapters += [open_adapter(each.path, **settings.opening) for each in wanted[0][1]]
        recipes: list[dict[str, Any]] = [{"method": "bake", "parameters": {}, **settings.recorded} for _ in wanted]
        plans = [
            plan_bake(checkpoint, loras, adapters, settings, recipe=recipe, title=title_of(out), strict=strict)
            for (out, loras), recipe in zip(wanted, recipes, strict=True)
        ]
        reports = run_all([outline for outline, *_ in plans], [out for out, _ in wanted], settings, recipes)
        for report, (_, found, changes) in zip(reports, plans, strict=True):
            report.adapters = [asdict(each) for each in found]
            report.notes[:0] = [each.line() for each in found]
            if check and report.output is not None and not settings.dry_run:
                from . import bake_check

                checked = bake_check.check(checkpoint, adapters, changes, report.output)
                report.checked = bake_check.as_json(checked)
                report.notes.append(bake_check.line(checked))
        return reports
    finally:
        close_all([checkpoint, *(each.checkpoint for each in adapters)])


def plan_bake(
    checkpoint: Checkpoint,
    loras: Sequence[Lora],
    adapters: Sequence[Adapter],
    settings: Settings,
    *,
    recipe: dict[str, Any],
    title: str,
    strict: bool = False,
) -> tuple[Outline, list[AdapterReport], dict[str, list[Change]]]:
    """Decide what becomes of every tensor; reads headers and alphas only. The adapters are inputs 1, 2, … of the
    outline; ``recipe`` is completed with what is known of them. Also gives the report of each, and what they change."""
    layout = detect(checkpoint.tensors).layout
    tensors = {name: info for name, info in checkpoint.tensors.items() if not layout.is_ema(name)}
    found = [
        applied(adapter, number, checkpoint.tensors, layout, lora=lora, path=checkpoint.path)
        for number, (lora, adapter) in enumerate(zip(loras, adapters, strict=True), 1)
    ]
    reports = [described(*each) for each in zip(loras, adapters, found, strict=True)]
    for report in reports:
        if strict and report.unmatched:
            raise InputRefused(f"{report.line()} (strict=True)", code="extra_tensors", path=report.path)
    recipe["parameters"] = {
        "loras": [
            {**lora.to_json(lora.name), **{key: value for key, value in report.facts.items() if key == "trigger_words"}}
            for lora, report in zip(loras, reports, strict=True)
        ]
    }
    changes = by_tensor(found)
    pieces = []
    for name, info in tensors.items():
        if name in changes:
            pieces.append(baked(info, changes[name], settings))
        else:
            pieces.append(single_piece(layout, settings, info))
    dropped = [
        Dropped(0, name, "EMA weights (they belong to the unbaked model)") for name in checkpoint.tensors
        if name not in tensors
    ]  # fmt: skip
    notes = [*checkpoint.notes]
    for each in zip(loras, adapters, found, strict=True):
        notes += notes_of(*each)
    return planned(
        "bake", [checkpoint, *(each.checkpoint for each in adapters)], pieces,
        single_metadata(checkpoint, layout, recipe, title, [each.checkpoint for each in adapters]),
        settings=settings, layout=layout, notes=notes, dropped=dropped, keep_order=True,
    ), reports, changes  # fmt: skip


def applied(
    adapter: Adapter, number: int, tensors: Mapping[str, TensorInfo], layout: Layout, *, lora: Lora, path: str
) -> Effects:
    """What the adapter, input ``number``, does to the checkpoint at ``path`` at the strengths of ``lora``. InputRefused
    as ``adapters.apply.effects``, and for a family whose modules are not known."""
    try:
        return effects(adapter, number, Adapted.of(layout, tensors), strengths(lora, layout))
    except ValueError as error:
        raise InputRefused(
            f"{printable(path)}: adapters are applied to Stable Diffusion 1, 2 and XL; {error}",
            code="family",
            path=path,
        ) from None


def strengths(lora: Lora, layout: Layout) -> Strength:
    """How much of each module is applied."""
    weights = parse(lora.blocks, layout, lora.others) if lora.blocks else None
    te = lora.strength if lora.te is None else lora.te

    def of(place: Place, module: str) -> float:
        own = lora.strength if place.component == UNET else te
        return own if weights is None else own * weights.of(place.block)

    return of


def by_tensor(found: Sequence[Effects]) -> dict[str, list[Change]]:
    """The changes of all adapters, in their order."""
    changes: dict[str, list[Change]] = {}
    for each in found:
        for name, own in each.changes.items():
            changes.setdefault(name, []).extend(own)
    return changes


def baked(info: TensorInfo, changes: Sequence[Change], settings: Settings) -> Piece:
    """The tensor with all its changes, rounded once: to its own dtype, or fp16 where it was encoded. Rows that none of
    them touches are copied."""
    require_computable(info)
    dtype = settings.dtype_of(info.shape) or (info.dtype if info.encoded is None else F16)
    copied = dtype is info.dtype and not settings.watched and info.encoded is None
    whole = Segment(None if copied else identity(), 0, info.elements, (operand(0, info),))
    return changed(Piece(info.name, dtype, info.shape, BAKED, (whole,)), [(RESULT, change) for change in changes])


def changed(piece: Piece, wanted: Sequence[tuple[int, Change]]) -> Piece:
    """A piece of one segment after the changes, each of the operand at a place or of the ``RESULT``. The segment is cut
    into the rows that they touch, unless its formula needs the whole tensor."""
    (whole,) = piece.segments
    formula = whole.formula or identity()
    assert isinstance(formula, Formula)
    rows = piece.shape[0] if piece.shape else 1
    row = math.prod(piece.shape[1:])
    parts = sorted({(change.first, change.count) for _, change in wanted})
    apart = all(first + count <= after for (first, count), (after, _) in pairwise(parts))
    if formula.program.in_stages or not apart:
        return piece._replace(segments=(_changed(whole, formula, wanted, 0),))
    segments, at = [], 0
    for first, count in [*parts, (rows, 0)]:
        if first > at:
            segments.append(_rows_of(whole, at * row, (first - at) * row))
        if count:
            own = [(place, change) for place, change in wanted if (change.first, change.count) == (first, count)]
            segments.append(_changed(_rows_of(whole, first * row, count * row), formula, own, first))
        at = first + count
    return piece._replace(segments=tuple(segments))


def _rows_of(whole: Segment, first: int, count: int) -> Segment:
    return whole._replace(first=first, count=count, operands=tuple(part.at(first) for part in whole.operands))


def _changed(segment: Segment, formula: Formula, wanted: Sequence[tuple[int, Change]], first_row: int) -> Segment:
    modules: list[Module] = []
    factors: list[tuple[Region, int]] = []
    for place, change in wanted:
        own = tuple((name, len(factors) + at, shape) for name, at, shape in change.module.factors)
        modules.append(change.module._replace(factors=own, input=place, first=change.first - first_row))
        factors += change.factors
    return segment._replace(formula=formula, modules=tuple(modules), factors=tuple(factors))


def described(lora: Lora, adapter: Adapter, found: Effects) -> AdapterReport:
    """The adapter's part of the report."""
    te = lora.strength if lora.te is None else lora.te
    return AdapterReport(
        adapter.path, lora.strength, te, adapter.kinds(), adapter.base, found.components, found.ignored,
        found.unmatched, found.keys, training_facts(adapter.checkpoint.metadata()),
    )  # fmt: skip


def notes_of(lora: Lora, adapter: Adapter, found: Effects) -> list[str]:
    """What the adapter's file and its modules have to be said of."""
    name = label(adapter.path)
    notes = [f"{name}: {text}" for text in (*adapter.checkpoint.notes, *found.notes)]
    if not found.applied:
        notes.append(warned("no_effect", name=name))
    if lora.strength < 0 or (lora.te or 0) < 0:
        notes.append(
            f"{name}: a negative strength takes the adapter out again, to within the rounding of the weights; for "
            "kinds that multiply (DoRA, OFT, BOFT, (IA)³, GLoRA) it is the opposite change, not the way back"
        )
    return notes
