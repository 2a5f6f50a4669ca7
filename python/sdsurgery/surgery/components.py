"""extract and replace: one component of a checkpoint out of it, or another file's into it (a baked VAE)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from .. import engine
from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, UsageError, printable
from ..layouts import Layout, aliases, detect, names, text_encoders
from ..outline import ADDED, COPIED, Dropped, Outline, Piece, Segment, operand, require_computable
from ..program import identity
from ..settings import Settings
from .common import (
    Input,
    close_all,
    open_all,
    planned,
    run,
    single_input,
    single_metadata,
    single_piece,
    title_of,
)
from .matching import transposed, without_unit_tail
from .report import Report

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "depth")
Path = str | os.PathLike[str]


def extract(
    path: Input, component: str, settings: Settings, *, out: Path | None = None, strip_prefix: bool = False
) -> Report:
    """``sdsurgery.extract``."""
    _require_known(component)

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        layout = detect(checkpoint.tensors).layout
        chosen = {}
        dropped = []
        for name in checkpoint.tensors:
            if layout.component(name) == component:
                chosen[name] = _stripped(name, component, layout) if strip_prefix else name
            else:
                dropped.append(Dropped(0, name, "other components"))
        checkpoint.require_usable(lambda name: layout.component(name) == component)
        if not chosen:
            have = dict.fromkeys(layout.component(name) for name in checkpoint.tensors)
            raise InputRefused(
                f"{printable(checkpoint.path)}: no tensors of component {component}; it has {', '.join(have)}",
                code="missing_tensors",
                path=checkpoint.path,
            )
        if len(set(chosen.values())) < len(chosen):
            raise InputRefused(f"{printable(checkpoint.path)}: two tensors would get one name without their prefixes")
        pieces = [single_piece(layout, settings, checkpoint.tensors[name], name=new) for name, new in chosen.items()]
        return planned(
            "extract", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title),
            settings=settings, layout=layout, notes=checkpoint.notes, dropped=dropped, frugal=True, keep_order=True,
        )  # fmt: skip

    options = {"component": component, "strip_prefix": strip_prefix}
    return single_input("extract", path, out, settings, parameters=options, plan_of=plan, selective=True)


def replace(
    path: Input,
    donors: Mapping[str, Input],
    settings: Settings,
    *,
    out: Path | None = None,
    allow_missing: bool = False,
) -> Report:
    """``sdsurgery.replace``."""
    if not donors:
        raise UsageError("replace needs at least one component and its file", code="wrong_inputs")
    for component in donors:
        _require_known(component)
    if out is not None:
        engine.target_path(out, settings.overwrite or settings.dry_run)
    opened = open_all((path, *donors.values()), settings, selective=True)
    try:
        with_names = {name: os.path.basename(donor.path) for name, donor in zip(donors, opened[1:], strict=True)}
        recipe: dict[str, Any] = {
            "method": "replace",
            "parameters": {"components": with_names, "allow_missing": allow_missing},
            **settings.recorded,
        }
        plan = _plan_replace(opened, list(donors), settings, recipe, title=title_of(out), allow_missing=allow_missing)
        return run(plan, out, settings, recipe)
    finally:
        close_all(opened)


def _require_known(component: str) -> None:
    if component in COMPONENTS:
        return
    from ..suggest import did_you_mean

    hint = did_you_mean(component, COMPONENTS) or f"; known: {', '.join(COMPONENTS)}"
    raise UsageError(f"component= cannot be '{printable(component)}'{hint}", code="bad_value")


def _stripped(name: str, component: str, layout: Layout) -> str:
    bare = names.unwrap(name)
    for part in layout.parts:
        if part.component == component and part.prefix and bare.startswith(part.prefix):
            return bare[len(part.prefix) :]
    return bare.removeprefix({"unet": names.UNET, "vae": names.VAE}.get(component, "\0"))


def _plan_replace(
    opened: Sequence[Checkpoint], components: Sequence[str], settings: Settings, recipe: dict[str, Any], *,
    title: str, allow_missing: bool,
) -> Outline:  # fmt: skip
    base = opened[0]
    layout = detect(base.tensors).layout
    swaps = {
        component: _Swap(base, layout, component, source, opened[source])
        for source, component in enumerate(components, 1)
    }
    notes = [note for swap in swaps.values() for note in swap.judge(allow_missing)]
    given = {name for swap in swaps.values() for name in swap.found}
    base.require_usable(lambda name: name not in given)
    pieces = []
    for name, info in base.tensors.items():
        swap = swaps.get(layout.component(name))
        if swap is None:
            pieces.append(single_piece(layout, settings, info))
        elif name in swap.found:
            pieces.append(swap.piece(name, info.shape, settings))
        else:
            pieces.append(single_piece(layout, settings, info, note="not in the donor"))
    for swap in swaps.values():
        for name in swap.found:
            if name not in base:
                shape = swap.wanted[name] or swap.shape(name)
                pieces.append(swap.piece(name, shape, settings, action=ADDED))
    dropped = [Dropped(swap.source, name, "extra in the donor") for swap in swaps.values() for name in swap.extra]
    missing = [(swap.source, name) for swap in swaps.values() for name in swap.absent]
    remarks = [f"{printable(donor.path)}: {note}" for donor in opened[1:] for note in donor.notes]
    return planned(
        "replace", opened, pieces, single_metadata(base, layout, recipe, title, opened[1:]),
        settings=settings, layout=layout, notes=(*base.notes, *remarks, *notes), dropped=dropped,
        missing=tuple(missing), keep_order=True,
    )  # fmt: skip


class _Swap:
    """One component and its donor: which donor tensors make each of the checkpoint's."""

    def __init__(self, base: Checkpoint, layout: Layout, component: str, source: int, donor: Checkpoint) -> None:
        self.base, self.layout, self.component, self.source, self.donor = base, layout, component, source, donor
        self.wanted = self._wanted()
        self.given = self._given()
        if not self.wanted:
            raise InputRefused(
                f"{printable(base.path)}: no tensors of component {component}, and family {layout.name} lists none",
                code="missing_tensors",
                path=base.path,
            )
        self.found = self._found()
        self.absent = [n for n in self.wanted if n not in self.found and not names.is_position_ids(n)]
        used = {info.name for infos in self.found.values() for info in infos}
        self.extra = [n for n in donor.tensors if n not in used and self._ours(n)]

    def judge(self, allow_missing: bool) -> list[str]:
        """Refuse a donor that doesn't fit; else give the notes on it."""
        where = f"{printable(self.donor.path)} as {self.component}"
        if not self.found:
            raise InputRefused(
                f"{where}: none of the {len(self.wanted)} tensors expected are in it "
                f"('{printable(next(iter(self.wanted)))}', …); {_described(self.donor)}",
                code="missing_tensors",
                path=self.donor.path,
            )
        odd = [
            f"{len(hits)} {text}: '{printable(hits[0])}'{', …' if len(hits) > 1 else ''}"
            for hits, text in ((self.absent, "tensors absent"), (self.extra, "extra"))
            if hits
        ]
        if odd and not allow_missing:
            raise InputRefused(
                f"{where}: {'; '.join(odd)}; {len(self.wanted)} expected (allow_missing=True keeps the checkpoint's "
                "own for the absent ones and leaves the extra ones out)",
                code="missing_tensors" if self.absent else "extra_tensors",
                tensor=(self.absent or self.extra)[0],
                path=self.donor.path,
                details={"absent": self.absent, "extra": self.extra},
            )
        return [f"{where}: {len(self.found)} tensors replaced", *(f"{where}: {text}" for text in odd)]

    def piece(self, name: str, shape: tuple[int, ...], settings: Settings, *, action: str = COPIED) -> Piece:
        """The donor's tensor under the checkpoint's name and in its shape (rows of several tensors are joined)."""
        infos = self.found[name]
        self._require_shape(name, shape)
        exact = self.layout.exact_copy(name) or infos[0].dtype.kind in ("int", "bool")
        dtype = infos[0].dtype if exact else settings.target_dtype or infos[0].dtype
        segments, first = [], 0
        for info in infos:
            formula = None
            if info.dtype is not dtype or (settings.watched and info.dtype.computable):
                require_computable(info)
                formula = identity()
            segments.append(Segment(formula, first, info.elements, (operand(self.source, info),)))
            first += info.elements
        changed = any(info.dtype is not dtype for info in infos)
        return Piece(name, dtype, shape, "cast" if changed and action == COPIED else action, tuple(segments),
                     f"from {os.path.basename(self.donor.path)}")  # fmt: skip

    def _wanted(self) -> dict[str, tuple[int, ...] | None]:
        """Names and shapes to fill. The shape of a tensor that can't be read isn't known."""
        held: dict[str, tuple[int, ...] | None] = dict.fromkeys(self.base.unusable)
        held |= {name: info.shape for name, info in self.base.tensors.items()}
        held = {name: shape for name, shape in held.items() if self.layout.component(name) == self.component}
        if held or not self.layout.parts:
            return held
        return {tensor.key: tensor.shape for tensor in self.layout.tensors() if tensor.component == self.component}

    def _given(self) -> dict[str, str]:
        """Every name by which a tensor of the donor may be asked for -> the donor's own name for it."""
        given = {name: name for name in (*self.donor.tensors, *self.donor.unusable)}
        for name in tuple(given):
            given.setdefault(aliases.canonical(name, self.layout), name)
            if self.component.startswith("text_encoder") and name.startswith(aliases.CLIP_HEADS):
                given.setdefault("text_model." + name, name)  # transformers leaves it out since 5.6
        return given

    def _found(self) -> dict[str, list[TensorInfo]]:
        return {name: infos for name in self.wanted if (infos := self._infos(aliases.canonical(name, self.layout)))}

    def _infos(self, key: str) -> list[TensorInfo]:
        """What the donor has for a tensor of the family: one, several whose rows are to be joined, or nothing."""
        for name in (key, _stripped(key, self.component, self.layout)):
            if name in self.given:
                return [self._take(name)]
        other = aliases.transposed(key)
        if other in self.given:
            return [transposed(self._take(other))]
        rows = _diffusers_rows(self.layout).get(key, [])
        if not rows or any(row.key not in self.given for row in rows):
            return []
        infos = [self._take(row.key) for row in rows]
        return [transposed(info) for info in infos] if rows[0].transform == "transpose" else infos

    def _take(self, name: str) -> TensorInfo:
        own = self.given[name]
        self.donor.require_usable(own.__eq__)
        return self.donor.tensors[own]

    def _ours(self, name: str) -> bool:
        """Whether a donor tensor belongs to the component; position_ids and training leftovers are never extra."""
        if names.is_position_ids(name):
            return False
        key = aliases.canonical(name, self.layout)
        return self.layout.component(key) == self.component

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the donor's tensor, or of the joined rows of several. InputRefused when they don't fit."""
        infos = self.found[name]
        tail = infos[0].shape[1:]
        if any(info.shape[1:] != tail or not info.shape for info in infos[1:]):
            raise InputRefused(f"{printable(self.donor.path)}: the parts of '{printable(name)}' have different widths")
        return (sum(info.shape[0] for info in infos), *tail) if len(infos) > 1 else infos[0].shape

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        given = self.shape(name)
        if without_unit_tail(given) != without_unit_tail(shape):
            raise InputRefused(
                f"{printable(self.donor.path)}: tensor '{printable(self.found[name][0].name)}' has shape "
                f"{list(given)}, {list(shape)} expected for '{printable(name)}'",
                code="shape",
                tensor=self.found[name][0].name,
                path=self.donor.path,
                details={"found": list(given), "expected": list(shape)},
            )


def _described(donor: Checkpoint) -> str:
    """What a file that doesn't fit is, for the refusal."""
    layout = detect(donor.tensors).layout
    found = [encoder.title for encoder in text_encoders(donor.tensors)]
    return f"it is of family {layout.name}" + (f" with the text encoder {' and '.join(found)}" if found else "")


@cache
def _diffusers_rows(layout: Layout) -> dict[str, list[Any]]:
    from ..layouts.diffusers import mapping

    if not layout.parts or layout.original is not None:
        return {}
    rows: dict[str, list[Any]] = {}
    for row in mapping(layout):
        if row.key:
            rows.setdefault(row.ldm_key, []).append(row)
    return rows
