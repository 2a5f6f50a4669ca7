"""How the tensors of an output are arranged in a file: what their readers look for.

A ``.ckpt`` is always a checkpoint's. ``.pt``, ``.pth`` and ``.bin`` have the structure of the file that the output is
made from; where that was not a pickle, the one that its family's readers look for. In safetensors the vectors of an
embedding are called ``emb_params``.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..formats import writer_for
from ..layouts import UNKNOWN, get
from ..outline import Outline
from ..structure import FLAT, NESTED, Structure

_EMBEDDING = "string_to_param."


def arranged(outline: Outline, out: str | os.PathLike[str] | None, title: str) -> Outline:
    """The outline for a file of that name."""
    writer = writer_for(out)
    if not writer.structured:
        return _embedding_renamed(outline)
    if os.path.splitext(os.fspath(out or ""))[1].lower() == ".ckpt":
        return outline
    structure = _structure(outline, os.fspath(out or ""), title)
    if structure.nested:
        return outline
    notes = outline.notes
    if outline.metadata.texts([None] * len(outline.metadata.parents), None).keys() - {"format"}:
        notes = (
            *notes,
            "the file has the structure of the one that it is made from, without a place for metadata and recipe",
        )
    return replace(outline, structure=structure, notes=notes, hashed=False)


def _structure(outline: Outline, out: str, title: str) -> Structure:
    layout, names = get(outline.family), [piece.name for piece in outline.pieces]
    first = next((source for source in outline.sources if isinstance(source, Checkpoint)), None)
    given = first.structure if first is not None else None
    if layout.parts and layout.original is None and not layout.alone and layout.network is not None:
        return NESTED  # a checkpoint, whatever the input looked like
    if given is not None:
        return given if given.tree is None or given.names() >= set(names) else FLAT if given.path == () else NESTED
    if layout.arranged is not None:
        return layout.arranged(names, title)
    return FLAT if layout is UNKNOWN and out.lower().endswith(".bin") else NESTED


def _embedding_renamed(outline: Outline) -> Outline:
    if len(outline.pieces) == 1 and outline.pieces[0].name.startswith(_EMBEDDING):
        return replace(outline, pieces=(outline.pieces[0]._replace(name="emb_params"),))
    return outline
