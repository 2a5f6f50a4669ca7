"""fix-clip: nothing but right ``position_ids`` (``position_ids.py``); every other byte stays."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..layouts import detect
from ..outline import Outline
from ..settings import Settings
from .common import Input, planned, single_input, single_metadata, single_piece
from .report import Report


def fix_clip(path: Input, settings: Settings, *, out: str | os.PathLike[str] | None = None) -> Report:
    """``sdsurgery.fix_clip``."""
    settings = replace(settings, fix_clip=True)

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        layout = detect(checkpoint.tensors).layout
        pieces = [single_piece(layout, settings, info) for info in checkpoint.tensors.values()]
        return planned(
            "fix-clip", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title), settings=settings,
            layout=layout, notes=checkpoint.notes, keep_order=True,
        )  # fmt: skip

    return single_input("fix-clip", path, out, settings, parameters={}, plan_of=plan)
