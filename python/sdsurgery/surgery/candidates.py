"""What a model may be made of: the files of a folder, and files' EMA weights as candidates of their own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..errors import Failure, InputRefused, number_of, printable
from ..layouts import UNKNOWN, Detection, conflict, detect
from ..report.command import runnable
from ..report.formula import names_of
from ..settings import Settings
from .baked import Component, part_of
from .common import close_all, open_input

if TYPE_CHECKING:
    from ..layouts import Layout

EMA = " (EMA)"
"""Behind the path of a file whose EMA weights stand in the U-Net's place."""


def averaged(opened: Sequence[Checkpoint], layout: Layout) -> list[Checkpoint]:
    """Those files that have a full EMA, once more, with it in the U-Net's place. They borrow what is opened."""
    from .ema import state, twins

    found = []
    for each in opened:
        if state(each, layout) != "full":
            continue
        own = each.borrowed()
        own.path = each.path + EMA
        plain = {name: info for name, info in each.tensors.items() if not layout.is_ema(name)}
        own.tensors = plain | {name: info.renamed(name) for name, info in twins(each, layout).items()}
        found.append(own)
    return found


def of_average(mix: Checkpoint, layout: Layout) -> list[str]:
    """A note on the mix's EMA weights."""
    from .ema import state

    if state(mix, layout) != "full":
        return []
    words = runnable(shlex.join(["sdsurgery", "ema", mix.path, "-o", "EMA.safetensors"]))
    return [f"the mix has EMA weights, which were not looked at: `{words}` makes a model of them"]


def short_names(paths: Sequence[str], limit: int = 60) -> list[str]:
    """Names for formulas and tables, ``names_of`` those of files."""
    plain = [path.removesuffix(EMA) for path in paths]
    files = list(dict.fromkeys(plain))
    short = dict(zip(files, names_of(files, limit), strict=True))
    return [short[file] + path[len(file) :] for file, path in zip(plain, paths, strict=True)]


def separated(opened: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[Component]]:
    """The mix, the first, and the models; and of the others those that hold one component of the mix alone."""
    ours = detect(opened[0].tensors)
    models, parts = [opened[0]], []
    for each in opened[1:]:
        part = part_of(opened[0], ours.layout, each) if conflict(ours, detect(each.tensors)) else None
        if part is None:
            models.append(each)
        else:
            parts.append(part)
    return models, parts


def of_folder(
    folder: str | os.PathLike[str], opened: Sequence[Checkpoint], ours: Detection, settings: Settings
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints of the mix's family in a folder, but for the files that are open; and notes on the others."""
    try:
        names = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise InputRefused(
            f"{printable(os.fspath(folder))}: cannot be listed: {error.strerror}", code="not_found"
        ) from None
    known = {os.path.realpath(each.path) for each in opened}
    family = {_plain(ours), ours.layout.model}  # an inpainting model is made with plain ones
    found: list[Checkpoint] = []
    strangers: list[str] = []
    try:
        for path in names:
            if os.path.realpath(path) in known:
                continue
            try:
                other = open_input(path, settings, selective=True)
            except Failure:
                strangers.append(os.path.basename(path))
                continue
            theirs = detect(other.tensors)
            same = ours.layout is UNKNOWN or (theirs.layout is not UNKNOWN and _plain(theirs) in family)
            if (same and not conflict(ours, theirs)) or part_of(opened[0], ours.layout, other):
                found.append(other)
            else:
                strangers.append(os.path.basename(path))
                other.close()
    except BaseException:
        close_all(found)
        raise
    if not strangers:
        return found, []
    where, count = printable(os.fspath(folder)), number_of(len(strangers), "file")
    words = "is not a model" if len(strangers) == 1 else "are not models"
    left = "was" if len(strangers) == 1 else "were"
    some = ", ".join([*(printable(name, 60) for name in strangers[:3]), *["…"][: len(strangers) - 3]])
    return found, [f"{where}: {count} {words} of the mix's family and {left} left out ({some})"]


def _plain(found: Detection) -> str:
    """The family, in whatever names its tensors are."""
    return found.layout.name.removesuffix("-diffusers")
