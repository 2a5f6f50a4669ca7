"""extract and replace: one component of a checkpoint out of it, or another file's into it (a baked VAE)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ..checkpoint import Checkpoint, Form, TensorInfo
from ..errors import InputRefused, UsageError, printable
from ..layouts import Layout, detect
from ..outline import ADDED, Dropped, Outline, Piece
from ..report.warnings import of_file
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
from .component_words import component_word
from .matching import common_front
from .outputs import require_free
from .preflight import letter
from .prune import patterns
from .report import Report
from .swaps import Swap, stripped

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "depth")
"""Components that a checkpoint's family lists, so that another file's can be put in their place."""
EXTRACTABLE = (*COMPONENTS, "text_encoder_3", "transformer", "controlnet", "ema")
_REFUSAL = "component= cannot be"
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
        component = chosen_by["component"] = component_word(component, EXTRACTABLE, _REFUSAL)

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
            chosen = {name: stripped(name, component, layout) for name in names_in}
        elif strip_prefix:
            front = prefix or common_front(names_in)
            chosen = {name: name[len(front) :] for name in names_in}
        if len(set(chosen.values())) < len(chosen) or "" in chosen.values():
            raise InputRefused(f"{printable(checkpoint.path)}: two tensors would get one name without their prefixes")
        pieces = [single_piece(layout, settings, checkpoint.tensors[name], name=new) for name, new in chosen.items()]
        notes = [*checkpoint.notes, *([] if strip_prefix else _hint(names_in[-1], component, layout))]
        return planned(
            "extract", [checkpoint], pieces, single_metadata(checkpoint, layout, recipe, title),
            settings=settings, layout=layout, notes=notes, dropped=dropped, frugal=True, keep_order=True,
        )  # fmt: skip

    options = {**chosen_by, "strip_prefix": strip_prefix}
    return single_input("extract", path, out, settings, parameters=options, plan_of=plan, selective=True)


def _hint(name: str, component: str | None, layout: Layout) -> list[str]:
    """A note on a part under the names that it has in a checkpoint, where programs that load such parts alone look for
    others. A U-Net they find under both."""
    bare = name if component in (None, "unet") else stripped(name, component, layout)
    if bare == name or not name.endswith(bare):
        return []
    front = printable(name[: len(name) - len(bare)])
    return [f"the names keep '{front}'; programs that load this part alone need strip_prefix=True, which leaves it out"]


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
    donors = {component_word(component, COMPONENTS, _REFUSAL): donor for component, donor in donors.items()}
    require_free(out, settings)
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


def _plan_replace(
    opened: Sequence[Checkpoint], components: Sequence[str], settings: Settings, recipe: dict[str, Any], *,
    title: str, allow_missing: bool,
) -> Outline:  # fmt: skip
    base = opened[0]
    layout = detect(base.tensors).layout
    swaps = {
        component: Swap(base, layout, component, source, opened[source])
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
    remarks = [note for donor in opened[1:] for note in of_file(donor.path, donor.notes)]
    return planned(
        "replace", opened, pieces, single_metadata(base, layout, recipe, title, opened[1:]),
        settings=settings, layout=layout, notes=(*base.notes, *remarks, *notes), dropped=dropped,
        missing=tuple(missing), keep_order=True,
    )  # fmt: skip


def _family(pieces: Sequence[Piece]) -> Layout:
    """The family of the output: another first convolution makes another one of it."""
    infos = (TensorInfo(piece.name, 0, Form(piece.dtype, piece.shape, 0)) for piece in pieces)
    return detect({info.name: info for info in infos}).layout
