"""How the tensors of an output are arranged in a file: what their readers look for.

A ``.ckpt`` is always a checkpoint's. ``.pt``, ``.pth`` and ``.bin`` have the structure of the file that the output is
made from; where that was not a pickle, the one that its family's readers look for. In safetensors the vectors of an
embedding are called ``emb_params``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..formats import writer_for
from ..layouts import UNKNOWN, get
from ..outline import Outline
from ..strict_json import parse
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
    return outline._replace(structure=structure, notes=notes, hashed=False)


def _structure(outline: Outline, out: str, title: str) -> Structure:
    layout, names = get(outline.family), [piece.name for piece in outline.pieces]
    first = next((source for source in outline.sources if isinstance(source, Checkpoint)), None)
    given = first.structure if first is not None else None
    if layout.parts and layout.original is None and not layout.alone and layout.network is not None:
        return NESTED  # a checkpoint, whatever the input looked like
    if given is not None:
        return given if given.tree is None or given.names() >= set(names) else FLAT if given.path == () else NESTED
    if layout.arranged is not None:
        return layout.arranged(names, title, {} if first is None else _beside(first.metadata()))
    return FLAT if layout is UNKNOWN and out.lower().endswith(".bin") else NESTED


_TEXTS = ("name", "sd_checkpoint", "sd_checkpoint_name", "activation_func", "weight_initialization", "optional_info")


def _beside(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a pickle had beside its tensors, as the metadata of a file that was made from it say (``ckpt.…``)."""
    found: dict[str, Any] = {}
    for key, text in metadata.items():
        name = key.removeprefix("ckpt.")
        if name == key or text.endswith("…"):  # which was too long
            continue
        value = None if name in _TEXTS else parse(text)
        found[name] = None if text == "null" else text if value is None else value
    return found


def _embedding_renamed(outline: Outline) -> Outline:
    if len(outline.pieces) == 1 and outline.pieces[0].name.startswith(_EMBEDDING):
        return outline._replace(pieces=(outline.pieces[0]._replace(name="emb_params"),))
    return outline
