"""The text encoders' ``position_ids`` as they must be, int64 0…76; and what is wrong with a file's.

``repaired`` is what ``--fix-clip`` does in every verb that writes: it goes over the finished pieces, so it makes no
difference whether they come from a merge, a cast or a swapped component.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ..checkpoint import Checkpoint, Form, TensorInfo
from ..dtypes import I64, DType
from ..errors import InputRefused, printable
from ..layouts import Layout, aliases, names, places_of_position_ids, wrong_places_of_position_ids
from ..outline import ADDED, Dropped, Piece, Region, whole

TOKENS = 77
RIGHT = struct.pack(f"<{TOKENS}q", *range(TOKENS))
_SIBLING = "token_embedding.weight"  # every encoder with position_ids has it beside them


class Finding(NamedTuple):
    """State of one position_ids tensor: ``missing``, ``misplaced``, ``wrong`` (values, dtype or shape) or ``right``."""

    name: str
    state: str
    text: str = ""


class Repair(NamedTuple):
    """Pieces and sources with right position_ids, what was dropped, and notes."""

    pieces: list[Piece]
    sources: list[Any]
    dropped: list[Dropped]
    notes: list[str]


class _Stored(NamedTuple):
    """A tensor and what gives its values; None for one that is still to be computed."""

    dtype: DType
    shape: tuple[int, ...]
    values: Callable[[], list[float]] | None


def repaired(pieces: Sequence[Piece], sources: Sequence[Any], layout: Layout) -> Repair:
    """The pieces of a plan with int64 0…76 wherever the family has position_ids, and no misplaced ones.

    InputRefused when neither the family nor a text encoder in a known place shows where they belong.
    """
    held = {piece.name: _of_piece(piece, sources) for piece in pieces}
    if not layout.parts and not _places(held, layout):
        path = next((printable(source.path) for source in sources if not isinstance(source, bytes)), "the output")
        raise InputRefused(
            f"{path}: family {layout.name}; position_ids have a known place only in Stable Diffusion "
            "checkpoints and text encoders of known families",
            code="family",
        )
    state = {item.name: item for item in _findings(held, layout)}
    literal = len(sources)
    fixed, dropped = [], []
    for piece in pieces:
        item = state.get(piece.name)
        if item is None or item.state == "right":
            fixed.append(piece)
        elif item.state == "misplaced":
            dropped += [Dropped(at, piece.name, "misplaced position_ids") for at in _origin(piece, sources)]
        else:
            fixed.append(_literal(piece.name, literal))
    fixed += [_literal(item.name, literal) for item in state.values() if item.state == "missing"]
    notes = [f"'{printable(item.name)}': {item.text}; written as int64 0…76" for item in state.values()
             if item.state in ("missing", "wrong")]  # fmt: skip
    changed = bool(notes or dropped)
    return Repair(
        fixed,
        [*sources, RIGHT],
        dropped,
        notes if changed else ["all position_ids are correct; nothing was repaired"],
    )


def warnings(pieces: Sequence[Piece], sources: Sequence[Any]) -> list[str]:
    """What is wrong with the position_ids that these pieces of a plan copy, one line each. Reads 77 values each."""
    notes = []
    for piece in pieces:
        text = _difference(_of_piece(piece, sources))
        if text:
            notes.append(
                f"position_ids '{printable(piece.name)}' are copied unchanged: {text} (fix_clip=True repairs them)"
            )
    return notes


def findings(checkpoint: Checkpoint, layout: Layout) -> list[Finding]:
    """Every position_ids that the family has or the file holds, and what is wrong with it. Reads 77 values each."""
    held = {
        name: _Stored(info.dtype, info.shape, functools.partial(checkpoint.numbers, info))
        for name, info in checkpoint.tensors.items()
    }
    return _findings(held, layout)


def remarks(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    """What is wrong with a file's position_ids, one line each, for ``inspect`` and ``verify``."""
    wrong = [item for item in findings(checkpoint, layout) if item.state != "right"]
    return [f"position_ids '{printable(item.name)}': {item.text} (fix-clip repairs it)" for item in wrong]


def _findings(held: Mapping[str, _Stored], layout: Layout) -> list[Finding]:
    places = _places(held, layout)
    found = [Finding(name, "missing", "missing") for name in sorted(places) if name not in held]
    for name, stored in held.items():
        if not names.is_position_ids(name):
            continue
        if name in places:
            text = _difference(stored)
            found.append(Finding(name, "wrong" if text else "right", text))
        elif name.startswith(wrong_places_of_position_ids()):
            found.append(Finding(name, "misplaced", "does not belong in this family"))
    return found


def _places(held: Mapping[str, _Stored], layout: Layout) -> set[str]:
    """Where position_ids belong, in the file's own spelling: old ones lack ``text_model.``, extracted ones a prefix.

    A text encoder without a prefix has no known family, and what diffusers writes today has none: there they belong
    where they are, if they are as many as CLIP's.
    """
    # A separate text encoder belongs to no known family; its place can still be one that some family gives an encoder.
    ids = frozenset(layout.position_ids()) if layout.parts else places_of_position_ids()
    siblings = tuple(_beside(key, "position_ids", _SIBLING) for key in ids)
    places = set()
    for name in held:
        if names.is_position_ids(name):
            beside = _beside(name, "position_ids", _SIBLING) in held and prod(held[name].shape) == TOKENS
            alone = beside and not layout.parts and any(key.endswith("." + name) for key in ids)
            if alone or aliases.canonical(name, layout) in ids:
                places.add(name)
        elif name.endswith(_SIBLING):
            bare = layout.parts and any(sibling.endswith("." + name) for sibling in siblings)
            if bare or aliases.canonical(name, layout) in siblings:
                places.add(_beside(name, _SIBLING, "position_ids"))
    return places


def _beside(name: str, old: str, new: str) -> str:
    return name[: -len(old)] + new


def _difference(stored: _Stored) -> str:
    if prod(stored.shape) != TOKENS:
        return f"shape {list(stored.shape)}, [1, {TOKENS}] expected"
    texts = [] if stored.dtype is I64 else [f"{stored.dtype.name}, I64 expected"]
    if stored.shape not in ((1, TOKENS), (TOKENS,)):
        texts.append(f"shape {list(stored.shape)}, [1, {TOKENS}] expected")
    differ = [f"{value:g} at {place}" for place, value in enumerate(_values(stored)) if value != place]
    if differ:
        more = f", … ({len(differ)} in all)" if len(differ) > 8 else ""
        texts.append("values that differ: " + ", ".join(differ[:8]) + more)
    return "; ".join(texts)


def _values(stored: _Stored) -> list[float]:
    return [] if stored.values is None else stored.values()


def _of_piece(piece: Piece, sources: Sequence[Any]) -> _Stored:
    """What the piece will hold; its values can be read only where it copies one tensor of a file."""
    segments = piece.segments
    if len(segments) == 1 and segments[0].formula is None and len(segments[0].operands) == 1:
        operand = segments[0].operands[0]
        source = sources[operand.source]
        if not isinstance(source, bytes):
            info = _whole_of(operand, piece.name, piece.shape)
            return _Stored(piece.dtype, piece.shape, functools.partial(source.numbers, info))
    return _Stored(piece.dtype, piece.shape, None)


def _whole_of(operand: Region, name: str, shape: tuple[int, ...]) -> TensorInfo:
    """The input tensor that the operand is the whole of."""
    form = Form(operand.dtype, shape, operand.dtype.nbytes(prod(shape)) or 0, file=operand.file)
    if operand.view is not None:
        form = form._replace(shape=operand.view.shape, strides=operand.view.strides)
    return TensorInfo(name, operand.offset, form)


def _origin(piece: Piece, sources: Sequence[Any]) -> set[int]:
    """The input that holds a piece's tensor under the piece's own name."""
    used = {operand.source for segment in piece.segments for operand in segment.operands}
    return {at for at in used if not isinstance(sources[at], bytes) and piece.name in sources[at].tensors}


def _literal(name: str, source: int) -> Piece:
    return Piece(name, I64, (1, TOKENS), ADDED, whole(None, TOKENS, (Region(source, I64, 0),)), "int64 0…76")
