"""prune: a checkpoint without training leftovers, EMA or chosen components. Dropped tensors are never read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import InputRefused, UsageError, printable
from ..layouts import UNKNOWN, Detection, Layout, aliases, detect, names
from ..layouts.completeness import completeness
from ..outline import Dropped, Outline, Piece
from ..report.warnings import warned
from ..settings import Settings
from .common import Input, planned, single_input, single_metadata, single_piece
from .component_words import component_word
from .report import Report

PRESETS = {"full": (), "no-ema": ("ema",), "ema-only": ("ema",), "inference": ("ema",)}
"""Preset -> components that it drops. Training leftovers go in every preset."""

DROPPABLE = (
    "ema", "optimizer", "training", "buffers", "vae", "text_encoder", "text_encoder_2", "text_encoder_3",
    "image_encoder", "depth", "controlnet", "other",
)  # fmt: skip


_ADVICE = {"unet": "; extract(component=…) takes other parts out of a file"}
_LEFTOVERS = "training leftovers"
_UNREAD = ("training", "buffers")
"""Components that no program reads from a model: what its trainer leaves, and noise schedules, which are computed."""


@dataclass(frozen=True)
class _Rules:
    """What the caller asked for, checked."""

    preset: str
    drop: frozenset[str]
    keep_keys: tuple[re.Pattern[str], ...]
    drop_keys: tuple[re.Pattern[str], ...]
    strict: bool


def prune(
    path: Input,
    settings: Settings,
    *,
    out: str | os.PathLike[str] | None = None,
    preset: str = "full",
    drop: Sequence[str] = (),
    keep_keys: str | Sequence[str] | None = None,
    drop_keys: str | Sequence[str] | None = None,
    strict: bool = False,
) -> Report:
    """``sdsurgery.prune``."""
    drop = [component_word(name, DROPPABLE, "drop= can't drop", _ADVICE) for name in drop]
    rules = _rules(preset, drop, keep_keys, drop_keys, strict)

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        found = detect(checkpoint.tensors)
        layout = found.layout
        pieces, dropped, notes = _pruned(checkpoint, found, settings, rules)
        return planned(
            "prune", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title),
            settings=settings, layout=layout, notes=(*checkpoint.notes, *notes), dropped=dropped, frugal=True,
            keep_order=True,
        )  # fmt: skip

    options = {
        "preset": preset, "drop": list(drop), "keep_keys": keep_keys, "drop_keys": drop_keys, "strict": strict,
    }  # fmt: skip
    return single_input("prune", path, out, settings, parameters=options, plan_of=plan, selective=True)


def _rules(
    preset: str, drop: Sequence[str], keep_keys: Sequence[str] | None, drop_keys: Sequence[str] | None, strict: bool
) -> _Rules:
    if preset not in PRESETS:
        raise UsageError(f"preset= cannot be '{printable(preset)}'{_known(preset, tuple(PRESETS))}", code="bad_value")
    keep, away = patterns("keep_keys=", keep_keys), patterns("drop_keys=", drop_keys)
    return _Rules(preset, frozenset((*drop, *PRESETS[preset])), keep, away, strict)


def _known(word: str, words: Sequence[str]) -> str:
    from ..suggest import did_you_mean

    return did_you_mean(word, words) or f"; known: {', '.join(words)}"


def patterns(option: str, given: str | Sequence[str] | None) -> tuple[re.Pattern[str], ...]:
    """Regular expressions. UsageError, with the option, for one that is none."""
    found = []
    for text in (given,) if isinstance(given, str) else given or ():
        try:
            found.append(re.compile(text))
        except re.error as error:
            raise UsageError(
                f"{option} '{printable(text)}' is not a valid regular expression: {error}", code="bad_value"
            ) from None
    return tuple(found)


def _pruned(
    checkpoint: Checkpoint, found: Detection, settings: Settings, rules: _Rules
) -> tuple[list[Piece], list[Dropped], list[str]]:
    layout = found.layout
    if rules.preset == "inference" and layout is UNKNOWN:
        raise InputRefused(
            f'{printable(checkpoint.path)}: preset="inference" needs a known family, found {layout.name}; '
            "use drop= and drop_keys=",
            code="family",
            path=checkpoint.path,
        )
    twins = {}
    if rules.preset == "ema-only":
        from .ema import twins as ema_twins

        twins = ema_twins(checkpoint, layout)
    pieces, dropped, unknown, spared = [], [], [], []
    unreadable = set()
    for name in (*checkpoint.tensors, *checkpoint.unusable):
        reason = _reason(name, layout, rules)
        if reason is not None:
            identifying = name == found.evidence_key or layout.identifies(aliases.canonical(name, layout))
            if reason == _LEFTOVERS or not identifying:
                dropped.append(Dropped(0, name, reason))
                continue
            spared.append(name)
        info = checkpoint.tensors.get(name)
        if info is None:
            unreadable.add(name)
            continue
        if layout.component(name) == "other":
            unknown.append(name)
        pieces.append(single_piece(layout, settings, twins.get(name, info), name=name))
    checkpoint.require_usable(unreadable.__contains__)
    doubts = list(_left_averages(checkpoint, layout)) if rules.preset == "inference" else []
    if rules.preset == "inference":
        _require_whole(checkpoint, layout, pieces)
    shadows = len(checkpoint) > 0 and all(layout.is_ema(name) for name in checkpoint.tensors)
    if not pieces or (shadows and len(pieces) == len(spared)):
        hint = "; they are EMA weights alone, of which `ema` makes a U-Net" if shadows else ""
        raise InputRefused(
            f"{printable(checkpoint.path)}: nothing would be left of its {len(checkpoint)} tensors{hint}",
            code="missing_tensors",
            path=checkpoint.path,
        )
    return pieces, dropped, [*doubts, *_notes(unknown, spared)]


def _left_averages(checkpoint: Checkpoint, layout: Layout) -> Iterator[str]:
    """A warning where the file has EMA weights: of both the trained ones stay."""
    from .ema import state

    found = state(checkpoint, layout)
    if found in ("full", "partial"):
        option = 'prune(preset="ema-only")'
        yield warned("ema_unused", path=printable(checkpoint.path), state=found, option=option)


def _notes(unknown: list[str], spared: list[str]) -> list[str]:
    kept = (
        (unknown, "of unknown components were kept (strict=True drops them)"),
        (spared, "that an option would drop were kept: programs recognise the family by them"),
    )
    notes = []
    for hits, text in kept:
        if hits:
            listed = ", ".join(printable(name) for name in hits[:20]) + (", …" if len(hits) > 20 else "")
            notes.append(f"{len(hits)} tensor{'s' if len(hits) > 1 else ''} {text}: {listed}")
    return notes


def _reason(name: str, layout: Layout, rules: _Rules) -> str | None:
    """Why a tensor goes; None when it stays."""
    component = layout.component(name)
    if component == "optimizer":
        return _LEFTOVERS
    if any(pattern.search(name) for pattern in rules.keep_keys):
        return None
    if any(pattern.search(name) for pattern in rules.drop_keys):
        return "asked for by name"
    if component in rules.drop:
        return f"component {component}"
    if component == "other" and rules.strict and layout.parts:
        return "unknown component, and strict"
    if rules.preset == "inference" and (component in _UNREAD or (layout.parts and _computed(name))):
        return "not needed for inference"
    return None


def _require_whole(checkpoint: Checkpoint, layout: Layout, pieces: Sequence[Piece]) -> None:
    """InputRefused when ``inference`` would leave a component that the family's loader cannot fill."""
    found = completeness({piece.name: piece for piece in pieces}, layout)
    if found.incomplete:
        raise InputRefused(
            f"{printable(checkpoint.path)}: {found.text()}; no program loads such a model. "
            'prune(preset="no-ema") prunes it anyway',
            code="missing_tensors",
            tensor=found.absent[0],
            path=checkpoint.path,
            details={"absent": list(found.absent)},
        )


def _computed(name: str) -> bool:
    """Whether the family's loader computes the tensor and does not read it: schedules and sigmas."""
    key = names.unwrap(name)
    return key.rpartition(".")[2] in names.SCHEDULE or key.startswith("denoiser.")
