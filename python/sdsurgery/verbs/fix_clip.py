"""fix-clip: the text encoders' ``position_ids`` as they must be, int64 0…76; and what is wrong with a file's."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import I64
from ..errors import InputRefused, printable
from ..layouts import Layout, aliases, detect, names
from ..plan import ADDED, Dropped, Operand, Piece, Plan, assemble, copied, whole
from .common import Report, Settings, identity_formula, single_input, single_metadata, single_piece

TOKENS = 77
RIGHT = struct.pack(f"<{TOKENS}q", *range(TOKENS))
_SIBLING = "token_embedding.weight"  # every encoder with position_ids has it beside them
_CODES = {"I64": "q", "U64": "Q", "I32": "i", "U32": "I", "I16": "h", "U16": "H", "I8": "b", "U8": "B"}
_CODES |= {"F64": "d", "F32": "f", "F16": "e"}


@dataclass(frozen=True)
class Finding:
    """State of one position_ids tensor: ``missing``, ``misplaced``, ``wrong`` (values, dtype or shape) or ``right``."""

    name: str
    state: str
    text: str = ""


def fix_clip(path: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, **given: Any) -> Report:
    """Write int64 0…76 wherever the family has position_ids and drop misplaced ones; all else stays as it is.

    Settings as in ``verbs.common.Settings``. InputRefused when the family is not known.
    """

    def plan(checkpoint: Checkpoint, settings: Settings, recipe: dict[str, Any], title: str) -> Plan:
        layout = detect(checkpoint.tensors).layout
        if not layout.parts:
            raise InputRefused(
                f"{printable(checkpoint.path)}: family {layout.name}; a Stable Diffusion checkpoint or text encoder of "
                "a known family is expected, as where position_ids belong depends on it"
            )
        pieces, dropped, notes = _fixed(checkpoint, layout, settings)
        return assemble(
            "fix-clip", [checkpoint, RIGHT], pieces, single_metadata(checkpoint, layout, recipe, title),
            hashed=settings.hash, keep_order=True, dropped=tuple(dropped), notes=(*checkpoint.notes, *notes),
            family=layout.name,
        )  # fmt: skip

    return single_input("fix-clip", path, out, given, parameters={}, plan_of=plan)


def findings(checkpoint: Checkpoint, layout: Layout) -> list[Finding]:
    """Every position_ids that the family has or the file holds, and what is wrong with it. Reads 77 values each."""
    places = _places(checkpoint, layout)
    found = [Finding(name, "missing", "missing") for name in places if name not in checkpoint]
    for name, info in checkpoint.tensors.items():
        if not names.is_position_ids(name):
            continue
        if name in places:
            text = _difference(checkpoint, info)
            found.append(Finding(name, "wrong" if text else "right", text))
        elif layout.parts:
            found.append(Finding(name, "misplaced", "has no place in this family"))
    return found


def remarks(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    """What is wrong with a file's position_ids, one line each, for ``inspect`` and ``verify``."""
    wrong = [item for item in findings(checkpoint, layout) if item.state != "right"]
    return [f"position_ids '{printable(item.name)}': {item.text} (fix-clip repairs it)" for item in wrong]


def _places(checkpoint: Checkpoint, layout: Layout) -> set[str]:
    """Where position_ids belong, in the file's own spelling (old files lack ``text_model.``)."""
    siblings = {key.replace("position_ids", _SIBLING) for key in layout.position_ids()}
    found = (name for name in checkpoint.tensors if name.endswith(_SIBLING))
    return {name[: -len(_SIBLING)] + "position_ids" for name in found if aliases.canonical(name, layout) in siblings}


def _difference(checkpoint: Checkpoint, info: TensorInfo) -> str:
    if info.elements != TOKENS:
        return f"shape {list(info.shape)}, [1, {TOKENS}] expected"
    texts = [] if info.dtype is I64 else [f"{info.dtype.name}, I64 expected"]
    if info.shape not in ((1, TOKENS), (TOKENS,)):
        texts.append(f"shape {list(info.shape)}, [1, {TOKENS}] expected")
    values = list(_values(checkpoint, info))
    differ = [f"{value:g} at {place}" for place, value in enumerate(values) if value != place]
    if differ:
        more = f", … ({len(differ)} in all)" if len(differ) > 8 else ""
        texts.append("values that differ: " + ", ".join(differ[:8]) + more)
    return "; ".join(texts)


def _values(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[float]:
    from ..engine import native_errors

    if info.strides is not None or not (info.dtype.name == "BF16" or info.dtype.name in _CODES):
        return
    with native_errors(InputRefused):
        data = bytes(checkpoint.source.read(info.offset, info.nbytes))
    if info.dtype.name == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    yield from struct.unpack(f"<{TOKENS}{_CODES.get(info.dtype.name, 'f')}", data)


def _fixed(checkpoint: Checkpoint, layout: Layout, settings: Settings) -> tuple[list[Piece], list[Dropped], list[str]]:
    state = {item.name: item for item in findings(checkpoint, layout)}
    identity = identity_formula()
    pieces: list[Piece] = []
    dropped = []
    for name, info in checkpoint.tensors.items():
        item = state.get(name)
        if item is None:
            pieces.append(single_piece(layout, settings, identity, info))
        elif item.state == "misplaced":
            dropped.append(Dropped(0, name, "misplaced position_ids"))
        elif item.state == "right":
            pieces.append(copied(0, info))
        else:
            pieces.append(_literal(name))
    pieces += [_literal(item.name) for item in state.values() if item.state == "missing"]
    notes = [f"'{printable(item.name)}': {item.text}; written as int64 0…76" for item in state.values()
             if item.state in ("missing", "wrong")]  # fmt: skip
    return pieces, dropped, notes or ([] if dropped else ["all position_ids were right; nothing had to be repaired"])


def _literal(name: str) -> Piece:
    return Piece(name, I64, (1, TOKENS), ADDED, whole(None, TOKENS, (Operand(1, I64, 0),)), "int64 0…76")
