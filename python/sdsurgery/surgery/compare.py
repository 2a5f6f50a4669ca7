"""compare: what two checkpoints have in common and how far apart their weights are, in one pass over both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import engine
from ..adapters.read import adapter_of, weights_in
from ..backends import Options, Reduced
from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import BY_NAME, U8
from ..errors import UsageError, number_of, printable
from ..layouts import UNKNOWN, Layout, conflict, detect
from ..layouts.aliases import canonical
from ..layouts.kinds import KINDS, kind
from ..outline import COMPARED, Outline, Piece, operand, whole
from ..plan import Reduction
from ..settings import Settings
from .common import Input, close_all, open_all, open_input
from .likeness import Likeness
from .matching import in_names_of, without_unit_tail

if TYPE_CHECKING:
    from .adapter_likeness import Effects


class Place(NamedTuple):
    """Where a tensor belongs: component, merge block (``-`` for none) and kind of layer."""

    component: str
    block: str
    kind: str


@dataclass
class TensorComparison:
    """One tensor that both files have in one shape."""

    name: str
    place: Place
    shape: tuple[int, ...]
    a_dtype: str
    b_dtype: str
    equal: bool
    likeness: Likeness  # of this tensor, weight or not

    def to_dict(self) -> dict[str, Any]:
        own = {"name": self.name, **self.place._asdict(), "shape": list(self.shape)}
        return own | {"a_dtype": self.a_dtype, "b_dtype": self.b_dtype, **self.likeness.to_dict(), "equal": self.equal}


@dataclass(repr=False)
class Comparison:
    """What ``compare`` found. ``equal``: the same names, shapes, dtypes and bits (metadata is not compared).

    ``groups`` is by component, block and kind of layer; ``by`` sums them up. ``shape_differs`` and ``dtype_differs``
    give A's and B's. Tensors of two shapes are not compared further, tensors of two dtypes by their values.
    ``effects``, of two adapters, compares what they change.
    """

    a: str
    b: str
    a_family: str
    b_family: str
    total: Likeness = field(default_factory=Likeness)
    groups: dict[Place, Likeness] = field(default_factory=dict)
    tensors: list[TensorComparison] = field(default_factory=list)
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    shape_differs: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    dtype_differs: dict[str, tuple[str, str]] = field(default_factory=dict)
    effects: Effects | None = None
    notes: list[str] = field(default_factory=list)
    bytes_read: int = 0
    seconds: float = 0.0
    how: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        verdict = "equal" if self.equal else f"{self.total.equal} of {self.total.tensors} tensors equal"
        odd = len(self.only_in_a) + len(self.only_in_b) + len(self.shape_differs)
        return f"<Comparison of {self.a} and {self.b}: {verdict}, {odd} in one only or of two shapes>"

    @property
    def equal(self) -> bool:
        odd = self.only_in_a or self.only_in_b or self.shape_differs
        return not odd and self.total.equal == self.total.tensors

    @property
    def verdict(self) -> str:
        """In a line: whether they are equal, and how much is. Of two adapters it is about what they change."""
        total = self.total
        if self.equal:
            return f"equal: {number_of(total.tensors, 'tensor')}, the same names, shapes, dtypes and bits"
        if self.effects is None:
            return f"different: {total.equal} of {total.tensors} tensors that both have in one shape are bit-equal"
        count = len(self.effects.layers)
        if self.effects.equal:
            return f"equal in effect: all {count} changes are the same; the files differ in names, dtypes or factors"
        same = sum(layer.likeness.relative_l2 == 0 for layer in self.effects.layers)
        return f"different: {same} of {count} changes that both make are the same"

    def by(self, *names: str) -> dict[tuple[str, ...], Likeness]:
        """The groups summed up by some of ``component``, ``block`` and ``kind``, in order: ``by("component")``."""
        sums: dict[tuple[str, ...], Likeness] = {}
        for place, likeness in self.groups.items():
            sums.setdefault(tuple(getattr(place, name) for name in names), Likeness()).add(likeness)
        return sums

    def plot(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a heat map (PNG) of the relative L2 distance, blocks × kinds of layer. See ``heatmap.write``."""
        from ..report import heatmap

        heatmap.write(self, path, overwrite=overwrite)

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "a_family": self.a_family,
            "b_family": self.b_family,
            "equal": self.equal,
            "total": self.total.to_dict(),
            "components": _rows(self.by("component"), "component"),
            "blocks": _rows(self.by("component", "block"), "component", "block"),
            "kinds": _rows(self.by("component", "block", "kind"), "component", "block", "kind"),
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "shape_differs": {name: {"a": a, "b": b} for name, (a, b) in self.shape_differs.items()},
            "dtype_differs": {name: {"a": a, "b": b} for name, (a, b) in self.dtype_differs.items()},
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "effects": None if self.effects is None else self.effects.to_dict(),
            "notes": self.notes,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
            "how": self.how,
        }


def _rows(sums: dict[tuple[str, ...], Likeness], *names: str) -> list[dict[str, Any]]:
    return [{**dict(zip(names, key, strict=True)), **likeness.to_dict()} for key, likeness in sums.items()]


def compare(a: Input, b: Input, settings: Settings, *, base: Input | None = None) -> Comparison:
    """``sdsurgery.compare``."""
    opened = open_all([_file(a), _file(b)], settings)
    try:
        effects = _effects(opened, base, settings)
        ours, theirs = (detect(checkpoint.tensors) for checkpoint in opened)
        layout = theirs.layout if ours.layout is UNKNOWN else ours.layout
        result = Comparison(opened[0].path, opened[1].path, ours.layout.name, theirs.layout.name, effects=effects)
        if settings.fix_names:
            opened[1].tensors, found = in_names_of(opened[0].tensors, opened[1].tensors, layout)
            opened[1].tensors = {name: info.renamed(name) for name, info in opened[1].tensors.items()}
            result.notes += [f"B: {text}" for text in found]
        pairs = _pair(opened[0], opened[1], result)
        if not pairs and not settings.fix_names and effects is None:
            result.notes.append(
                "no tensor has the same name in both files; fix_names=True also pairs old and prefixed names"
            )
        if effects is not None and effects.left_out and base is None:
            count = len(effects.left_out)
            result.notes.append(
                f"what is not compared ({number_of(count, 'module')}) depends on a base model; base=FILE takes one"
            )
        is_part = settings.fix_names and bool(pairs) and not (result.only_in_a and result.only_in_b)
        different = None if is_part or effects is not None else conflict(ours, theirs)  # a VAE and a model, say
        if different:
            result.notes.append(f"different families, compared by name: {different}")
        placed = _outline(opened, pairs).unwritten()
        plan = placed.plan
        with placed.names_in_errors():
            outcome = engine.examine(plan, placed.sources(), Options.of(settings), settings.callback, settings.backend)
        reduced = placed.by_name(outcome.reduced)
        places = Places(layout, (*opened[0].tensors, *result.only_in_b))
        for pair in pairs:
            name = pair[0].name
            shown = _compared(*pair, places.of(name), reduced.get(name, Reduced()))
            _enter(result, shown, weight=not layout.exact_copy(name))
        result.groups = {place: result.groups[place] for place in sorted(result.groups, key=places.rank)}
        for likeness in result.groups.values():
            result.total.add(likeness)
        result.notes += _notes(opened, layout, result)
        if "fallback" in outcome.how:
            result.notes.append(f"done by the backend {outcome.how['backend']}, because: {outcome.how['fallback']}")
        result.bytes_read, result.seconds, result.how = plan.bytes_to_read(), outcome.seconds, outcome.how
        return result
    finally:
        close_all(opened)


def _file(given: Input) -> Input:
    """A folder as peft writes it stands for the adapter in it."""
    return (weights_in(given) or given) if isinstance(given, str | os.PathLike) else given


def _effects(opened: Sequence[Checkpoint], base: Input | None, settings: Settings) -> Effects | None:
    """What two adapters of one family change, compared. UsageError for a base beside other files."""
    one, other = (adapter_of(checkpoint) for checkpoint in opened)
    if one is None or other is None or (one.base and other.base and one.base != other.base):
        if base is not None:
            raise UsageError("base= is for two adapters of one family", code="conflict")
        return None
    from .adapter_likeness import effects

    if base is None:
        return effects((one, other), None, settings.callback)
    with open_input(base, settings) as model:
        return effects((one, other), model, settings.callback)


def _pair(a: Checkpoint, b: Checkpoint, result: Comparison) -> list[tuple[TensorInfo, TensorInfo]]:
    """The tensors that both have in one shape, in A's order; what differs in the headers goes into the result."""
    pairs = []
    for name, first in a.tensors.items():
        second = b.tensors.get(name)
        if second is None:
            result.only_in_a.append(name)
            continue
        if first.dtype is not second.dtype:
            result.dtype_differs[name] = (first.dtype.name, second.dtype.name)
        if without_unit_tail(first.shape) != without_unit_tail(second.shape):
            result.shape_differs[name] = (list(first.shape), list(second.shape))
        else:
            pairs.append((first, second))
    result.only_in_b = [name for name in b.tensors if name not in a.tensors]
    return pairs


def _outline(opened: list[Checkpoint], pairs: Iterable[tuple[TensorInfo, TensorInfo]]) -> Outline:
    """One reduction for each pair; of a dtype whose values we don't know, over its bytes, if both have it."""
    pieces = []
    for first, second in pairs:
        operands = [operand(k, info) for k, info in enumerate((first, second))]
        dtype, count = first.dtype, first.elements
        if not _has_values(first, second):
            if first.dtype is not second.dtype:
                continue
            dtype, count = U8, first.nbytes
            operands = [item._replace(dtype=U8) for item in operands]
        pieces.append(Piece(first.name, dtype, (count,), COMPARED, whole(Reduction(), count, operands)))
    return Outline("compare", tuple(opened), tuple(pieces))


def _has_values(first: TensorInfo, second: TensorInfo) -> bool:
    return first.dtype.native is not None and second.dtype.native is not None


def _compared(first: TensorInfo, second: TensorInfo, place: Place, found: Reduced) -> TensorComparison:
    valued = _has_values(first, second)
    equal = first.dtype is second.dtype and found.equal == (first.elements if valued else first.nbytes)
    likeness = Likeness(1, int(equal))
    if valued:
        likeness = Likeness(1, int(equal), 1, first.elements, found.equal, *found[:9])
    return TensorComparison(first.name, place, first.shape, first.dtype.name, second.dtype.name, equal, likeness)


def _enter(result: Comparison, shown: TensorComparison, *, weight: bool) -> None:
    """Put one tensor into the list and its group; into the group's numbers only if it is a weight."""
    floats = all(BY_NAME[name].kind == "float" for name in (shown.a_dtype, shown.b_dtype))
    counted = shown.likeness if weight and floats else Likeness(1, int(shown.equal))
    result.tensors.append(shown)
    result.groups.setdefault(shown.place, Likeness()).add(counted)


class Places:
    """The places of a layout's tensors. A file without known components (a LoRA, an unknown layout) is one group."""

    def __init__(self, layout: Layout, names: Iterable[str]) -> None:
        self._layout = layout
        twins = ((layout.ema_twin(name), name) for name in names)
        self._shadowed = {twin: name for twin, name in twins if twin is not None}
        order = dict.fromkeys(row.component for row in layout.tensors()) if layout.parts else {}
        self._components = {component: number for number, component in enumerate(order)}
        self._blocks = {block: number for number, block in enumerate(layout.blocks)}

    def of(self, name: str) -> Place:
        layer = kind(self._shadowed.get(name, name))
        if not self._layout.parts:
            return Place("all", "-", layer)
        return Place(self._layout.component(name), self._layout.block(name) or "-", layer)

    def rank(self, place: Place) -> tuple[int, str, int, int]:
        """Sorts places: components in module order, then blocks, then kinds."""
        number = self._components.get(place.component, len(self._components))
        return number, place.component, self._blocks.get(place.block, len(self._blocks)), KINDS.index(place.kind)


def _notes(opened: list[Checkpoint], layout: Layout, result: Comparison) -> list[str]:
    """Notes on what does not count as a difference."""
    a, b = opened
    notes = [f"{who}: {note}" for who, item in (("A", a), ("B", b)) for note in item.notes]
    if a.format != b.format:
        notes.append(f"A is {a.format}, B is {b.format}")
    metadata = [item.metadata() for item in opened]
    keys = [key for key in {**metadata[0], **metadata[1]} if metadata[0].get(key) != metadata[1].get(key)]
    if keys:
        some = ", ".join(printable(key, 60) for key in keys[:5]) + (", …" if len(keys) > 5 else "")
        notes.append(f"metadata differs, which is not compared ({len(keys)} entries: {some})")
    unit = sum(tensor.shape != b.tensors[tensor.name].shape for tensor in result.tensors)
    if unit:
        notes.append(
            f"{number_of(unit, 'tensor')} of shape [o,i,1,1] in one file and [o,i] in the other: the same matrix"
        )
    renamed = {canonical(name, layout) for name in result.only_in_a} & {
        canonical(name, layout) for name in result.only_in_b
    }
    if renamed:
        notes.append(
            f"{number_of(len(renamed), 'tensor')} under another spelling of the name in B (fix_names=True pairs them)"
        )
    return notes
