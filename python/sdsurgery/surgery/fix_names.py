"""--fix-names: old and foreign tensor names of an input read as the names that its family has today.

It happens where an input is opened, so a verb sees only the family's names: a merge pairs an old file with a new one,
and every output is written in them. One thing is rearranged: a text projection under its diffusers name, which is the
transposed matrix. docs/layouts.md lists what is understood.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, number_of, printable
from ..files import native_errors
from ..layouts import Layout, aliases, detect, lone_openclip
from .matching import transposed, without_unit_tail


def modernise(checkpoint: Checkpoint) -> None:
    """Give the checkpoint's tensors their family's names, and those that are stored in another form their shape.

    Adds what was done to the notes. InputRefused when two tensors would get one name and differ.
    """
    found = detect(checkpoint.tensors)
    layout = found.layout
    if (encoder := lone_openclip.names(found, checkpoint.tensors)) is not None:
        _as_openclip(checkpoint, encoder)
        return
    model = layout.original if layout.original is not None and layout.components & _ONE_FILE else layout
    listed = {tensor.key: tensor.shape for tensor in model.tensors()} if model.parts else {}
    renamed: dict[str, TensorInfo] = {}
    former: dict[str, str] = {}
    thirds: dict[str, dict[int, TensorInfo]] = {}
    for name, stored in checkpoint.tensors.items():
        part = aliases.joined(name, model)
        if part is not None:
            thirds.setdefault(part[0], {})[part[1]] = stored
            former.setdefault(part[0], name)
            renamed.setdefault(part[0], stored)  # keeps the place
            continue
        modern, info = aliases.canonical(name, model), stored
        if aliases.needs_transpose(modern):
            modern, info = modern.removesuffix(".weight"), transposed(stored)
        if modern in renamed:
            if not _is_same(checkpoint, renamed[modern], info):
                _refuse_twice(checkpoint, former[modern], name, modern)
            checkpoint.notes.append(f"'{printable(name)}' holds what '{printable(modern)}' holds, and was left out")
            continue
        former[modern] = name
        renamed[modern] = TensorInfo(modern, info.offset, info.form._replace(shape=_shape(info, listed.get(modern))))
    for modern, parts in thirds.items():
        renamed[modern] = _joined(checkpoint, modern, parts)
    _note(checkpoint, model, renamed, former, thirds)
    checkpoint.tensors = renamed
    checkpoint.unusable = {aliases.canonical(name, model): why for name, why in checkpoint.unusable.items()}


def _as_openclip(checkpoint: Checkpoint, encoder: lone_openclip.Names) -> None:
    """Give an encoder alone the names that open_clip has: q, k and v joined, the projection the other way round."""
    renamed: dict[str, TensorInfo] = {}
    thirds: dict[str, dict[int, TensorInfo]] = {}
    count = 0
    for name, stored in checkpoint.tensors.items():
        place = encoder.place(name)
        if place is None:
            renamed[name] = stored
            continue
        count += 1
        if place.name in renamed and place.third is None:
            _refuse_twice(checkpoint, renamed[place.name].name, name, place.name)
        if place.third is not None:
            thirds.setdefault(place.name, {})[place.third] = stored
        info = transposed(stored) if place.flipped else stored
        renamed.setdefault(place.name, info.renamed(place.name))
    for modern, parts in thirds.items():
        renamed[modern] = _joined(checkpoint, modern, parts)
    checkpoint.tensors = renamed
    checkpoint.notes.append(
        f"{count} names of transformers are now open_clip's, with {len(thirds)} tensors joined of q, k and v"
    )


_ONE_FILE = frozenset(("unet", "vae"))
"""Components whose files in diffusers' names are written under the original ones."""


def _refuse_twice(checkpoint: Checkpoint, first: str, second: str, modern: str) -> NoReturn:
    raise InputRefused(
        f"{printable(checkpoint.path)}: '{printable(first)}' and '{printable(second)}' are two names of one tensor "
        f"('{printable(modern)}'); drop one of them (prune(drop_keys=…)) before fix_names=True",
        code="extra_tensors",
        tensor=second,
        path=checkpoint.path,
    )


def _is_same(checkpoint: Checkpoint, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors hold the same matrix, each read as its shape and strides say."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with native_errors(InputRefused):
        return one.offset == other.offset or checkpoint.read(one) == checkpoint.read(other)


def _joined(checkpoint: Checkpoint, name: str, thirds: dict[int, TensorInfo]) -> TensorInfo:
    """q, k and v of one attention as the matrix that the family has. InputRefused unless all three are there, alike."""
    infos = [thirds[number] for number in sorted(thirds)]
    if len(infos) != 3 or len({(info.dtype, info.shape) for info in infos}) != 1 or not infos[0].shape:
        found = ", ".join(f"'{printable(info.name)}' {info.dtype.name} {list(info.shape)}" for info in infos)
        raise InputRefused(
            f"{printable(checkpoint.path)}: '{printable(name)}' needs q, k and v of one dtype and shape; found {found}",
            code="missing_tensors" if len(infos) != 3 else "shape",
            tensor=infos[0].name,
            path=checkpoint.path,
        )
    if any(info.encoded is not None for info in infos):
        raise InputRefused(
            f"{printable(checkpoint.path)}: '{printable(name)}' would be joined of encoded q, k and v; cast the file "
            "to fp16 first",
            code="encoded",
            tensor=infos[0].name,
            path=checkpoint.path,
        )
    rows, *rest = infos[0].shape
    form = infos[0].form._replace(
        shape=(3 * rows, *rest), nbytes=sum(info.nbytes for info in infos), parts=tuple(infos)
    )
    return TensorInfo(name, infos[0].offset, form)


def _shape(info: TensorInfo, listed: tuple[int, ...] | None) -> tuple[int, ...]:
    """The family's shape where the file's differs from it by dimensions of 1 only: ``[o,i]`` for ``[o,i,1,1]``, and the
    other way round, or ``[o,1,1]`` for ``[o]``."""
    if listed is None or info.strides is not None or len(listed) == len(info.shape) or info.dtype.kind != "float":
        return info.shape
    if len(listed) == 4 and len(without_unit_tail(info.shape)) == 2:  # whatever its size
        return (*without_unit_tail(info.shape), 1, 1)
    given = without_unit_tail(info.shape)
    return given if len(given) == len(listed) else info.shape


def _note(
    checkpoint: Checkpoint,
    layout: Layout,
    renamed: dict[str, TensorInfo],
    former: dict[str, str],
    thirds: Collection[str],
) -> None:
    if thirds:
        name = printable(next(iter(thirds)))
        checkpoint.notes.append(f"{number_of(len(thirds), 'tensor')} joined of q, k and v in three: {name}, …")
    changed = [(old, new) for new, old in former.items() if old != new]
    if changed:
        old, new = (printable(name) for name in changed[0])
        more = ", …" if len(changed) > 1 else ""
        checkpoint.notes.append(f"{number_of(len(changed), 'name')} repaired: {old} is now {new}{more}")
    before = checkpoint.tensors
    flipped = [name for name in renamed if aliases.transposed(name) == aliases.canonical(former[name], layout)]
    reshaped = [name for name, info in renamed.items() if info.shape != before[former[name]].shape]
    reshaped = [name for name in reshaped if name not in flipped and name not in thirds]
    if reshaped:
        checkpoint.notes.append(
            f"{number_of(len(reshaped), 'tensor')} got the shape that {layout.name} has: {reshaped[0]}"
        )
    for name in flipped:
        checkpoint.notes.append(f"'{printable(former[name])}' was the transposed matrix of '{printable(name)}'")
