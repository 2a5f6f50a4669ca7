"""What all writing verbs share: the way from an Outline to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import encodings, engine
from ..backends import Options
from ..checkpoint import Checkpoint, open_checkpoint
from ..dtypes import F8_E4M3
from ..errors import Failure, RunFailed, UsageError, number_of, printable
from ..files import free_bytes, native_errors, open_source, target_path
from ..formats import writer_for
from ..layouts import kind_of
from ..layouts.names import is_position_ids
from ..metadata import Metadata, Parent, stated_architecture
from ..outline import COPIED, Outline, as_stored, copied, rounded
from ..plan import together
from ..report.warnings import shortened, warned
from ..settings import Settings
from .arrangement import arranged
from .outputs import named, refusal, refuse_space, remark, require_free
from .preflight import letter
from .report import Report, describe

if TYPE_CHECKING:
    from ..checkpoint import TensorInfo
    from ..layouts import Layout
    from ..outline import Dropped, Piece, PlacedOutline
    from ..plan import Plan

_WORTH_HASHING = 0.95
"""Share of the inputs that must be needed for their hashes to cost (almost) no further reading."""


Input = str | os.PathLike[str] | Checkpoint | Mapping[str, Any]
"""A file, an opened checkpoint (which stays open), or tensors by name."""


def open_input(given: Input, settings: Settings, *, selective: bool = False, name: str = "input") -> Checkpoint:
    """Open an input, under the family's own names if that is asked for. InputRefused when it holds a tensor that cannot
    be used, unless the verb is ``selective``: then it asks ``Checkpoint.require_usable`` for those that it needs.
    ``name`` is what messages call tensors in memory."""
    if isinstance(given, Checkpoint):
        checkpoint = given.borrowed()
    elif isinstance(given, Mapping):
        from ..interop.values import checkpoint_of

        checkpoint = checkpoint_of(given, name)
    else:
        checkpoint = open_checkpoint(given, **settings.opening)
    try:
        if not selective:
            checkpoint.require_usable()
        encodings.decode(checkpoint)
        if settings.fix_names:
            from .fix_names import modernise

            modernise(checkpoint)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def open_all(inputs: Sequence[Input], settings: Settings, *, selective: bool = False) -> list[Checkpoint]:
    """Open every input as ``open_input`` does; on an error the ones already open are closed."""
    opened: list[Checkpoint] = []
    try:
        for number, given in enumerate(inputs):
            opened.append(open_input(given, settings, selective=selective, name=f"input {letter(number)}"))
    except BaseException:
        close_all(opened)
        raise
    return opened


def close_all(checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        checkpoint.close()


def parent(checkpoint: Checkpoint, *, sha256: str | None = None) -> Parent:
    """What the output's metadata says about an input. Names are base names: a merge gives the same bytes everywhere."""
    from ..hashing import legacy_hash

    name = os.path.splitext(os.path.basename(checkpoint.path))[0]
    autov1 = None if checkpoint.source.in_memory else legacy_hash(checkpoint.source)
    return Parent(name, checkpoint.metadata(), autov1, sha256)


def single_input(
    verb: str,
    given: Input,
    out: str | os.PathLike[str] | None,
    settings: Settings,
    *,
    parameters: Mapping[str, Any],
    plan_of: Callable[[Checkpoint, dict[str, Any], str], Outline],
    selective: bool = False,
) -> Report:
    """Run a verb of one input: target and file checked, then plan and run.

    ``plan_of(checkpoint, recipe, title)`` makes the plan; ``selective`` as in ``open_input``.
    """
    require_free(out, settings)
    with open_input(given, settings, selective=selective) as checkpoint:
        recipe: dict[str, Any] = {
            "method": verb,
            "parameters": {name: value for name, value in parameters.items() if value not in (None, False, [], ())},
            **settings.recorded,
        }
        return run(plan_of(checkpoint, recipe, title_of(out)), out, settings, recipe)


def single_metadata(
    checkpoint: Checkpoint, layout: Layout, recipe: Mapping[str, Any], title: str, donors: Sequence[Checkpoint] = ()
) -> Metadata:
    """Metadata of a file made from one: what the input said stays, the recipe and the hashes are added.

    ``donors`` are further inputs, in the plan's order: the recipe names them, and nothing else is taken from them.
    """
    found = merged_metadata((checkpoint, *donors), layout, recipe, title)
    stated = stated_architecture(found.parents[:1])
    return found._replace(source=checkpoint.metadata(), kind=kind_of(layout, stated))


def merged_metadata(
    checkpoints: Sequence[Checkpoint], layout: Layout, recipe: Mapping[str, Any], title: str
) -> Metadata:
    """Metadata of a file made from several."""
    from .. import __version__

    parents = tuple(parent(checkpoint) for checkpoint in checkpoints)
    kind = kind_of(layout, stated_architecture(parents))
    return Metadata(None, parents, recipe, title, kind, __version__)


def single_piece(
    layout: Layout, settings: Settings, info: TensorInfo, *,
    source: int = 0, name: str | None = None, note: str = "",
) -> Piece:  # fmt: skip
    """One input tensor in the asked dtype, perhaps under another name; anything but a weight is copied exactly."""
    if layout.exact_copy(name or info.name):
        return copied(source, info, name=name, note=note or "copied exactly (not a weight)")
    if info.dtype.kind in ("int", "bool"):
        return copied(source, info, name=name, note=note or "integers keep their dtype")
    return rounded(source, info, settings.dtype_of(info.shape), name=name, note=note, watched=settings.watched)


def planned(
    verb: str, sources: Sequence[Any], pieces: Sequence[Piece], metadata: Metadata, *, settings: Settings,
    layout: Layout, notes: Sequence[str] = (), dropped: Sequence[Dropped] = (), frugal: bool = False,
    keep_order: bool = False, missing: tuple[tuple[int, str], ...] = (),
) -> Outline:  # fmt: skip
    """The outline with what the shared settings ask for.

    ``frugal``: dropped tensors are not to be read for a hash either, so the inputs' SHA-256 are left out unless the
    pieces need almost all of the inputs anyway. Only the header decides that.
    """
    notes = list(notes)
    inputs = [source for source in sources if isinstance(source, Checkpoint)]
    decoded: dict[str, str] = {}
    if any(each.encodings or each.orphans for each in inputs):
        pieces, metadata, decoded, stray = _encodings_settled(pieces, metadata, inputs)
        notes += stray
    if settings.scaled:
        from .scaled_fp8 import MARKER, require_model, scaled

        require_model(layout)
        pieces, sources = scaled(pieces, layout, len(sources)), [*sources, MARKER]
    notes += _decoded_notes(decoded, pieces, settings)
    if settings.fix_clip:
        from .position_ids import repaired

        pieces, sources, misplaced, repairs = repaired(pieces, sources, layout)
        dropped, notes = [*dropped, *misplaced], notes + repairs
    elif ids := [piece for piece in pieces if is_position_ids(piece.name)]:
        from .position_ids import warnings

        notes += warnings(ids, sources)
    hash_inputs = not frugal or _needed_share(pieces, sources) >= _WORTH_HASHING
    if settings.hash and not hash_inputs:
        notes.append("the input's SHA-256 was left out: the dropped tensors would have to be read for it")
    return Outline(
        verb, tuple(sources), tuple(pieces), metadata, hashed=bool(settings.hash), hash_inputs=hash_inputs,
        notes=tuple(notes), dropped=tuple(dropped), family=layout.name, keep_order=keep_order, missing=missing,
    )  # fmt: skip


def _decoded_notes(decoded: Mapping[str, str], pieces: Sequence[Piece], settings: Settings) -> list[str]:
    """What became of the encoded weights that were computed with; ``decoded`` is their formats by name."""
    counts: dict[tuple[str, str], int] = {}
    for piece in pieces:
        if piece.name in decoded:
            scaled = "scaled " if settings.scaled and piece.dtype is F8_E4M3 else ""
            kind = (decoded[piece.name], scaled + piece.dtype.name)
            counts[kind] = counts.get(kind, 0) + 1
    return [
        f"{number_of(count, 'encoded weight')} ({printable(format)}) decoded and written as {dtype}"
        for (format, dtype), count in counts.items()
    ]


def _encodings_settled(
    pieces: Sequence[Piece], metadata: Metadata, inputs: Sequence[Checkpoint]
) -> tuple[list[Piece], Metadata, dict[str, str], list[str]]:
    """Pieces and metadata of an output with encoded inputs, the formats of the weights that were decoded by name, and
    warnings. What marks encoded layers goes when weights were decoded: a program that finds a marker rounds the plain
    weights once more."""
    apart, decoded = as_stored(pieces)
    notes: list[str] = []
    computed = {piece.name.rpartition(".")[0] for piece in apart if piece.action != COPIED}
    orphans = set().union(*(each.orphans for each in inputs))
    away = {name for name in orphans if name.rpartition(".")[0] in computed}
    if away:
        notes.append(warned("stray_scales", count=len(away), name=printable(min(away))))
    if not decoded and not away:
        return apart, metadata, decoded, notes
    kept = [piece for piece in apart if piece.name.rpartition(".")[2] != encodings.MARKER and piece.name not in away]
    if metadata.source is not None:
        source = {key: text for key, text in metadata.source.items() if key != encodings.METADATA}
        metadata = metadata._replace(source=source)
    return kept, metadata, decoded, notes


def _needed_share(pieces: Sequence[Piece], sources: Sequence[Any]) -> float:
    """Share of the input files' bytes that the pieces are made of."""
    sizes = [None if isinstance(source, bytes) else source.bytes for source in sources]
    needed = sum(
        operand.dtype.nbytes(segment.count) or 0
        for piece in pieces for segment in piece.segments for operand in segment.operands
        if sizes[operand.source] is not None
    )  # fmt: skip
    return needed / max(1, sum(size for size in sizes if size is not None))


def title_of(out: str | os.PathLike[str] | None) -> str:
    """The model's title: the output file's name without its suffix."""
    return os.path.splitext(os.path.basename(named(out)))[0] if out else "untitled"


def run(outline: Outline, out: str | os.PathLike[str] | None, settings: Settings, recipe: dict[str, Any]) -> Report:
    """Write the outline's file, or only describe it when ``settings.dry_run``."""
    return run_all([outline], [out], settings, [recipe])[0]


def run_all(
    outlines: Sequence[Outline],
    outs: Sequence[str | os.PathLike[str] | None],
    settings: Settings,
    recipes: Sequence[dict[str, Any]],
) -> list[Report]:
    """Write the files of outlines of the same inputs, in one reading of these where they differ in numbers only; else
    one after the other. ``details["finished"]`` of an error lists those that were finished before it."""
    remarks = [None if out is None else remark(out) for out in outs]
    outs = [None if out is None else named(out) for out in outs]
    outlines = [_described(outline, settings) for outline in outlines]
    outlines = [arranged(outline, out, title_of(out)) for outline, out in zip(outlines, outs, strict=True)]
    placed = [outline.placed(writer_for(out)) for outline, out in zip(outlines, outs, strict=True)]
    reports = []
    for each, out, recipe, text in zip(placed, outs, recipes, remarks, strict=True):
        reports.append(describe(each, out, recipe, dry_run=settings.dry_run))
        reports[-1].notes += [] if text is None else [text]
    if settings.dry_run:
        for each, out, report in zip(placed, outs, reports, strict=True):
            with each.names_in_errors():
                _preview(each, out, settings, report)
        refuse_space(reports)
        return reports
    if any(out is None for out in outs):
        raise UsageError("no output given (out=FILE)", code="no_output")
    targets = [target_path(out, settings.overwrite) for out in outs if out is not None]
    plan = together([each.plan for each in placed]) if engine.writes_versions(settings.backend) else None
    if plan is not None:
        _write(plan, placed, targets, settings, reports)
        return reports
    finished: list[str] = []
    for each, target, report in zip(placed, targets, reports, strict=True):
        try:
            _write(each.plan, [each], [target], settings, [report])
        except Failure as error:
            raise engine.with_finished(error, finished, targets) from None
        finished.append(target)
    return reports


def _described(outline: Outline, settings: Settings) -> Outline:
    """The outline with what the user wants its metadata to say, and a note of what of A's they do not say."""
    metadata = outline.metadata._replace(
        given=settings.given_metadata,
        with_recipe=settings.store_recipe,
        with_names=settings.store_names,
    )
    notes = outline.notes
    left = metadata.left_out()
    if left:
        shown = ", ".join(printable(key, 60) for key in left[:6]) + (
            f", … ({len(left)} in all)" if len(left) > 6 else ""
        )
        notes = (*notes, f"metadata of A that was left out, since it is not true of a merge: {shown}")
    return outline._replace(metadata=metadata, notes=notes)


def _preview(placed: PlacedOutline, out: str | os.PathLike[str] | None, settings: Settings, report: Report) -> None:
    """What a dry run says besides: how it would run, and every tensor."""
    report.how = engine.preview(placed.plan, placed.sources(), settings.backend, Options.of(settings))
    folder = os.path.dirname(os.path.realpath(out)) if out else os.getcwd()
    if not os.path.isdir(folder):
        raise RunFailed(f"{printable(folder)}: the output's folder does not exist", code="not_found")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunFailed(f"{printable(folder)}: no permission to create a file in this folder", code="permission")
    report.how["free_bytes"] = free_bytes(folder)
    report.refusal = None if out is None else refusal(out, settings.overwrite)
    report.tensors = _tensors(placed)


def _tensors(placed: PlacedOutline) -> list[dict[str, Any]]:
    """Every tensor, and what becomes of it."""
    return [
        {
            "name": p.name,
            "dtype": p.dtype.name,
            "shape": list(p.shape),
            "action": p.action,
            "note": p.note,
            **(p.facts or {}),
        }
        for p in placed.pieces
    ]


def _write(
    plan: Plan, placed: Sequence[PlacedOutline], targets: Sequence[str], settings: Settings, reports: Sequence[Report]
) -> None:
    """Run the plan, and put what it met into the reports, one for each output."""
    outline = placed[0].outline
    files = [checkpoint.source for checkpoint in outline.checkpoints()]
    hash_inputs = outline.hashed and outline.hash_inputs
    with placed[0].names_in_errors():
        outcomes = engine.execute(
            plan,
            placed[0].sources(),
            [
                engine.Target(path, _structure(each, len(files)), each.body_hashed, _window(each))
                for path, each in zip(targets, placed, strict=True)
            ],
            backend=settings.backend,
            options=Options.of(settings),
            replace=settings.overwrite,
            sync=settings.sync,
            hash_files=files if hash_inputs else (),
            progress=settings.callback,
        )
    for each, target, outcome, report in zip(placed, targets, outcomes, reports, strict=True):
        report.nonfinite, report.overflow = each.by_name(outcome.nonfinite), each.by_name(outcome.overflow)
        report.how = outcome.how
        report.notes += [*outcome.notes, *_odd_values(report)]
        report.seconds, report.hash_seconds = outcome.seconds, outcome.hash_seconds
        report.sha256 = list(outcome.input_hashes) if hash_inputs else [None] * len(files)
        report.body_sha256 = outcome.body_hash
        if settings.html is not None:
            report.tensors = _tensors(each)
        if settings.hash == "full":
            from ..hashing import file_sha256

            with native_errors():
                report.output_sha256 = file_sha256(open_source(target))


def _odd_values(report: Report) -> list[str]:
    """Warnings of values that were met."""
    return [
        warned(code, count=sum(found.values()), tensors=number_of(len(found), "tensor"), names=shortened(list(found)))
        for code, found in (("nonfinite", report.nonfinite), ("overflow", report.overflow))
        if found
    ]


def _window(placed: PlacedOutline) -> tuple[int, int] | None:
    if not (placed.body_hashed and placed.outline.metadata.is_adapter):
        return None
    from ..adapters.writing import legacy_window

    return legacy_window(placed)


def _structure(placed: PlacedOutline, inputs: int) -> engine.Structure:
    return lambda hashes, body, sums, window: placed.structure(hashes or (None,) * inputs, body, sums, window)
