"""convert: the same tensors in another file format; what is beside them becomes metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import InputRefused, RunFailed, SdsError, UsageError, number_of, printable
from ..formats import writer_for, writers
from ..layouts import detect
from ..outline import Outline
from ..settings import Settings
from ..suggest import did_you_mean
from .common import Input, planned, single_input, single_metadata, single_piece
from .report import Report


def convert(
    path: Input, settings: Settings, *, out: str | os.PathLike[str] | None = None, names: str | None = None
) -> Report:
    """``sdsurgery.convert``."""
    if names is not None:
        return _renamed(path, names, settings, out)

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        layout = detect(checkpoint.tensors).layout
        pieces = [single_piece(layout, settings, info) for info in checkpoint.tensors.values()]
        notes = list(checkpoint.notes)
        if out is not None and not writer_for(out).shares:
            notes += _duplicated(checkpoint)
        return planned(
            "convert", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title), settings=settings,
            layout=layout, notes=notes, keep_order=True,
        )  # fmt: skip

    return single_input("convert", path, out, settings, parameters={}, plan_of=plan)


def _renamed(path: Input, names: str, settings: Settings, out: str | os.PathLike[str] | None) -> Report:
    from ..adapters.lora import Lora
    from .merge_lora import merge_lora

    if isinstance(path, Mapping):
        raise UsageError("names= needs the file of an adapter, not tensors", code="wrong_inputs")
    given = Lora(path.path if isinstance(path, Checkpoint) else os.fspath(path))
    return merge_lora([given], settings, dialect=names, verb="convert", keep_kinds=True, out=out)


def _duplicated(checkpoint: Checkpoint) -> list[str]:
    places: dict[tuple[Any, ...], str] = {}
    twice = []
    for name, info in checkpoint.tensors.items():
        if info.nbytes and places.setdefault((info.file, info.offset, info.nbytes, info.strides), name) != name:
            twice.append(name)
    if not twice:
        return []
    more = ", …" if len(twice) > 1 else ""
    shared = number_of(len(twice), "tensor")
    return [f"written out in full, though they shared their data: {shared}, '{printable(twice[0])}'{more}"]


@dataclass(repr=False)
class Conversion:
    """What became of one of many files: its report, or the error that stopped it."""

    path: str
    out: str
    report: Report | None = None
    error: SdsError | None = None

    def __repr__(self) -> str:
        return f"<Conversion of {self.path}: {self.error.code if self.error else self.out}>"


def convert_all(
    paths: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    out_dir: str | os.PathLike[str],
    to: str = "safetensors",
    names: str | None = None,
    started: Callable[[Conversion], None] = lambda conversion: None,
) -> list[Conversion]:
    """``sdsurgery.convert_all``."""
    todo = [Conversion(os.fspath(path), _target(path, out_dir, to)) for path in paths]
    refuse_twice([item.path for item in todo], [item.out for item in todo])
    target = folder(out_dir, dry_run=settings.dry_run)
    for item in todo:
        started(item)
        try:
            item.report = convert(
                item.path, settings, out=os.path.join(target, os.path.basename(item.out)), names=names
            )
            item.report.output = item.out
            item.error = item.report.refusal
        except (InputRefused, RunFailed, UsageError) as error:
            item.error = error
    return todo


def refuse_twice(paths: Sequence[str], outs: Sequence[str]) -> None:
    """UsageError when two files would be written to one place."""
    taken: dict[str, str] = {}
    for path, out in zip(paths, outs, strict=True):
        place = os.path.normcase(out)
        if place in taken:
            raise UsageError(
                f"{printable(taken[place])} and {printable(path)} would both become {printable(out)}", code="conflict"
            )
        taken[place] = path


def folder(out_dir: str | os.PathLike[str], *, dry_run: bool) -> str:
    """The folder to write to, made when it is missing; in a dry run the one in which it would be made. UsageError when
    it is a file, or cannot be made."""
    path = os.fspath(out_dir)
    try:
        if not dry_run:
            os.makedirs(path, exist_ok=True)
        while dry_run and not os.path.lexists(path):
            path = os.path.dirname(os.path.abspath(path))
    except FileExistsError:
        pass
    except OSError as error:
        raise UsageError(f"{printable(out_dir)}: {error.strerror}", code="bad_output") from None
    if not os.path.isdir(path):
        raise UsageError(f"{printable(path)} is a file; out_dir= needs a folder", code="bad_output")
    return path


def _target(path: str | os.PathLike[str], out_dir: str | os.PathLike[str], to: str) -> str:
    return os.path.join(out_dir, os.path.splitext(os.path.basename(path))[0] + suffix_of(to))


def suffix_of(to: str) -> str:
    """The suffix of a format's files. UsageError for an unknown format, with close matches."""
    writer = next((writer for writer in writers() if writer.name == to), None)
    if writer is None:
        names = [writer.name for writer in writers()]
        hint = did_you_mean(to, names) or f"; known: {', '.join(names)}"
        raise UsageError(f"no format '{printable(to)}'{hint}", code="unknown_name")
    return writer.suffixes[0]
