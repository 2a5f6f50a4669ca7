"""cast: the same checkpoint in another dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..layouts import detect
from ..outline import Outline
from ..settings import Settings
from .common import Input, planned, single_input, single_metadata, single_piece
from .report import Report


def cast(path: Input, settings: Settings, *, out: str | os.PathLike[str] | None = None) -> Report:
    """``sdsurgery.cast``."""

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        return plan_cast(checkpoint, settings, recipe=recipe, title=title)

    return single_input("cast", path, out, settings, parameters={}, plan_of=plan)


def plan_cast(checkpoint: Checkpoint, settings: Settings, *, recipe: Mapping[str, Any], title: str) -> Outline:
    """Decide what becomes of every tensor; reads the header only."""
    layout = detect(checkpoint.tensors).layout
    pieces = [single_piece(layout, settings, info) for info in checkpoint.tensors.values()]
    metadata = single_metadata(checkpoint, layout, recipe, title)
    return planned(
        "cast",
        [checkpoint],
        pieces,
        metadata,
        settings=settings,
        layout=layout,
        notes=checkpoint.notes,
        keep_order=True,
    )
