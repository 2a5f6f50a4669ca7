"""extract and replace: one component of a checkpoint out of it, or another file's into it (a baked VAE)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, UsageError, printable
from ..files import target_path
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
from .matching import common_front, transposed, without_unit_tail
from .preflight import letter
from .prune import patterns
from .report import Report
from .variants import is_first_convolution

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "depth")
"""Components that a checkpoint's family lists, so that another file's can be put in their place."""
EXTRACTABLE = (*COMPONENTS, "text_encoder_3", "transformer", "controlnet", "ema")
Path = str | os.PathLike[str]


def extract(
    path: Input,
    settings: Settings,
    *,
    component: str | None = None,
    prefix: str | None = None,
    keys: str | None = None,
    out: Path | None = None,
    strip_prefix: bool = False,
) -> Report:
    """``sdsurgery.extract``."""
    chosen_by = {name: value for name, value in _asked(component, prefix, keys).items() if value is not None}
    if len(chosen_by) != 1:
        raise UsageError(
            "extract needs one of component=…, prefix=… and keys=…", code="conflict" if chosen_by else "wrong_inputs"
        )
    if component is not None:
        component = _require_known(component, EXTRACTABLE)

    def plan(checkpoint: Checkpoint, recipe: dict[str, Any], title: str) -> Outline:
        layout = detect(checkpoint.tensors).layout
        wanted = _chooser(component, prefix, keys, layout)
        names_in = [name for name in checkpoint.tensors if wanted(name)]
        dropped = [Dropped(0, name, "not asked for") for name in checkpoint.tensors if not wanted(name)]
        checkpoint.require_usable(wanted)
        if not names_in:
            _refuse_nothing(checkpoint, layout, chosen_by)
        chosen = {name: name for name in names_in}
        if strip_prefix and component is not None:
            chosen = {name: _stripped(name, component, layout) for name in names_in}
        elif strip_prefix:
            front = prefix or common_front(names_in)
            chosen = {name: name[len(front) :] for name in names_in}
        if len(set(chosen.values())) < len(chosen) or "" in chosen.values():
            raise InputRefused(f"{printable(checkpoint.path)}: two tensors would get one name without their prefixes")
        pieces = [single_piece(layout, settings, checkpoint.tensors[name], name=new) for name, new in chosen.items()]
        return planned(
            "extract", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title),
            settings=settings, layout=layout, notes=checkpoint.notes, dropped=dropped, frugal=True, keep_order=True,
        )  # fmt: skip

    options = {**chosen_by, "strip_prefix": strip_prefix}
    return single_input("extract", path, out, settings, parameters=options, plan_of=plan, selective=True)


def _asked(component: str | None, prefix: str | None, keys: str | None) -> dict[str, str | None]:
    return {"component": component, "prefix": prefix, "keys": keys}


def _chooser(component: str | None, prefix: str | None, keys: str | None, layout: Layout) -> Callable[[str], bool]:
    """Whether a tensor of that name is asked for."""
    if component is not None:
        return lambda name: layout.component(name) == component
    if prefix is not None:
        return lambda name: name.startswith(prefix)
    (pattern,) = patterns("keys=", keys)
    return lambda name: pattern.search(name) is not None


def _refuse_nothing(checkpoint: Checkpoint, layout: Layout, chosen_by: Mapping[str, str | None]) -> NoReturn:
    ((how, what),) = chosen_by.items()
    if how == "component":
        have = dict.fromkeys(layout.component(name) for name in checkpoint.tensors)
        text = f"no tensors of component {what}; it has {', '.join(have)}"
    else:
        fronts = dict.fromkeys(f"{name.partition('.')[0]}." for name in checkpoint.tensors if "." in name)
        shown = ", ".join(printable(front) for front in list(fronts)[:12])
        verb = "begins with" if how == "prefix" else "matches"
        text = f"no tensor's name {verb} '{printable(what)}'; they begin with {shown}"
    raise InputRefused(f"{printable(checkpoint.path)}: {text}", code="missing_tensors", path=checkpoint.path)


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
    donors = {_require_known(component, COMPONENTS): donor for component, donor in donors.items()}
    if out is not None:
        target_path(out, settings.overwrite or settings.dry_run)
    opened = open_all((path, *donors.values()), settings, selective=True)
    try:
        with_names = {
            name: os.path.basename(donor.path) if settings.store_names else letter(number)
            for number, (name, donor) in enumerate(zip(donors, opened[1:], strict=True), 1)
        }
        recipe: dict[str, Any] = {
            "method": "replace",
            "parameters": {"components": with_names, "allow_missing": allow_missing},
            **settings.recorded,
        }
        plan = _plan_replace(opened, list(donors), settings, recipe, title=title_of(out), allow_missing=allow_missing)
        return run(plan, out, settings, recipe)
    finally:
        close_all(opened)


_SYNONYMS = {"clip": "text_encoder", "te": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2",
             "controlnets": "controlnet", "u-net": "unet"}  # fmt: skip


def _require_known(component: str, known: Sequence[str]) -> str:
    """The component that a word means, in any letters' case. UsageError for another word."""
    word = _SYNONYMS.get(component.lower(), component.lower())
    if word in known:
        return word
    from ..suggest import did_you_mean

    hint = did_you_mean(component, known) or f"; known: {', '.join(known)}"
    raise UsageError(f"component= cannot be '{printable(component)}'{hint}", code="bad_value")


def _stripped(name: str, component: str, layout: Layout) -> str:
    """The name in a file of the component alone; of an OpenCLIP encoder that is open_clip's own."""
    bare = names.unwrap(name)
    for part in layout.parts:
        if part.component == component and part.prefix and bare.startswith(part.prefix):
            rest = bare[len(part.prefix) :]
            return rest.removeprefix("model.") if part.openclip else rest
    return bare.removeprefix(
        {"unet": names.UNET, "vae": names.VAE, "controlnet": "control_model."}.get(component, "\0")
    )


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
            pieces.append(swap.piece(name, swap.outer_shape(name, info.shape), settings))
        else:
            pieces.append(single_piece(layout, settings, info, note="not in the donor"))
    for swap in swaps.values():
        for name in swap.found:
            if name not in base:
                shape = swap.wanted[name] or swap.shape(name)
                pieces.append(swap.piece(name, shape, settings, action=ADDED))
    made = _family(pieces)
    if made is not layout and made.base == layout.base:
        notes.append(f"the output is {made.title}, by the donor's first convolution")
        layout = made
    dropped = [Dropped(swap.source, name, "extra in the donor") for swap in swaps.values() for name in swap.extra]
    missing = [(swap.source, name) for swap in swaps.values() for name in swap.absent]
    remarks = [f"{printable(donor.path)}: {note}" for donor in opened[1:] for note in donor.notes]
    return planned(
        "replace", opened, pieces, single_metadata(base, layout, recipe, title, opened[1:]),
        settings=settings, layout=layout, notes=(*base.notes, *remarks, *notes), dropped=dropped,
        missing=tuple(missing), keep_order=True,
    )  # fmt: skip


def _family(pieces: Sequence[Piece]) -> Layout:
    """The family of the output: another first convolution makes another one of it."""
    infos = (TensorInfo(piece.name, piece.dtype, piece.shape, 0, 0) for piece in pieces)
    return detect({info.name: info for info in infos}).layout


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
        lacking = [n for n in self.wanted if n not in self.found and not names.is_position_ids(n)]
        self.absent = [n for n in lacking if not layout.optional(n)]
        self.spared = [n for n in lacking if layout.optional(n)]
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
        kept = [
            f"{where}: the checkpoint's own '{printable(name)}' stays, which such files may lack"
            for name in self.spared
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
        return [f"{where}: {len(self.found)} tensors replaced", *(f"{where}: {text}" for text in odd), *kept]

    def piece(self, name: str, shape: tuple[int, ...], settings: Settings, *, action: str = COPIED) -> Piece:
        """The donor's tensor under the checkpoint's name and in its shape (rows of several tensors are joined)."""
        infos = self.found[name]
        self._require_shape(name, shape)
        exact = self.layout.exact_copy(name) or infos[0].dtype.kind in ("int", "bool")
        dtype = infos[0].dtype if exact else settings.dtype_of(infos[0].shape) or infos[0].dtype
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
        bare = _stripped(key, self.component, self.layout)
        for name in (key, bare, f"model.{bare}"):
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

    def outer_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The checkpoint's shape; the donor's for a first convolution of other input channels (an inpainting U-Net)."""
        given = self.shape(name)
        wider = len(given) == len(shape) == 4 and (given[0], given[2:]) == (shape[0], shape[2:])
        return given if wider and given[1] != shape[1] and is_first_convolution(name) else shape

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
