"""One component of a checkpoint and a donor: which of the donor's tensors make each of the checkpoint's."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F16, DType
from ..errors import InputRefused, number_of, printable
from ..layouts import Layout, aliases, detect, names, text_encoders
from ..outline import ADDED, COPIED, Piece, Segment, operand, require_computable
from ..program import identity
from ..settings import Settings
from . import vae_kin
from .matching import transposed, without_unit_tail
from .variants import is_first_convolution


def stripped(name: str, component: str, layout: Layout) -> str:
    """The name in a file of the component alone; of an OpenCLIP encoder that is open_clip's own."""
    bare = layout.unwrap(name)
    for part in layout.parts:
        if part.component == component and part.prefix and bare.startswith(part.prefix):
            rest = bare[len(part.prefix) :]
            return rest.removeprefix("model.") if part.openclip else rest
    return bare.removeprefix(
        {"unet": names.UNET, "vae": names.VAE, "controlnet": "control_model."}.get(component, "\0")
    )


class Swap:
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
            f"{where}: the checkpoint's own '{printable(name)}' is kept; such files may lack it" for name in self.spared
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
        doubts: list[str] = []
        if self.component == "vae":
            given = {name: infos[0] for name, infos in self.found.items()}
            doubts += vae_kin.doubt(self.base, self.layout, self.donor, self.base.tensors, given)
        return [
            f"{where}: {number_of(len(self.found), 'tensor')} replaced",
            *doubts,
            *(f"{where}: {text}" for text in odd),
            *kept,
        ]

    def pieces(self, settings: Settings) -> dict[str, Piece]:
        """All of the donor's tensors by the checkpoint's names. What the donor has encoded is decoded, to the
        checkpoint's dtype."""
        made = {}
        for name in self.found:
            own = self.base.tensors.get(name)
            dtype = own.dtype if own is not None and own.dtype.kind == "float" and own.encoded is None else F16
            shape = own.shape if own is not None else self.wanted[name] or self.shape(name)
            made[name] = self.piece(name, shape, settings, action=ADDED if own is None else COPIED, decoded=dtype)
        return made

    def piece(
        self, name: str, shape: tuple[int, ...], settings: Settings, *,
        action: str = COPIED, decoded: DType | None = None,
    ) -> Piece:  # fmt: skip
        """The donor's tensor under the checkpoint's name and in its shape (rows of several tensors are joined).
        ``decoded``: the dtype of a weight that the donor has encoded; None keeps its codes."""
        infos = self.found[name]
        self._require_shape(name, shape)
        exact = self.layout.exact_copy(name) or infos[0].dtype.kind in ("int", "bool")
        own = infos[0].dtype if decoded is None or infos[0].encoded is None else decoded
        dtype = infos[0].dtype if exact else settings.dtype_of(infos[0].shape) or own
        segments, first = [], 0
        for info in infos:
            formula = None
            plain = decoded is not None and info.encoded is not None
            if info.dtype is not dtype or plain or (settings.watched and info.dtype.computable):
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
        wrapper = detect(self.donor.tensors).layout.wrapper
        for name in tuple(given):
            given.setdefault(aliases.canonical(name.removeprefix(wrapper), self.layout), name)
            if self.component.startswith("text_encoder") and name.startswith(aliases.CLIP_HEADS):
                given.setdefault("text_model." + name, name)  # transformers leaves it out since 5.6
        return given

    def _found(self) -> dict[str, list[TensorInfo]]:
        return {name: infos for name in self.wanted if (infos := self._infos(aliases.canonical(name, self.layout)))}

    def _infos(self, key: str) -> list[TensorInfo]:
        """What the donor has for a tensor of the family: one, several whose rows are to be joined, or nothing."""
        bare = stripped(key, self.component, self.layout)
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
