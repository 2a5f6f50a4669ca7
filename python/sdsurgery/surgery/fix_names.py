"""--fix-names: old and foreign tensor names of an input read as the names that its family has today.

It happens where an input is opened, so a verb sees only the family's names: a merge pairs an old file with a new one,
and every output is written in them. One thing is rearranged: a text projection under its diffusers name, which is the
transposed matrix. docs/layouts.md lists what is understood.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, printable
from ..layouts import Layout, aliases, detect
from .matching import transposed, without_unit_tail


def modernise(checkpoint: Checkpoint) -> None:
    """Give the checkpoint's tensors their family's names, and 1×1 convolutions stored as matrices their 4-D shape.

    Adds what was done to the notes. InputRefused when two tensors would get one name.
    """
    layout = detect(checkpoint.tensors).layout
    listed = {tensor.key: tensor.shape for tensor in layout.tensors()} if layout.parts else {}
    renamed: dict[str, TensorInfo] = {}
    former: dict[str, str] = {}
    for name, stored in checkpoint.tensors.items():
        modern, info = aliases.canonical(name, layout), stored
        if aliases.needs_transpose(modern):
            modern, info = modern.removesuffix(".weight"), transposed(stored)
        if modern in renamed:
            raise InputRefused(
                f"{printable(checkpoint.path)}: '{printable(former[modern])}' and '{printable(name)}' are two names of "
                f"one tensor ('{printable(modern)}'); drop one of them (prune(drop_keys=…)) before fix_names=True",
                code="extra_tensors",
                tensor=name,
                path=checkpoint.path,
            )
        former[modern] = name
        renamed[modern] = info._replace(name=modern, shape=_shape(info, listed.get(modern)))
    _note(checkpoint, layout, renamed, former)
    checkpoint.tensors = renamed
    checkpoint.unusable = {aliases.canonical(name, layout): why for name, why in checkpoint.unusable.items()}


def _shape(info: TensorInfo, listed: tuple[int, ...] | None) -> tuple[int, ...]:
    """``[o,i]`` as ``[o,i,1,1]`` where the family has that, and the other way round."""
    if listed is None or info.strides is not None or len(listed) == len(info.shape):
        return info.shape
    given = without_unit_tail(info.shape)
    return (*given, 1, 1) if len(listed) == 4 and len(given) == 2 else given


def _note(checkpoint: Checkpoint, layout: Layout, renamed: dict[str, TensorInfo], former: dict[str, str]) -> None:
    changed = [(old, new) for new, old in former.items() if old != new]
    if changed:
        old, new = (printable(name) for name in changed[0])
        more = ", …" if len(changed) > 1 else ""
        checkpoint.notes.append(f"{len(changed)} names repaired: {old} is now {new}{more}")
    before = checkpoint.tensors
    flipped = [name for name in renamed if aliases.transposed(name) == aliases.canonical(former[name], layout)]
    reshaped = [name for name, info in renamed.items() if info.shape != before[former[name]].shape]
    reshaped = [name for name in reshaped if name not in flipped]
    if reshaped:
        checkpoint.notes.append(f"{len(reshaped)} 1×1 convolutions got the shape that {layout.name} has: {reshaped[0]}")
    for name in flipped:
        checkpoint.notes.append(f"'{printable(former[name])}' was the transposed matrix of '{printable(name)}'")
