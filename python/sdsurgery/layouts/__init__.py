"""Checkpoint families as rules: recognition, names and shapes, components, blocks, EMA twins, exact-copy keys.

Nothing is generated at import. A new family is one file in ``families/`` that registers its layouts. From these follow
the same families in diffusers' names, and the kinds of adapters that are made for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from ..discovery import module_names
from ..errors import UsageError, printable
from . import adapters, diffusers, families
from .base import REGISTRY, Encoder, Layout, LayoutTensor, Release, Traits
from .detect import Detection, conflict, detect, known_encoders, size_text, text_encoders
from .unknown import UNKNOWN

if TYPE_CHECKING:
    from ..metadata import Kind

for _family in module_names(families.__path__):
    import_module(f".families.{_family}", __name__)
diffusers.register_all()
adapters.register_all()

__all__ = [
    "UNKNOWN",
    "Detection",
    "Encoder",
    "Layout",
    "LayoutTensor",
    "Release",
    "Traits",
    "all_layouts",
    "conflict",
    "detect",
    "get",
    "keys_table",
    "kind_of",
    "known_encoders",
    "places_of_position_ids",
    "release",
    "text_encoders",
    "wrong_places_of_position_ids",
]


def all_layouts() -> tuple[Layout, ...]:
    """Every registered family in the order of recognition, without :data:`UNKNOWN`."""
    return tuple(REGISTRY)


def get(name: str) -> Layout:
    """The family of that name. Raises UsageError with close matches for an unknown name."""
    for layout in (*REGISTRY, UNKNOWN):
        if layout.name == name:
            return layout
    from ..suggest import did_you_mean

    known = [layout.name for layout in REGISTRY]
    hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
    raise UsageError(f"unknown layout '{printable(name)}'{hint}", code="unknown_name")


def release(architecture: str) -> Release | None:
    """What the families know of a ModelSpec id: the release with the longest beginning of it, None without any."""
    fitting = (item for layout in REGISTRY for item in layout.releases if architecture.startswith(item.architecture))
    return max(fitting, key=lambda item: len(item.architecture), default=None)


def kind_of(layout: Layout, stated: str | None = None) -> Kind:
    """What an output's metadata say of its family. ``stated``: the ModelSpec id where the family has none."""
    from ..metadata import Kind  # with json, which recognition does without

    architecture = layout.architecture or stated
    published = release(architecture) if architecture else None
    return Kind(architecture, layout.implementation, published.resolution if published else "", layout.task)


def places_of_position_ids() -> frozenset[str]:
    """Every full name under which some family has ``position_ids``.

    The bare names of diffusers' files are left out: they do not show where in a checkpoint the tensor belongs.
    """
    parts = [part for layout in REGISTRY for part in layout.parts if part.prefix and part.position_ids]
    return frozenset(f"{part.prefix}{part.position_ids}" for part in parts)


@cache
def wrong_places_of_position_ids() -> tuple[str, ...]:
    """Beginnings of names under which careless converters put ``position_ids``: inside an OpenCLIP encoder."""
    parts = (part for layout in REGISTRY for part in layout.parts if part.openclip and part.prefix)
    return tuple(dict.fromkeys(f"{part.prefix}model.transformer.text_model." for part in parts))


def keys_table(name: str, *, ema: bool = False) -> Iterator[str]:
    """Lines of the family's table: a header, then key, shape, dtype class, component and block, tab-separated.

    The form of the reference tables: module order, shapes as ``320x4x3x3`` or ``scalar``, ``-`` for no block. Raises
    UsageError for an unknown family and for one whose tensors are not known.
    """
    try:
        rows = get(name).tensors(ema=ema)
    except ValueError as error:
        raise UsageError(str(error)) from None
    yield "key\tshape\tdtype_class\tcomponent\tblock"
    for row in rows:
        yield "\t".join((row.key, size_text(row.shape), row.dtype_class, row.component, row.block or "-"))
