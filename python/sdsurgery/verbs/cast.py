"""cast: the same checkpoint in another dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import engine
from ..checkpoint import Checkpoint, open_checkpoint
from ..layouts import detect
from ..plan import Plan, assemble, copied, rounded
from .common import Report, Settings, identity_formula, parent, run, settings_from, title_of


def cast(path: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, **given: Any) -> Report:
    """Write a checkpoint's tensors in another dtype (``dtype="fp16"``); settings as in ``verbs.common.Settings``.

    Integers, empty tensors, noise-schedule buffers, ``position_ids`` and marker tensors are copied exactly; EMA
    weights are cast like the others. Raises as ``merge`` does.
    """
    settings = settings_from(given)
    if given:
        raise TypeError(f"cast() got an unexpected keyword argument {next(iter(given))!r}")
    if out is not None:
        engine.target_path(out, settings.force or settings.dry_run)
    with open_checkpoint(path) as checkpoint:
        checkpoint.require_all()
        recipe = {"method": "cast", "parameters": {}, "dtype": settings.dtype, "overflow": settings.overflow}
        plan = plan_cast(checkpoint, settings, recipe=recipe, title=title_of(out))
        return run(plan, out, settings, recipe)


def plan_cast(checkpoint: Checkpoint, settings: Settings, *, recipe: Mapping[str, Any], title: str) -> Plan:
    """Decide what becomes of every tensor; reads the header only."""
    layout = detect(checkpoint.tensors).layout
    identity = identity_formula()
    pieces = []
    for name, info in checkpoint.tensors.items():
        if layout.exact_copy(name):
            pieces.append(copied(0, info, note="copied exactly (not a weight)"))
        elif info.dtype.kind in ("int", "bool"):
            pieces.append(copied(0, info, note="integers keep their dtype"))
        else:
            pieces.append(rounded(0, info, settings.target_dtype, identity, watched=settings.watched))
    source = parent(checkpoint)

    def metadata(hashes: Sequence[str | None], body: str | None) -> Mapping[str, str]:
        from dataclasses import replace

        from .. import __version__
        from ..metadata import single_input_metadata

        return single_input_metadata(
            source=source.metadata,
            recipe=recipe,
            parent=replace(source, sha256=hashes[0]),
            title=title,
            architecture=layout.architecture,
            body_sha256=body,
            version=__version__,
        )

    return assemble(
        "cast", [checkpoint], pieces, metadata, hashed=settings.hash, keep_order=True,
        notes=tuple(checkpoint.notes), family=layout.name,
    )  # fmt: skip
