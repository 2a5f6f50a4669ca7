"""How alike two adapters are: by what they make of the weights, module by module, whatever their kinds, ranks and
dialects. Factors say nothing: those of one effect differ by any invertible matrix between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..adapters import keys, names
from ..adapters.apply import LATENT, require_family
from ..adapters.apply import Checkpoint as Known
from ..adapters.arrays import Array, part_of
from ..adapters.pairing import Shapes, Slot, common_family, followed, naming_family, slots
from ..adapters.read import Adapter
from ..adapters.sums import ADDITIVE, LowRank, Term, bias_terms, effect, is_additive, shape_of, term, whole
from ..checkpoint import Checkpoint
from ..errors import InputRefused, printable
from ..layouts import detect
from .likeness import Likeness


class Side(NamedTuple):
    """What an adapter's module is. ``alpha`` is None where nothing states it: then the scale is 1."""

    kind: str
    rank: int | None
    alpha: float | None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f" rank {self.rank}"
        return self.kind + rank + ("" if self.alpha is None else f" alpha {self.alpha:g}")


@dataclass
class Layer:
    """A weight or bias that both adapters change. ``likeness`` is of ΔA and ΔB, the changes at strength 1."""

    name: str
    component: str
    a: Side
    b: Side
    likeness: Likeness

    def to_dict(self) -> dict[str, Any]:
        sides = {"a": self.a._asdict(), "b": self.b._asdict()}
        return {"name": self.name, "component": self.component, **sides, **numbers(self.likeness)}


@dataclass
class Effects:
    """Two adapters beside each other. ``left_out``: modules that can't be compared, and why: their effect depends on
    the weight (DoRA, OFT, …), which only a base model has."""

    family: str
    layers: list[Layer] = field(default_factory=list)
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether every change is the same."""
        odd = self.only_in_a or self.only_in_b or self.left_out
        return not odd and all(layer.likeness.relative_l2 == 0 for layer in self.layers)

    def by_component(self) -> dict[str, Likeness]:
        """The changes of each component as one vector."""
        sums: dict[str, Likeness] = {}
        for layer in self.layers:
            sums.setdefault(layer.component, Likeness()).add(layer.likeness)
        return sums

    def total(self) -> Likeness:
        """All changes as one vector."""
        found = Likeness()
        for likeness in self.by_component().values():
            found.add(likeness)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "equal": self.equal,
            "total": numbers(self.total()),
            "components": {name: numbers(found) for name, found in self.by_component().items()},
            "layers": [layer.to_dict() for layer in self.layers],
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "left_out": self.left_out,
        }


def numbers(likeness: Likeness) -> dict[str, Any]:
    """Those that mean something of changes, in JSON types."""
    wanted = ("cosine", "relative_l2", "a_norm", "b_norm", "difference_norm")
    found = likeness.to_dict()
    return {"layers": likeness.tensors, **{name: found[name] for name in wanted}}


def effects(
    adapters: tuple[Adapter, Adapter], base: Checkpoint | None, progress: Callable[[int, int], None] | None = None
) -> Effects:
    """The comparison of two adapters of one family, at strength 1. ``base``: a model for the kinds whose changes depend
    on the weight; InputRefused for one of another family."""
    work = _Work(adapters, base)
    found = slots(work.layout, adapters)
    for slot, members in followed(found, adapters, progress):
        work.one(slot, [[name for at, name in members if at == side] for side in (0, 1)])
    return work.found


class _Work:
    def __init__(self, adapters: tuple[Adapter, Adapter], base: Checkpoint | None) -> None:
        self.adapters, self.base = adapters, base
        self.layout = naming_family(adapters)
        family = common_family(adapters)
        self.shapes = Shapes(self.layout)
        self.known: Known | None = None
        if base is not None:
            layout = detect(base.tensors).layout
            if (layout.original or layout).adapters is None:
                raise InputRefused(
                    f"{printable(base.path)}: a base model is of Stable Diffusion 1, 2 or XL; this is {layout.title}",
                    code="family",
                    path=base.path,
                )
            for adapter in adapters:
                require_family(adapter, layout)
            self.layout, self.known = layout.original or layout, Known.of(layout, base.tensors)
        self.found = Effects(family.name if family else "")

    def one(self, slot: Slot, modules: Sequence[Sequence[str]]) -> None:
        """Compare what both adapters do to a module's weight and to its bias."""
        name, component = slot.name, names.component_of(slot.name) or "unknown"
        if slot.place is not None:
            name, component = f"{slot.place.component}.{slot.place.path}", slot.place.component
        if not all(modules):
            (self.found.only_in_a if modules[0] else self.found.only_in_b).append(name)
            return
        try:
            both = [self.terms(at, slot, modules[at]) for at in (0, 1)]
        except _NeedsWeight as missing:
            self.found.left_out[name] = str(missing)
            return
        for part in dict.fromkeys((*both[0], *both[1])):
            own = name if part == _WEIGHT else f"{name}.{part}"
            if part not in both[0] or part not in both[1]:
                (self.found.only_in_a if part in both[0] else self.found.only_in_b).append(own)
                continue
            a, b = (self.side(at, modules[at][0], part) for at in (0, 1))
            try:
                self.found.layers.append(Layer(own, component, a, b, alike(both[0][part], both[1][part])))
            except ValueError:
                self.found.left_out[own] = "for weights of two shapes"

    def terms(self, at: int, slot: Slot, modules: Sequence[str]) -> dict[str, list[Term]]:
        """What an adapter adds, by part. _NeedsWeight where that depends on a weight that isn't known."""
        adapter, found = self.adapters[at], dict[str, list[Term]]()
        for module in modules:
            kind = adapter.kind(module)
            if kind is not None:
                if is_additive(adapter, module):
                    shape = self.shapes.of(slot, shape_of(kind, adapter.shapes(module)))
                    own: Term = term(adapter, module, shape, 1.0)
                else:
                    own = self.on_weight(adapter, module, slot)
                found.setdefault(_WEIGHT, []).append(own)
            if keys.SET_BIAS in adapter.modules[module]:
                raise _NeedsWeight("a whole bias: the change depends on the base's")
            for _, bias in bias_terms(adapter, module, 1.0):
                found.setdefault(_BIAS, []).append(bias)
        return found

    def on_weight(self, adapter: Adapter, module: str, slot: Slot) -> Term:
        stored = slot.place and slot.place.weight and self.known and self.known.find(slot.place.weight)
        if not stored or self.base is None:
            kind = "DoRA" if (found := adapter.kind(module)) is None or found.formula in ADDITIVE else found.title
            raise _NeedsWeight(f"{kind}: the change depends on the weight")
        weight = part_of(self.base, *stored).astype(np.float32)
        try:
            return effect(adapter, module, weight)
        except InputRefused:
            if weight.ndim != 4 or weight.shape[1] <= LATENT:
                raise
            return effect(adapter, module, weight[:, :LATENT])  # of an inpainting model's first convolution

    def side(self, at: int, module: str, part: str) -> Side:
        adapter = self.adapters[at]
        kind = adapter.kind(module)
        if kind is None or part == _BIAS:
            return Side("bias", None, None)
        decomposed = " with DoRA" if any(each.startswith("magnitude") for each in adapter.modules[module]) else ""
        return Side(kind.name + decomposed, adapter.rank(module), adapter.alpha(module))


_WEIGHT, _BIAS = "weight", "bias"


class _NeedsWeight(Exception):
    """The effect depends on the weight."""


def alike(a: Sequence[Term], b: Sequence[Term]) -> Likeness:
    """⟨ΔA, ΔB⟩ and the norms, in float64. Low-rank changes never become matrices of the weight's size: with the QR
    decompositions of all up and of all down factors, side by side, each is a small matrix in the same two bases.
    ValueError for changes of weights of two shapes."""
    low = [each for each in (*a, *b) if isinstance(each, LowRank)]
    if len(low) == len(a) + len(b):
        upper = _triangle([each.factor * each.up.astype(np.float64) for each in low])
        lower = _triangle([each.down.T.astype(np.float64) for each in low])
        middle = sum(each.up.shape[1] for each in low[: len(a)])
        one = upper[:, :middle] @ lower[:, :middle].T
        other = upper[:, middle:] @ lower[:, middle:].T
        size = len(low[0].up) * low[0].down.shape[1]
    else:
        one, other = (sum(whole(each).reshape(-1) for each in terms) for terms in (a, b))  # type: ignore[misc]
        size = one.size
    difference = 0.0 if _same(a, b) else float(np.sum((one - other) ** 2))
    squares = (float(np.sum(one * other)), float(np.sum(one**2)), float(np.sum(other**2)))
    return Likeness(1, int(difference == 0), 1, size, 0, *squares, difference)


def _triangle(beside: Sequence[Array]) -> Array:
    """R of the QR decomposition of matrices side by side."""
    return np.linalg.qr(np.concatenate(beside, axis=1), mode="r")


def _same(a: Sequence[Term], b: Sequence[Term]) -> bool:
    """Whether both consist of the same numbers, so that no rounding of ours makes a difference."""
    return len(a) == len(b) and all(
        type(one) is type(other) and all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
        for one, other in zip(a, b, strict=True)
    )
