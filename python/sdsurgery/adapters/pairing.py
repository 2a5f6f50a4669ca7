"""Which modules of several adapters change the same weight, whatever dialects their names are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from ..errors import InputRefused, printable
from ..layouts import Layout, all_layouts
from ..layouts.diffusers import transformed
from . import names
from .names import Place
from .read import Adapter, in_words
from .writing import layout_of


class Slot(NamedTuple):
    """A module of the family, or one of an unknown name."""

    place: Place | None
    name: str  # in the first file that has it


def common_family(adapters: Sequence[Adapter]) -> Layout | None:
    """The family that the adapters are made for; None where nothing shows it. InputRefused when they are for two."""
    bases = {adapter.base: adapter for adapter in adapters if adapter.base}
    if len(bases) > 1:
        (one, first), (other, second) = list(bases.items())[:2]
        raise InputRefused(
            f"{printable(first.path)} is for {in_words(one)} ({first.evidence}), {printable(second.path)} for "
            f"{in_words(other)} ({second.evidence})",
            code="family",
            path=second.path,
        )
    return layout_of(next(iter(bases))) if bases else None


def naming_family(adapters: Sequence[Adapter]) -> Layout | None:
    """The family by whose names modules are paired and written: that which the adapters are made for, or, where nothing
    shows it (of SD 1 and SD 2 most names are the same), the first in which most of the modules are found. None where
    none is. InputRefused as ``common_family``."""
    stated = common_family(adapters)
    if stated is not None:
        return stated
    families = [each for each in all_layouts() if each.adapters and not each.variant_of and each.original is None]
    modules = [module for adapter in adapters for module in adapter.modules]
    counts = [sum(bool(names.find(each, module)) for module in modules) for each in families]
    return families[counts.index(max(counts))] if any(counts) else None


def slots(layout: Layout | None, adapters: Sequence[Adapter]) -> dict[Slot, list[tuple[int, str]]]:
    """The (number of the adapter, name of its module) that belong together."""
    known: dict[Place | str, Slot] = {}
    found: dict[Slot, list[tuple[int, str]]] = {}
    for at, adapter in enumerate(adapters):
        for module in adapter.modules:
            places = names.find(layout, module) if layout else ()
            place = places[0] if places else None
            slot = known.setdefault(place or module, Slot(place, module))
            found.setdefault(slot, []).append((at, module))
    return found


def followed(
    found: Mapping[Slot, list[tuple[int, str]]],
    adapters: Sequence[Adapter],
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Slot, list[tuple[int, str]]]]:
    """The modules one after the other; ``progress`` hears the bytes of those that are done, and of all."""
    sizes = [
        sum(info.nbytes for at, module in members for info in adapters[at].modules[module].values())
        for members in found.values()
    ]
    done, total = 0, sum(sizes)
    for each, size in zip(found.items(), sizes, strict=True):
        yield each
        done += size
        if progress is not None:
            progress(done, total)


class Shapes:
    """The shapes of a family's weights, as adapters know them."""

    def __init__(self, layout: Layout | None) -> None:
        self._known = {tensor.key: tensor.shape for tensor in layout.tensors()} if layout else {}

    def of(self, slot: Slot, own: tuple[int, ...]) -> tuple[int, ...]:
        """The family's shape of the weight, where it has as many elements as the module's parts show (``own``)."""
        if slot.place is not None and slot.place.weight is not None:
            known = transformed(self._known[slot.place.weight.key], slot.place.weight.transform)
            if prod(known) == prod(own) or not own:
                return known
        return own


def same_weight(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes may be of one weight: a kernel may lie flat within the inputs, and 1×1 be left out."""
    return one[:1] == other[:1] and prod(one) == prod(other)
