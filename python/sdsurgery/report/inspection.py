"""What ``inspect`` found as text: one file, a table of several, lists of tensors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import printable
from ..file_hashes import KINDS
from . import ancestry
from .fitting import table, width
from .progress import human_bytes

if TYPE_CHECKING:
    from ..surgery.inspect import Component, Inspection

_SHOWN = 100  # characters of a text of the metadata
_RECIPES = ("sd_merge_recipe", "sd_merge_models")  # which the ancestry says
_SHORT = ("autov1", "autov2", "autov3", "crc32")


def lines(found: Inspection, verbose: bool = False) -> Iterator[str]:
    """One file: what it is, its components, what its metadata say, notes."""
    from .console import noted

    yield f"{printable(found.path)}: {found.format}, {human_bytes(found.bytes)}"
    evidence = f", identified by {printable(found.evidence)}" if found.evidence else ""
    yield f"family: {found.family} ({found.title}){evidence}"
    yield f"EMA weights: {found.ema}"
    rows: dict[str, Component] = {**found.components, "total": found.total}
    head = ("component", "tensors", "parameters", "bytes", "dtypes")
    shown = [
        (name, f"{part.tensors}", f"{part.parameters:,}", f"{part.bytes:,}", _dtypes(part))
        for name, part in rows.items()
    ]
    yield from table(head, shown, width(sys.stdout))
    if found.adapter is not None:
        yield from found.adapter.lines(verbose)
    for name, digits in found.hashes.items():
        yield f"{KINDS[name].title}: {digits}"
    for key, value in found.metadata.items():
        if verbose or key not in _RECIPES:
            yield f"metadata {printable(key)}: {printable(value, 10_000 if verbose else _SHOWN)}"
    if found.ancestry:
        yield "made of:"
        yield from (f"  {line}" for line in ancestry.lines(found.ancestry))
    yield from noted(found.notes)


def _dtypes(part: Component) -> str:
    return ", ".join(f"{dtype} {count}" for dtype, count in part.dtypes.items())


def overview(files: Sequence[Inspection]) -> Iterator[str]:
    """Several files, one row each; hashes that are too long for a table follow it."""
    shown = [name for name in _SHORT if any(name in each.hashes for each in files)]
    head = ("file", "family", "size", "dtypes", "EMA", *(KINDS[name].title for name in shown), "components")
    rows = [
        (
            printable(os.path.basename(each.path)), each.family, human_bytes(each.bytes), " ".join(each.total.dtypes),
            each.ema, *(each.hashes.get(name, "-") for name in shown), " ".join(each.components),
        )
        for each in files
    ]  # fmt: skip
    if rows:
        yield from table(head, rows, width(sys.stdout), left=len(head))
    for each in files:
        for name, digits in each.hashes.items():
            if name not in shown:
                yield f"{KINDS[name].title} {digits}  {printable(each.path)}"


def tensor_lines(found: Inspection) -> Iterator[str]:
    """The tensors that were asked for: name, dtype, shape, component."""
    rows = [(printable(row.name), row.dtype, str(row.shape), row.component) for row in found.tensors]
    if rows:
        yield from table(("name", "dtype", "shape", "component"), rows, width(sys.stdout), left=4)
    yield f"{len(rows)} of {found.total.tensors} tensors"
