"""extract-lora: the difference of two checkpoints as an adapter, layer by layer.

Sources: kohya-ss/sd-scripts 48d368f ``networks/extract_lora_from_models.py``, KohakuBlueleaf/LyCORIS 4.1.3
``lycoris/utils``. Unlike there, a layer is left out only when nothing in it differs, and nothing is clamped unasked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, NamedTuple

from ..adapters import keys, names, svd, writing
from ..adapters.apply import Checkpoint as Known
from ..adapters.arrays import Array, part_of, values
from ..adapters.names import Place, Slot
from ..adapters.spool import Spool
from ..adapters.svd import Factors, Rank, clamped
from ..backends import choose
from ..checkpoint import Checkpoint, TensorInfo
from ..errors import InputRefused, UsageError, number_of, printable
from ..layouts import Layout, conflict, detect
from ..layouts.lora_names import targets
from ..metadata import Metadata
from ..outline import EXTRACTED, Outline, operand, rounded
from ..settings import Settings
from .common import Input, close_all, open_all, parent, run, title_of
from .outputs import require_free
from .preflight import V_PREDICTION, prediction
from .report import Report
from .scaled_fp8 import require_model


@dataclass(frozen=True)
class Extraction:
    """What is extracted: ``kind`` (lora, locon, dora, full), ranks of linear layers and of 3×3 convolutions, kohya's
    clamp (0: none), whether U-Net and text encoders are, the names that are written."""

    rank: Rank
    kind: str = "lora"
    conv_rank: Rank | None = None
    clamp: float = 0.0
    unet: bool = True
    te: bool = True
    names: str = writing.KOHYA


class Layer(NamedTuple):
    """A module that differs. ``kept`` is the share of its difference that the adapter holds, ``relative`` that
    difference beside the base's weight: both of Frobenius norms."""

    name: str
    component: str
    rank: int
    kept: float
    relative: float
    size: float


SCOPES = {"lora": ("attn", "te"), "dora": ("attn", "te"), "locon": ("attn", "te", "conv", "extra")}
KINDS = (*SCOPES, "full")
_LYCORIS = {"full": {"algo": "full"}, "dora": {"algo": "lora", "dora_wd": "True"}}
"""Kinds of LyCORIS that sd-scripts lacks, with the arguments that train them."""


def extract_lora(
    tuned: Input, base: Input, wanted: Extraction, settings: Settings, *, out: str | os.PathLike[str] | None = None
) -> Report:
    """``sdsurgery.extract_lora``."""
    _check(wanted)
    if settings.scaled:
        require_model()
    device = _device(settings.backend)
    require_free(out, settings)
    checkpoints = open_all((tuned, base), settings)
    spooled: list[Checkpoint] = []
    try:
        layout = _family(checkpoints)
        with Spool() as spool:
            work = _Work(checkpoints, layout, wanted, spool, device)
            layers = work.all(settings.callback)
            if not layers:
                raise InputRefused(
                    f"{printable(checkpoints[0].path)} and {printable(checkpoints[1].path)} don't differ in any layer "
                    "that is extracted",
                    code="unlike",
                    path=checkpoints[0].path,
                )
            spooled.append(spool.checkpoint())
            left_out = work.left_out()
        recipe = _recipe(wanted, settings)
        report = run(_outline(spooled[0], work, recipe, settings, title_of(out)), out, settings, recipe)
        report.inputs, report.sha256 = report.inputs[: len(checkpoints)], report.sha256[: len(checkpoints)]
        report.seconds = report.seconds and report.seconds + spool.seconds
        report.adapters = [_described(layers)]
        report.notes[:0] = [*_lines(layers), *left_out]
        return report
    finally:
        close_all([*checkpoints, *spooled])


def _check(wanted: Extraction) -> None:
    if wanted.kind not in KINDS:
        raise UsageError(f"kind= cannot be '{printable(wanted.kind)}'; known: {', '.join(KINDS)}", code="bad_value")
    if wanted.names not in writing.DIALECTS:
        known = ", ".join(writing.DIALECTS)
        raise UsageError(f"names= cannot be '{printable(wanted.names)}'; known: {known}", code="bad_value")
    if not 0 <= wanted.clamp < 1:
        raise UsageError("clamp= is a quantile between 0 and 1, such as 0.99", code="bad_value")
    if wanted.kind == "full" and wanted.names != writing.KOHYA:
        raise UsageError("full differences have names in kohya's dialect only", code="conflict")
    wanted.rank.check()
    if wanted.conv_rank is not None:
        wanted.conv_rank.check()


def _family(checkpoints: Sequence[Checkpoint]) -> Layout:
    found = [detect(each.tensors) for each in checkpoints]
    text = conflict(found[0], found[1], ("TUNED", "BASE"))
    if text is not None:
        raise InputRefused(text, code="family", path=checkpoints[0].path)
    layout = found[0].layout
    if (layout.original or layout).adapters is None:
        raise InputRefused(
            f"{printable(checkpoints[0].path)}: adapters are made for Stable Diffusion 1, 2 and XL, and this is "
            f"{layout.title}",
            code="family",
            path=checkpoints[0].path,
        )
    return layout


def _device(name: str) -> str:
    """The device of torch that factorises for a backend, "" for NumPy. UsageError where torch cannot use it."""
    backend = choose(name)
    if backend.on_tensors is None:
        return ""
    reason = svd.unavailable()
    if reason is not None:
        raise UsageError(
            f"with the backend {backend.name}, layers are factorised by torch on the GPU: {reason}; use backend='cpu'",
            code="backend",
        )
    return svd.DEVICE


class _Work:
    def __init__(
        self, checkpoints: Sequence[Checkpoint], layout: Layout, wanted: Extraction, spool: Spool, device: str
    ) -> None:
        self.tuned, self.base = checkpoints
        self.device = device
        self.layout, self.wanted, self.spool = layout, wanted, spool
        self.known = [Known.of(detect(each.tensors).layout, each.tensors) for each in checkpoints]
        self.ranks = writing.Ranks(set(), set())

    def all(self, progress: Callable[[int, int], None] | None) -> list[Layer]:
        """Extract every layer; ``progress`` hears the bytes that are done and all of them."""
        chosen = list(self.chosen())
        total = sum(size for _, _, size in chosen)
        layers, done = [], 0
        for place, slot, size in chosen:
            found = self.one(place, slot)
            layers += [] if found is None else [found]
            done += size
            if progress is not None:
                progress(done, total)
        return layers

    def chosen(self) -> Iterator[tuple[Place, Slot, int]]:
        """The tensors that are compared, with their sizes."""
        family = self.layout.original or self.layout
        scopes = {(target.row.component, target.row.key): target.scope for target in targets(family)}
        for place in names.places(self.layout):
            if not self.is_wanted(place.component):
                continue
            slots = [place.weight, place.bias] if self.wanted.kind == "full" else [place.weight]
            for slot in slots:
                if slot is None:
                    continue
                scope = scopes.get((place.component, f"{place.path}.weight"))
                if self.wanted.kind != "full" and scope not in SCOPES[self.wanted.kind]:
                    continue
                found = [known.find(slot) for known in self.known]
                if found[0] is not None and found[1] is not None:
                    yield place, slot, found[0][0].nbytes + found[1][0].nbytes

    def left_out(self) -> list[str]:
        """One line that counts by component what else differs; none if nothing does."""
        taken = {self.known[0].find(slot)[0].name for _, slot, _ in self.chosen()}  # type: ignore[index]
        counts: dict[str, int] = {}
        for name, info in self.tuned.tensors.items():
            other = self.base.tensors.get(name)
            if name in taken or other is None or other.shape != info.shape:
                continue
            if self.layout.is_ema(name) or self.layout.exact_copy(name):
                continue
            component = self.layout.component(name)
            if self.is_wanted(component) and self._differ(info, other):
                counts[component] = counts.get(component, 0) + 1
        if not counts:
            return []
        shown = ", ".join(f"{number_of(count, 'tensor')} of {component}" for component, count in counts.items())
        return [f"also different, but not held by an adapter of kind {self.wanted.kind}: {shown}"]

    def is_wanted(self, component: str) -> bool:
        """Whether the difference of a component is asked for."""
        if component == names.UNET:
            return self.wanted.unet
        return self.wanted.te or not component.startswith(names.FIRST)

    def _differ(self, info: TensorInfo, other: TensorInfo) -> bool:
        import numpy as np

        if not (info.dtype.computable and other.dtype.computable):
            return False
        pair = ((self.tuned, info), (self.base, other))
        after, before = (values(file, operand(0, each), each.elements) for file, each in pair)
        return not np.array_equal(after, before, equal_nan=True)

    def one(self, place: Place, slot: Slot) -> Layer | None:
        """Extract one layer; None where nothing differs."""
        (info, transform), (other, _) = (known.find(slot) for known in self.known)  # type: ignore[misc]
        if info.shape != other.shape:
            raise InputRefused(
                f"tensor '{printable(info.name)}' has shape {list(info.shape)} in {printable(self.tuned.path)} and "
                f"{list(other.shape)} in {printable(self.base.path)}",
                code="shape",
                tensor=info.name,
                details={"found": list(info.shape), "expected": list(other.shape)},
            )
        after, before = part_of(self.tuned, info, transform), part_of(self.base, other, transform)
        delta = after - before
        size = _norm(delta)
        if size == 0:
            return None
        name = writing.module_name(self.layout, place, self.wanted.names)
        relative = size / (_norm(before) or float("inf"))
        if self.wanted.kind == "dora":
            part, lengths = writing.magnitude(_row_norms(after), delta.ndim, self.wanted.names)
            self.spool.add(f"{name}.{part}", lengths)
        del after, before  # the largest layer is 50 MB, and factors are found in float64
        if self.wanted.kind == "full":
            self.full(name, place, slot, delta)
            return Layer(name, place.component, 0, 1.0, relative, size)
        matrix = delta.reshape(len(delta), -1)
        convolution = prod(delta.shape[2:]) > 1
        rank = self.wanted.conv_rank or self.wanted.rank if convolution else self.wanted.rank
        found = svd.factored(matrix, rank, device=self.device)
        assert found is not None
        if self.wanted.clamp:
            found = clamped(matrix, found, self.wanted.clamp)
        self.low_rank(name, found, delta.shape)
        (self.ranks.conv if convolution else self.ranks.linear).add((len(found.down), float(len(found.down))))
        return Layer(name, place.component, len(found.down), found.kept, relative, size)

    def full(self, name: str, place: Place, slot: Slot, delta: Array) -> None:
        is_norm = "norm" in place.path.rpartition(".")[2] or place.path.endswith("conv_norm_out")
        is_weight = slot is place.weight
        part = ("w_norm" if is_weight else "b_norm") if is_norm else "diff" if is_weight else "diff_b"
        self.spool.add(f"{name}.{part}", delta.astype("f4"))

    def low_rank(self, name: str, found: Factors, shape: tuple[int, ...]) -> None:
        rank, tail, dialect = len(found.down), shape[2:], self.wanted.names
        down = found.down.reshape(rank, *shape[1:])
        up = found.up.reshape(shape[0], rank, *[1] * len(tail))
        self.spool.add(writing.key(name, keys.DOWN, dialect), down.astype("f4"))
        self.spool.add(writing.key(name, keys.UP, dialect), up.astype("f4"))
        if dialect == writing.KOHYA:
            self.spool.add(writing.key(name, keys.ALPHA, dialect), _number(rank))


def _number(value: float) -> Array:
    import numpy as np

    return np.array(value, np.float32)


def _norm(array: Array) -> float:
    import numpy as np

    rows = array.reshape(len(array), -1)
    blocks = (rows[at : at + 256].astype(np.float64) for at in range(0, len(rows), 256))  # not all of it in float64
    return sqrt(sum(float(np.linalg.norm(block)) ** 2 for block in blocks))


def _row_norms(array: Array) -> Array:
    import numpy as np

    return np.sqrt(np.sum(array.reshape(len(array), -1).astype(np.float64) ** 2, axis=1)).astype(np.float32)


def _outline(spooled: Checkpoint, work: _Work, recipe: dict[str, Any], settings: Settings, title: str) -> Outline:
    from .. import __version__

    checkpoints, layout = (work.tuned, work.base), work.layout
    family = layout.original or layout
    base = writing.layout_of(family.adapters.name) if family.adapters else None
    known = prediction(work.tuned, layout)
    v_prediction = known is not None and known.kind == V_PREDICTION
    args = _LYCORIS.get(work.wanted.kind)
    module = "lycoris.kohya" if args else "networks.lora"
    texts = writing.metadata(base, work.ranks, module=module, v_prediction=v_prediction, args=args)
    texts["ss_output_name"] = title
    kind = writing.kind(base, work.wanted.names, v_prediction=v_prediction)
    pieces = [
        rounded(len(checkpoints), info, None if info.name.endswith(".alpha") else settings.target_dtype,
                action=EXTRACTED)
        for info in spooled.tensors.values() if work.ranks.are_uniform() or not info.name.endswith(".alpha")
    ]  # fmt: skip
    return Outline(
        "extract-lora",
        (*checkpoints, spooled),
        writing.in_order(pieces),
        Metadata(texts, tuple(parent(each) for each in checkpoints), recipe, title, kind, __version__, is_adapter=True),
        hashed=bool(settings.hash),
        family=detect(spooled.tensors).layout.name,
        notes=tuple(f"{printable(each.path)}: {note}" for each in checkpoints for note in each.notes),
    )


def _recipe(wanted: Extraction, settings: Settings) -> dict[str, Any]:
    given: dict[str, Any] = {"kind": wanted.kind, "names": wanted.names}
    for prefix, rank in (("", wanted.rank), ("conv_", wanted.conv_rank)):
        if rank is not None and wanted.kind != "full":
            numbers = {"rank": rank.most, "energy": rank.energy, "sigma_ratio": rank.ratio}
            given |= {prefix + name: value for name, value in numbers.items() if value}
    if wanted.clamp:
        given["clamp"] = wanted.clamp
    return {"method": "extract-lora", "parameters": given, **settings.recorded}


def _described(layers: Sequence[Layer]) -> dict[str, Any]:
    return {"layers": [each._asdict() for each in layers]}


def _lines(layers: Sequence[Layer]) -> list[str]:
    """Shares by component, the ranks, and the layers of which least is kept."""
    lines = []
    for component in dict.fromkeys(layer.component for layer in layers):
        own = [layer for layer in layers if layer.component == component]
        total = sum(layer.size**2 for layer in own)
        kept = (sum((layer.size * layer.kept) ** 2 for layer in own) / total) ** 0.5
        ranks = sorted({layer.rank for layer in own})
        shown = "" if not ranks[-1] else f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        differ = "differs" if len(own) == 1 else "differ"
        lines.append(
            f"{component}: {number_of(len(own), 'layer')} {differ}, {100 * kept:.2f} % of the difference kept{shown}, "
            f"its norm {100 * max(layer.relative for layer in own):.3g} % of the weight's at most"
        )
    worst = min(layers, key=lambda layer: layer.kept)
    if worst.kept < 1:
        lines.append(f"least kept: {100 * worst.kept:.2f} % of {printable(worst.name)}")
    return lines
