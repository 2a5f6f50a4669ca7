"""Statistics of whole models: a pass of their own over what a merge reads, whose result is a few numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from .. import engine
from ..backends import Options
from ..checkpoint import Checkpoint
from ..dtypes import F64
from ..errors import UsageError
from ..layouts import Layout
from ..methods.across import APART, Across, role_of
from ..methods.registry import Method
from ..outline import COMPARED, MERGED, Outline, Piece
from ..program import FIRST
from ..program.tracing import reduced
from ..settings import Settings

Found = dict[Across, Any]
"""The statistics of one reading of the models, for all merges of a sweep."""


def known(
    method: Method, pieces: Sequence[Piece], opened: Sequence[Checkpoint], layout: Layout, settings: Settings,
    *, found: Found | None = None,
) -> Method:  # fmt: skip
    """The method with the numbers that it needs of the whole models; ``pieces`` are what becomes of the tensors. Reads
    every merged tensor once (a dry run reads none, and leaves the numbers unknown)."""
    assert method.across is not None
    if settings.dry_run:
        return method.across.unknown(method)
    found = {} if found is None else found
    if method.across not in found:
        found[method.across] = _statistics(method, pieces, opened, layout, settings)
    return method.across.known(method, found[method.across])


def require_plain(method: Method, *, adapted: bool) -> None:
    """UsageError where the pass would not see what is merged."""
    if method.across is not None and adapted:
        raise UsageError(
            f"{method.name} needs statistics of the whole models, which adapters change; bake the adapters first",
            code="conflict",
        )


def _statistics(
    method: Method, pieces: Sequence[Piece], opened: Sequence[Checkpoint], layout: Layout, settings: Settings
) -> Any:
    import shutil
    import tempfile

    import numpy as np

    assert method.across is not None
    formula, along = reduced(method.across.statistic, len(opened))
    wanted: list[Piece] = []
    for piece in pieces:
        if piece.action != MERGED or role_of(method, layout.unwrap(piece.name), layout.name).endswith(APART):
            continue
        count = math.prod(piece.shape[1:]) if along == FIRST else 1
        segment = piece.segments[0]
        if segment.first or segment.count != math.prod(piece.shape):
            continue  # some channels of it
        segment = segment._replace(formula=formula, count=count, elements=segment.count, shape=piece.shape)
        wanted.append(Piece(piece.name, F64, (count,), COMPARED, (segment,)))
    if not wanted:
        return np.empty(0)
    placed = Outline("statistics", tuple(opened), tuple(wanted)).unwritten()
    folder = tempfile.mkdtemp(prefix="sdsurgery-")
    try:
        path = os.path.join(folder, "statistics")
        options = Options.of(settings)._replace(wide=True, overflow="default", on_nonfinite="keep")
        with placed.names_in_errors():
            engine.execute(
                placed.plan, placed.sources(), [engine.Target(path, lambda *_: [])], backend="cpu", options=options,
                sync=False, progress=settings.callback,
            )  # fmt: skip
        return np.fromfile(path, np.float64)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
