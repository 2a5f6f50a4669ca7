"""ema: the U-Net's weights replaced by their EMA twins, or (``--to-ema``) twins made from the weights. Of a file that
holds EMA weights alone it makes the U-Net that they shadow."""

from __future__ import annotations

import os
from typing import Any

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F32, I32
from ..errors import InputRefused, UsageError, printable
from ..layouts import REGISTRY, Layout, aliases, detect, names
from ..outline import ADDED, Dropped, Outline, Piece, Region, whole
from ..settings import Settings
from .common import Input, planned, single_input, single_metadata, single_piece
from .report import Report

# What LitEma (ldm/modules/ema.py of CompVis/stable-diffusion) begins with: decay 0.9999 (float32), no updates (int32).
_NEW_COUNTERS = bytes.fromhex("72f97f3f") + bytes(4)


def ema(
    path: Input,
    settings: Settings,
    *,
    out: str | os.PathLike[str] | None = None,
    keep_counters: bool = False,
    to_ema: bool = False,
) -> Report:
    """``sdsurgery.ema``."""
    if keep_counters and to_ema:
        raise UsageError(
            "to_ema=True makes new counters; it can't be combined with keep_counters=True", code="conflict"
        )

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        layout = detect(checkpoint.tensors).layout
        sources: list[Any] = [checkpoint]
        dropped: list[Dropped] = []
        if to_ema:
            pieces = _shadowed(checkpoint, layout, settings)
            sources.append(_NEW_COUNTERS)
        elif (family := _family_of_shadows(checkpoint, layout)) is not None:
            pieces, dropped = _unshadowed(checkpoint, layout, family, settings, keep_counters=keep_counters)
            layout = family
        else:
            pieces, dropped = replaced(checkpoint, layout, settings, keep_counters=keep_counters)
        return planned(
            "ema", sources, pieces, single_metadata(checkpoint, layout, recipe, title),
            settings=settings, layout=layout, notes=checkpoint.notes, dropped=dropped, frugal=True, keep_order=True,
        )  # fmt: skip

    options = {"keep_counters": keep_counters, "to_ema": to_ema}
    return single_input("ema", path, out, settings, parameters=options, plan_of=plan, selective=True)


def twins(checkpoint: Checkpoint, layout: Layout) -> dict[str, TensorInfo]:
    """U-Net weight's name -> its EMA twin. InputRefused, with the counts, unless every weight has one of its shape."""
    wanted, stored = _wanted(checkpoint, layout), _stored(checkpoint, layout)
    twin_names = set(wanted.values())
    checkpoint.require_usable(lambda name: aliases.canonical(name, layout) in twin_names)
    found = {name: stored[twin] for name, twin in wanted.items() if twin in stored}
    where = printable(checkpoint.path)
    if not wanted:
        hint = "" if _family_of_shadows(checkpoint, layout) is None else "; `ema` makes a U-Net of what the file holds"
        raise InputRefused(
            f"{where}: no U-Net weights under '{names.UNET}', so there is no EMA of them ({layout.title}){hint}",
            code="missing_tensors",
            path=checkpoint.path,
        )
    if not found:
        raise InputRefused(
            f"{where}: no EMA weights (0 found, {len(wanted)} expected, one for every U-Net weight)",
            code="missing_tensors",
            path=checkpoint.path,
        )
    if len(found) < len(wanted):
        lacking = next(name for name in wanted if name not in found)
        raise InputRefused(
            f"{where}: partial EMA ({len(found)} found, {len(wanted)} expected; "
            f"'{printable(lacking)}' has no EMA twin); the file can't be made EMA-only",
            code="missing_tensors",
            tensor=lacking,
            path=checkpoint.path,
            details={"found": len(found), "expected": len(wanted)},
        )
    for name, twin in found.items():
        if twin.shape != checkpoint.tensors[name].shape:
            raise InputRefused(
                f"{where}: EMA tensor '{printable(twin.name)}' has shape {list(twin.shape)}, "
                f"{list(checkpoint.tensors[name].shape)} expected as '{printable(name)}' has",
                code="shape",
                tensor=twin.name,
                path=checkpoint.path,
                details={"found": list(twin.shape), "expected": list(checkpoint.tensors[name].shape)},
            )
    return found


def replaced(
    checkpoint: Checkpoint, layout: Layout, settings: Settings, *, keep_counters: bool = False
) -> tuple[list[Piece], list[Dropped]]:
    """The pieces of the EMA-only checkpoint and what is dropped from it. Raises as ``twins`` does."""
    checkpoint.require_usable(lambda name: _kept(name, layout, keep_counters))
    found = twins(checkpoint, layout)
    used = {info.name for info in found.values()}
    pieces, dropped = [], []
    for name, info in checkpoint.tensors.items():
        if name in found:
            pieces.append(single_piece(layout, settings, found[name], name=name, note="its EMA twin"))
        elif _kept(name, layout, keep_counters):
            pieces.append(single_piece(layout, settings, info))
        else:
            dropped.append(Dropped(0, name, _reason(name, used)))
    return pieces, dropped


def _family_of_shadows(checkpoint: Checkpoint, layout: Layout) -> Layout | None:
    """Where a file holds EMA weights and no U-Net: the first family all of whose U-Net weights they shadow."""
    weights = _stored(checkpoint, layout).keys() - names.EMA_COUNTERS
    if not weights or _wanted(checkpoint, layout):
        return None
    for family in REGISTRY:
        if family.has_ema and family.parts and weights == _names_by_twin(family).keys():
            return family
    return None


def _names_by_twin(family: Layout) -> dict[str, str]:
    return {twin: row.key for row in family.tensors() if (twin := family.ema_twin(row.key)) is not None}


def _unshadowed(
    checkpoint: Checkpoint, layout: Layout, family: Layout, settings: Settings, *, keep_counters: bool
) -> tuple[list[Piece], list[Dropped]]:
    checkpoint.require_usable(lambda name: not layout.is_ema(name) or _kept(name, layout, keep_counters))
    by_twin = _names_by_twin(family)
    pieces, dropped = [], []
    for name, info in checkpoint.tensors.items():
        weight = by_twin.get(aliases.canonical(name, layout))
        if weight is not None:
            pieces.append(single_piece(family, settings, info, name=weight, note="of its EMA twin"))
        elif _kept(name, layout, keep_counters):
            pieces.append(single_piece(family, settings, info))
        else:
            dropped.append(Dropped(0, name, "EMA counters"))
    return pieces, dropped


def _kept(name: str, layout: Layout, keep_counters: bool) -> bool:
    return not layout.is_ema(name) or (keep_counters and layout.unwrap(name) in names.EMA_COUNTERS)


def _reason(name: str, used: set[str]) -> str:
    if names.unwrap(name) in names.EMA_COUNTERS:
        return "EMA counters"
    return "EMA weights, now in the U-Net's place" if name in used else "EMA weights without a U-Net weight"


def state(checkpoint: Checkpoint, layout: Layout) -> str:
    """``full``, ``partial``, ``counters`` (both of them or one, no weights) or ``none``."""
    stored = _stored(checkpoint, layout)
    if not stored:
        return "none"
    wanted = _wanted(checkpoint, layout)
    present = sum(twin in stored for twin in wanted.values())
    if present:
        return "full" if present == len(wanted) else "partial"
    weights = any(name not in names.EMA_COUNTERS for name in stored)
    return "partial" if weights else "counters"


def _stored(checkpoint: Checkpoint, layout: Layout) -> dict[str, TensorInfo]:
    """The file's EMA tensors by the family's names for them."""
    found = (name for name in checkpoint.tensors if layout.is_ema(name))
    return {aliases.canonical(name, layout): checkpoint.tensors[name] for name in found}


def _wanted(checkpoint: Checkpoint, layout: Layout) -> dict[str, str]:
    """U-Net weight's name in the file -> the family's name for its EMA twin."""
    wanted = {}
    for name, info in checkpoint.tensors.items():
        twin = layout.ema_twin(aliases.canonical(name, layout))
        if twin is not None and info.dtype.kind not in ("int", "bool") and not layout.exact_copy(name):
            wanted[name] = twin
    return wanted


def _shadowed(checkpoint: Checkpoint, layout: Layout, settings: Settings) -> list[Piece]:
    checkpoint.require_usable()
    present = sum(layout.is_ema(name) for name in checkpoint.tensors)
    wanted = _wanted(checkpoint, layout)
    if present:
        raise InputRefused(
            f"{printable(checkpoint.path)}: already has EMA tensors ({present} found, 0 expected); "
            'prune(preset="no-ema") removes them',
            code="extra_tensors",
            path=checkpoint.path,
        )
    if not wanted:
        raise InputRefused(f"{printable(checkpoint.path)}: no U-Net weights under '{names.UNET}' to make EMA twins of")
    pieces = [single_piece(layout, settings, info) for info in checkpoint.tensors.values()]
    decay, updates = names.EMA_COUNTERS
    for offset, name, dtype in ((0, decay, F32), (4, updates, I32)):
        pieces.append(Piece(name, dtype, (), ADDED, whole(None, 1, (Region(1, dtype, offset),)), "a new counter"))
    for name, twin in wanted.items():
        info = checkpoint.tensors[name]
        pieces.append(single_piece(layout, settings, info, name=twin, note="EMA twin of the weight"))
    return pieces
