"""What an adapter does to a checkpoint: for every tensor the modules that change it, and what becomes of every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ..checkpoint import TensorInfo
from ..errors import InputRefused, printable
from ..layouts import Layout
from ..layouts import names as layout_names
from ..operands.modules import Module
from ..outline import Region, operand
from . import keys, names
from .kinds import OF_BIAS, Fitted
from .names import Place, Slot
from .read import Adapter, in_words

Strength = Callable[[Place, str], float]
"""(place, the module's name in the file) -> how much of the module is applied."""

LATENT = 4
"""Input channels of a plain model's first convolution, which inpainting models have more of."""


class Change(NamedTuple):
    """A module that changes rows ``first`` to ``first + count`` of a tensor, and its factors."""

    first: int
    count: int  # type: ignore[assignment]
    module: Module
    factors: tuple[tuple[Region, int], ...]


@dataclass
class Effects:
    """What one adapter does. ``changes``: by the checkpoint's tensor, in the adapter's order. ``applied``, ``ignored``
    (by reason) and ``unmatched`` are modules, and ``keys`` their numbers of keys: every key is in one of the three."""

    changes: dict[str, list[Change]] = field(default_factory=dict)
    applied: dict[str, list[str]] = field(default_factory=dict)  # module -> its tensors
    ignored: dict[str, list[str]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=lambda: {"applied": 0, "ignored": 0, "unmatched": 0})
    components: dict[str, int] = field(default_factory=dict)  # modules that were applied
    notes: list[str] = field(default_factory=list)

    def leave(self, module: str, count: int = 1) -> None:
        self.unmatched.append(module)
        self.keys["unmatched"] += count

    def ignore(self, reason: str, module: str, count: int = 1) -> None:
        self.ignored.setdefault(reason, []).append(module)
        self.keys["ignored"] += count


class Checkpoint(NamedTuple):
    """The tensors that adapters are applied to, as the family knows them."""

    layout: Layout
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, layout: Layout, tensors: Mapping[str, TensorInfo]) -> Checkpoint:
        """A file whose names may all stand in a wrapper (``module.``)."""
        return cls(layout, {**{layout.unwrap(name): info for name, info in tensors.items()}, **tensors})

    def find(self, slot: Slot) -> tuple[TensorInfo, str] | None:
        """The tensor of a slot under the name that this checkpoint has for it, and how the module lies in it."""
        if slot.diffusers in self.tensors:
            return self.tensors[slot.diffusers], "none"
        for prefix in ("model.", layout_names.UNET):
            bare = slot.key.removeprefix(prefix)
            if slot.key not in self.tensors and bare in self.tensors:
                return self.tensors[bare], slot.transform
        info = self.tensors.get(slot.key)
        return None if info is None else (info, slot.transform)

    def has(self, component: str) -> bool:
        """Whether any module of the component is there."""
        weights = (place.weight for place in names.places(self.layout) if place.component == component)
        return any(slot is not None and self.find(slot) is not None for slot in weights)


def effects(adapter: Adapter, number: int, checkpoint: Checkpoint, strength: Strength) -> Effects:
    """What the adapter, which is input ``number`` of the outline, does to a checkpoint.

    InputRefused for an adapter of another family, a module whose parts are incomplete or don't fit the tensor that they
    change, and when nothing would be changed.
    """
    require_family(adapter, checkpoint.layout)
    found = Effects()
    for name in adapter.bundled:
        found.ignore("bundled embeddings", name)
    for name in adapter.strangers:
        found.leave(name)
    work = _Work(adapter, number, checkpoint, found)
    absent = {component for component in names.COMPONENTS if not checkpoint.has(component)}
    for module, parts in adapter.modules.items():
        candidates = names.find(checkpoint.layout, module)
        component = names.component_of(module)
        place = work.chosen(module, candidates) if candidates else None
        if place is not None:
            component = place.component
        if component in absent:
            found.ignore(_ABSENT[component], module, len(parts))
        elif place is None:
            found.leave(module, len(parts))
        else:
            work.one(module, place, strength(place, module))
    work.require_once()
    if not found.applied and _OFF not in found.ignored:
        some = [*found.unmatched, *(name for ignored in found.ignored.values() for name in ignored)]
        shown = ", ".join(printable(name) for name in some[:3]) + (", …" if len(some) > 3 else "")
        count = len(adapter.modules)
        whose = "its only module changes no tensor" if count == 1 else f"none of its {count} modules changes a tensor"
        raise InputRefused(
            f"{printable(adapter.path)}: {whose} of this checkpoint ({checkpoint.layout.title}): {shown}",
            code="unlike",
            path=adapter.path,
        )
    return found


_OFF = "strength 0"
_ABSENT = {
    names.UNET: "the checkpoint has no U-Net",
    names.FIRST: "the checkpoint has no text encoder",
    names.SECOND: "the checkpoint has no second text encoder",
}


def require_family(adapter: Adapter, layout: Layout) -> None:
    """InputRefused when the adapter is for another family."""
    made = (layout.original or layout).adapters
    if adapter.base and made is not None and adapter.base != made.name:
        raise InputRefused(
            f"{printable(adapter.path)}: the adapter is for {in_words(adapter.base)} ({adapter.evidence}), "
            f"the checkpoint is {layout.title} ({made.width})",
            code="family",
            path=adapter.path,
            details={"found": adapter.base, "expected": made.name},
        )


class _Work:
    """One adapter on one checkpoint, module by module."""

    def __init__(self, adapter: Adapter, number: int, checkpoint: Checkpoint, found: Effects) -> None:
        self.adapter, self.number, self.checkpoint, self.found = adapter, number, checkpoint, found

    def chosen(self, module: str, candidates: tuple[Place, ...]) -> Place:
        """Of several text encoders the one that the module's parts fit."""
        for place in candidates[:-1]:
            found = self.checkpoint.find(place.weight) if place.weight else None
            if found is None:
                continue
            try:
                self.fit(module, _seen(found[0].shape, found[1]))
                return place
            except InputRefused:
                continue
        return candidates[-1]

    def one(self, module: str, place: Place, strength: float) -> None:
        """Note what the module changes, or why it changes nothing."""
        parts, found = self.adapter.modules[module], self.found
        if strength == 0:
            found.ignore(_OFF, module, len(parts))
            return
        if "reshape_weight" in parts:
            raise InputRefused(
                f"{printable(self.adapter.path)}: module '{printable(module)}' pads the weight to another shape "
                "(reshape_weight), which no model of these families has",
                code="unusable_tensor",
                tensor=module,
                path=self.adapter.path,
            )
        tensors = [self.weight(module, place, strength)] if self.adapter.kind(module) is not None else []
        tensors += [self.bias(module, part, place, strength) for part in OF_BIAS if part in parts]
        changed = [name for name in tensors if name is not None]
        if not changed:
            found.leave(module, len(parts))
            return
        found.applied[module] = changed
        found.keys["applied"] += len(parts)
        found.components[place.component] = found.components.get(place.component, 0) + 1

    def weight(self, module: str, place: Place, strength: float) -> str | None:
        """The tensor that the module's weight part changes; None where the checkpoint lacks it."""
        tensor = self.checkpoint.find(place.weight) if place.weight else None
        if tensor is None:
            return None
        adapter, (info, transform) = self.adapter, tensor
        seen, channels = _seen(info.shape, transform), 0
        try:
            fit = self.fit(module, seen)
        except InputRefused:
            if len(seen) != 4 or seen[1] <= LATENT or place.path != "conv_in":
                raise
            channels = LATENT
            fit = self.fit(module, (seen[0], LATENT, *seen[2:]))
            self.found.notes.append(
                f"'{printable(info.name)}': channels 0-{LATENT - 1} of {seen[1]} are changed; the adapter is made for "
                f"{LATENT}"
            )
        made = as_operand(adapter, module, fit, _rows(info.shape, transform), strength)
        if made.scale == 0:
            self.found.notes.append(f"module '{printable(module)}' has alpha 0, so it changes nothing")
        made = made._replace(transposed=transform == "transpose", channels=channels)
        self.add(info, transform, made, [self.region(module, part) for _, part, _ in fit.factors])
        return info.name

    def bias(self, module: str, part: str, place: Place, strength: float) -> str | None:
        """The tensor that the module's bias part changes; None where the checkpoint lacks it."""
        tensor = self.checkpoint.find(place.bias) if place.bias else None
        if tensor is None:
            self.found.notes.append(f"module '{printable(module)}' has a {part}, but the checkpoint's has no bias")
            return None
        info, transform = tensor
        seen, given = _seen(info.shape, transform), self.adapter.modules[module][part]
        if prod(given.shape) != prod(seen):
            raise InputRefused(
                f"{printable(self.adapter.path)}: module '{printable(module)}': {part} has shape {list(given.shape)}, "
                f"{list(seen)} expected for '{printable(info.name)}'",
                code="shape",
                tensor=module,
                path=self.adapter.path,
                details={"found": list(given.shape), "expected": list(seen)},
            )
        # peft scales the bias of lora_B as the product; the others are differences as they stand
        shapes = self.adapter.shapes(module)
        scale = self.adapter.scale(module, shapes[keys.DOWN][0]) if part == "up_bias" and keys.DOWN in shapes else 1.0
        formula, factor = ("set", "set_weight") if part == keys.SET_BIAS else ("full", "diff")
        made = Module(formula, _rows(info.shape, transform), strength, ((factor, 0, seen),), scale)
        self.add(info, transform, made, [self.region(module, part)])
        return info.name

    def fit(self, module: str, seen: tuple[int, ...]) -> Fitted:
        kind = self.adapter.kind(module)
        if kind is None:
            raise InputRefused(f"module '{printable(module)}' changes no weight", code="missing_tensors", tensor=module)
        return self.adapter.fit(kind, module, seen)

    def region(self, module: str, part: str) -> tuple[Region, int]:
        info = self.adapter.modules[module][part]
        return operand(self.number, info), info.elements

    def add(self, info: TensorInfo, transform: str, module: Module, factors: list[tuple[Region, int]]) -> None:
        rows = module.shape[0] if module.shape else 1
        first = int(transform[-1]) * rows if transform.startswith("split_qkv") else 0
        self.found.changes.setdefault(info.name, []).append(Change(first, rows, module, tuple(factors)))

    def require_once(self) -> None:
        """InputRefused when two modules of the adapter change the same rows of a tensor: the file is damaged, or holds
        one module twice under names of two dialects."""
        for name, changes in self.found.changes.items():
            places = [change.first for change in changes]
            if len(set(places)) < len(places):
                twice = [module for module, tensors in self.found.applied.items() if name in tensors]
                raise InputRefused(
                    f"{printable(self.adapter.path)}: modules {' and '.join(printable(each) for each in twice[:2])} "
                    f"change the same tensor '{printable(name)}'",
                    code="extra_tensors",
                    tensor=name,
                    path=self.adapter.path,
                )


def as_operand(adapter: Adapter, module: str, fit: Fitted, shape: tuple[int, ...], strength: float) -> Module:
    """What the adapter's module makes of a weight of the shape; ``fit.factors`` are its factors, in their order."""
    alpha = adapter.alpha(module) if fit.kind in ("oft", "boft") else None
    return Module(
        fit.kind,
        shape,
        strength,
        tuple((name, at, size) for at, (name, _, size) in enumerate(fit.factors)),
        adapter.scale(module, fit.rank),
        constraint=max(alpha or 0.0, 0.0),
        on_input=fit.kind == "ia3" and bool(adapter.number(module, "on_input")),
    )


def _rows(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    """Shape of the part of a stored tensor that a module changes."""
    return (shape[0] // 3, *shape[1:]) if transform.startswith("split_qkv") else shape


def _seen(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    """The same as the adapter knows it."""
    return tuple(reversed(shape)) if transform == "transpose" else _rows(shape, transform)
