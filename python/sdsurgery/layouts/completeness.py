"""What a file lacks of its family's tensors, has in another form, or has beside them, component by component."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple, Protocol

from ..errors import printable
from . import aliases, names
from .base import Layout
from .shapes import Shape

_OWN = frozenset(("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "depth", "depth_estimator"))
"""Components that a loader fills from the file; a file may hold any of them and none of the others."""


class Shaped(Protocol):
    """Anything with the shape of a tensor."""

    @property
    def shape(self) -> Shape: ...


class Part(NamedTuple):
    """One component: how many tensors the family lists, how many of them the file has, and which it lacks."""

    component: str
    expected: int
    found: int
    absent: tuple[str, ...]


class Completeness(NamedTuple):
    """What of a family's tensors a file has.

    ``parts``: the components of which it has some. ``lacking``: those of which it has none, with their numbers of
    tensors. ``misshapen``: tensors of another shape, as (name in the file, shape found, shape expected). ``extra``:
    names of the file that belong to such a component and are not listed.
    """

    parts: tuple[Part, ...]
    lacking: Mapping[str, int]
    misshapen: tuple[tuple[str, Shape, Shape], ...]
    extra: tuple[str, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Every tensor that a component lacks of which the file has others."""
        return tuple(name for part in self.parts for name in part.absent)

    @property
    def incomplete(self) -> bool:
        return any(part.absent for part in self.parts)

    def text(self) -> str:
        """``unet: 682 of 686 tensors, absent: …``, component by component; nothing for a complete file."""
        return "; ".join(
            f"{part.component}: {part.found} of {part.expected} tensors, absent: {_some(part.absent)}"
            for part in self.parts
            if part.absent
        )

    def lines(self) -> list[str]:
        """One line for each kind of defect."""
        lines = [f"incomplete: {text}" for text in filter(None, [self.text()])]
        if self.misshapen:
            name, found, expected = self.misshapen[0]
            more = f", … ({len(self.misshapen)} in all)" if len(self.misshapen) > 1 else ""
            units = all(len(_wide(one)) == len(_wide(other)) for _, one, other in self.misshapen)
            advice = " (cast(fix_names=True) repairs it)" if units and len(found) != len(expected) else ""
            lines.append(f"shapes: {printable(name)} is {list(found)}, {list(expected)} expected{more}{advice}")
        return lines


def _wide(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def completeness(tensors: Mapping[str, Shaped], layout: Layout) -> Completeness:
    """Compare a file's names and shapes with what its family lists. Nothing is found for a family that lists nothing.

    Sizes are compared only in a component most of whose sizes are the family's: a file of reduced size is not wrong.
    """
    listed = _listed(layout)
    if not listed:
        return Completeness((), {}, (), ())
    held: dict[str, str] = {}
    extra, thirds = [], set()
    for name in tensors:
        if name in listed:  # as nearly all are
            if held.setdefault(name, name) != name:
                thirds.add(name)
            continue
        key = _key(name, layout, listed)
        if key in listed:
            if held.setdefault(key, name) != name or aliases.joined(name, layout):
                thirds.add(name)
        elif layout.component(name) in _OWN and not names.is_position_ids(name) and not names.is_scale(name):
            extra.append(name)
    parts, lacking, misshapen = [], {}, []
    for component, rows in _components(layout).items():
        if layout.original is not None and component not in ("unet", "vae", "depth_estimator"):
            continue  # whose names two encoders share
        own = [key for key in rows if key in held]
        if not own:
            lacking[component] = len(rows)
            continue
        absent = tuple(key for key in rows if key not in held and not layout.optional(key))
        expected = len(own) + len(absent)
        parts.append(Part(component, expected, len(own), absent))
        misshapen += _misshapen(
            {held[key]: (tuple(tensors[held[key]].shape), listed[key]) for key in own if held[key] not in thirds}
        )
    return Completeness(tuple(parts), lacking, tuple(misshapen), tuple(extra))


def _key(name: str, layout: Layout, listed: Mapping[str, Shape]) -> str:
    """The listed name of a tensor: its canonical one, that of its transposed matrix or of its whole."""
    key = aliases.canonical(name, layout)
    if key in listed:
        return key
    other = aliases.transposed(key)
    if other is not None and other in listed:
        return other
    part = aliases.joined(name, layout)
    return key if part is None else part[0]


def _misshapen(found: Mapping[str, tuple[Shape, Shape]]) -> list[tuple[str, Shape, Shape]]:
    differing = [(name, shape, expected) for name, (shape, expected) in found.items() if shape != expected]
    if 2 * len(differing) > len(found):
        return [item for item in differing if len(item[1]) != len(item[2])]
    return differing


@cache
def _listed(layout: Layout) -> dict[str, Shape]:
    if not layout.parts:
        return {}
    return {row.key: row.shape for row in layout.tensors() if row.component in _OWN}


@cache
def _components(layout: Layout) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for row in layout.tensors():
        if row.component in _OWN and row.dtype_class == "float":
            found.setdefault(row.component, []).append(row.key)
    return {component: tuple(keys) for component, keys in found.items()}


def _some(keys: tuple[str, ...]) -> str:
    few = 4 if len(keys) <= 8 else 1  # of many the number says more than names
    shown = ", ".join(printable(key) for key in keys[:few])
    return shown + (f", … ({len(keys)} in all)" if len(keys) > few else "")
