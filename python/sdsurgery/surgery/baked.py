"""Components in files of their own, such as a VAE, as candidates: which of them the mix has, unchanged or cast."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace as changed
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..adapters.arrays import values
from ..checkpoint import Checkpoint
from ..errors import InputRefused, printable
from ..layouts import Layout, detect
from ..outline import operand
from .cells import unit
from .gram import Gram
from .mixture import MISSING, noise
from .swaps import Swap

if TYPE_CHECKING:
    from ..dtypes import DType
    from ..settings import Settings

_COMPONENTS = ("vae", "text_encoder", "text_encoder_2")
_SAMPLE = 1 << 12  # elements of a tensor that tell whether it was cast


class Component(NamedTuple):
    """``file`` holds one component alone; in ``renamed`` its tensors have the mix's names. ``cast`` is the mix's dtype
    where that rounded the file's values."""

    component: str
    file: Checkpoint
    renamed: Checkpoint
    cast: DType | None = None


def part_of(mix: Checkpoint, layout: Layout, file: Checkpoint) -> Component | None:
    """The file as the one component of the mix that it holds; None for a model, and for what doesn't fit."""
    if detect(file.tensors).layout.network is not None:
        return None
    for component in _COMPONENTS:
        try:
            swap = Swap(mix, layout, component, 1, file)
            swap.judge(allow_missing=False)
        except InputRefused:
            continue
        if all(len(infos) == 1 for infos in swap.found.values()):
            renamed = file.borrowed()
            whole = all(name in mix for name in swap.found)  # else the mix lacks the component
            renamed.tensors = {name: infos[0].renamed(name) for name, infos in swap.found.items() if whole}
            return Component(component, file, renamed)
    return None


def baked(
    parts: Sequence[Component], mix: Checkpoint, layout: Layout, tensors: Sequence[Gram], first: int
) -> list[Component]:
    """Those of the parts, the candidates from ``first`` on, that are the mix's component; of several for one component
    the first. A component that a model among the candidates has, bit for bit in value, needs no part."""
    found: dict[str, Component] = {}
    for number, part in enumerate(parts, first):
        chosen = [each for each in tensors if layout.component(each.name) == part.component]
        of_models = any(all(each.has[i] and not each.products[i, i] for each in chosen) for i in range(first))
        if part.component in found or of_models or not chosen or not all(each.has[number] for each in chosen):
            continue
        energy = sum(float(each.products[number, number]) for each in chosen)
        rounding = sum(noise(each.square, each.elements, each.dtypes[:1]) for each in chosen)
        if energy == 0.0:
            found[part.component] = part
        elif energy <= MISSING * rounding and all(_rounds_to(part, mix, each.name) for each in chosen):
            found[part.component] = part._replace(cast=chosen[0].dtypes[0])
    return list(found.values())


def _rounds_to(part: Component, mix: Checkpoint, name: str) -> bool:
    """Whether the mix's values are those of the part, rounded to nearest."""
    info = mix.tensors[name]
    count = min(info.elements, _SAMPLE)
    ours, theirs = (
        values(file, operand(source, file.tensors[name]), count) for source, file in enumerate((mix, part.renamed))
    )
    steps = unit(ours, info.dtype)
    return steps is not None and bool((np.abs(theirs - ours) <= 0.5 * steps).all())


def dtype_for(parts: Sequence[Component], mix: Checkpoint, dtype: DType | None) -> DType | None:
    """The dtype that ``replace`` must be given; None where the parts' own is the mix's. ``dtype``: of all else."""
    needed = {
        mix.tensors[name].dtype
        for part in parts for name, info in part.renamed.tensors.items() if info.dtype is not mix.tensors[name].dtype
    }  # fmt: skip
    return dtype if needed == {dtype} else None


def command(made: str, parts: Sequence[Component], words: Sequence[str]) -> str:
    """The command ``made`` with a last step that puts the parts in; ``words``: its dtype."""
    if not parts:
        return made
    body = "BODY.safetensors" if "MERGED.safetensors" in made else "MERGED.safetensors"
    given = [word for part in parts for word in ("--component", part.component, "--with", part.file.path)]
    last = shlex.join(["sdsurgery", "replace", body, *given, *words, "-o", "OUT.safetensors"])
    return f"{made.removesuffix('OUT.safetensors')}{body} && {last}"


def put_in(path: str, parts: Sequence[Component], settings: Settings, word: str) -> None:
    """Give the model at ``path`` the parts."""
    from .components import replace

    body = f"{path}.body.safetensors"
    os.replace(path, body)
    replace(body, {part.component: part.file for part in parts}, changed(settings, dtype=word), out=path)
    os.remove(body)


def formula(parts: Sequence[Component], names: Sequence[str]) -> str:
    """What a formula says of the parts."""
    return "".join(f"; {part.component} of {name}" for part, name in zip(parts, names, strict=True))


def notes(parts: Sequence[Component], names: Sequence[str]) -> list[str]:
    return [
        f"{part.component} is that of {printable(name)}, "
        + (f"cast to {part.cast.name}" if part.cast is not None else "unchanged")
        for part, name in zip(parts, names, strict=True)
    ]
