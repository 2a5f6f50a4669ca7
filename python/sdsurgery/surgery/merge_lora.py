"""merge-lora: several adapters as one, by their effects; one adapter at another rank or in another dialect.

Sources: kohya-ss/sd-scripts 48d368f ``networks/{svd_merge_lora,resize_lora}.py``. Unlike ``merge_lora.py`` there, which
adds factors (or, with ``--concat``, keeps the first alpha and squares the ratios), the sum is that of the products.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from ..adapters import keys, names, writing
from ..adapters.arrays import Array, array
from ..adapters.facts import tag_counts, training_facts
from ..adapters.kinds import is_per_input
from ..adapters.lora import Lora
from ..adapters.names import UNET
from ..adapters.pairing import Shapes, Slot, common_family, followed, naming_family, same_weight, slots
from ..adapters.read import Adapter, open_adapter
from ..adapters.spool import Spool
from ..adapters.sums import Combined, Term, Whole, bias_terms, combined, shape_of, term
from ..adapters.svd import Rank
from ..checkpoint import Checkpoint
from ..dtypes import F32, DType
from ..errors import InputRefused, UsageError, number_of, printable
from ..layouts import detect
from ..metadata import Metadata
from ..outline import EXTRACTED, Outline, Piece, operand, rounded, whole
from ..program import scaled
from ..report.warnings import shortened, warned
from ..settings import Settings
from .bake import strengths
from .common import close_all, parent, run, title_of
from .outputs import require_free
from .report import Report
from .scaled_fp8 import require_model


@dataclass
class _Sum:
    """The terms of one module: of its weight, and whole ones of further parts (``diff_b``, ``w_norm``, …)."""

    shape: tuple[int, ...] = ()
    terms: list[Term] = field(default_factory=list)
    others: dict[str, list[Whole]] = field(default_factory=dict)
    magnitude: tuple[str, Array] | None = None
    is_norm: bool = False


class Row(NamedTuple):
    """A module of the output, its rank (0: whole) and the share of its norm that is kept."""

    name: str
    rank: int
    kept: float


def merge_lora(
    loras: Sequence[Lora],
    settings: Settings,
    *,
    rank: Rank | None = None,
    dialect: str = writing.KOHYA,
    verb: str = "merge-lora",
    keep_kinds: bool = False,
    out: str | os.PathLike[str] | None = None,
) -> Report:
    """``sdsurgery.merge_lora``, ``resize_lora`` and ``convert`` with names. ``keep_kinds``: parts of LoHa and the like
    are written as they are, if under other names; for one adapter at strength 1."""
    if not loras:
        raise UsageError("give at least one adapter (loras=[…])", code="wrong_inputs")
    if dialect not in writing.DIALECTS:
        known = ", ".join(writing.DIALECTS)
        raise UsageError(f"names= cannot be '{printable(dialect)}'; known: {known}", code="bad_value")
    if rank is not None:
        rank.check()
    if settings.scaled:
        require_model()
    require_free(out, settings)
    opened: list[Checkpoint] = []
    try:
        adapters = []
        for each in loras:
            adapters.append(open_adapter(each.path, **settings.opening))
            opened.append(adapters[-1].checkpoint)
        with Spool() as spool:
            work = _Work(loras, adapters, rank, dialect, spool)
            rows = work.all(settings, keep_kinds=keep_kinds and dialect == writing.KOHYA)
            opened.append(spool.checkpoint())
        parameters: dict[str, Any] = {"loras": [each.to_json(each.name) for each in loras], "names": dialect}
        if rank is not None:
            numbers = {"rank": rank.most, "energy": rank.energy, "sigma_ratio": rank.ratio}
            parameters |= {name: value for name, value in numbers.items() if value}
        recipe = {"method": verb, "parameters": parameters, **settings.recorded}
        report = run(_outline(opened, work, recipe, settings, title_of(out)), out, settings, recipe)
        report.inputs, report.sha256 = report.inputs[: len(loras)], report.sha256[: len(loras)]
        report.seconds = report.seconds and report.seconds + spool.seconds
        report.adapters = [{"layers": [row._asdict() for row in rows]}]
        report.notes[:0] = [*_lines(rows), *work.notes]
        return report
    finally:
        close_all(opened)


class _Work:
    def __init__(
        self, loras: Sequence[Lora], adapters: Sequence[Adapter], rank: Rank | None, dialect: str, spool: Spool
    ) -> None:
        self.kept = set[str]()  # tensors that stay as they are
        self.loras, self.adapters, self.rank, self.dialect, self.spool = loras, adapters, rank, dialect, spool
        self.family, self.layout = common_family(adapters), naming_family(adapters)
        self.ranks = writing.Ranks(set(), set())
        self.scales: dict[str, float] = {}  # left factor -> alpha/rank, for a file without alphas
        self.notes: list[str] = []
        self.silent = 0  # modules at strength 0
        self.unread: list[str] = []  # tensors that readers of the dialect don't know
        self.shapes = Shapes(self.layout)

    def all(self, settings: Settings, *, keep_kinds: bool) -> list[Row]:
        """Sum and write every module."""
        for adapter in self.adapters:
            for name in adapter.strangers:
                self.notes.append(f"{printable(adapter.path)}: '{printable(name)}' is not part of an adapter; left out")
        found = slots(self.layout, self.adapters)
        rows: list[Row] = []
        for slot, members in followed(found, self.adapters, settings.callback):
            own = self._keep(slot, members) if keep_kinds else None
            if own is None:
                total = _Sum()
                for at, module in members:
                    self._add(total, slot, self.loras[at], self.adapters[at], module)
                rows += self._write(slot, total)
            else:
                rows.append(own)
        if not rows:
            why = "all strengths are 0" if self.silent else "the adapters' effects cancel out"
            raise InputRefused(f"{why}: nothing would be written", code="unlike")
        if self.silent:
            self.notes.append(f"left out: {number_of(self.silent, 'module')} at strength 0")
        unknown = [slot.name for slot in found if slot.place is None] if self.layout is not None else []
        if unknown:
            self.notes.append(
                f"{number_of(len(unknown), 'module')} under names that the family lacks, kept so: {shortened(unknown)}"
            )
        if self.unread:
            self.notes.append(
                warned("unread", tensors=number_of(len(self.unread), "tensor"), names=shortened(self.unread))
            )
        self._bundled()
        return rows

    def _keep(self, slot: Slot, members: Sequence[tuple[int, str]]) -> Row | None:
        """Write a module of another kind than plain LoRA with its parts as they are; None where that can't say the
        same."""
        (_, module), *more = members
        adapter = self.adapters[0]
        parts, kind, rank = adapter.modules[module], adapter.kind(module), adapter.rank(module)
        if more or self.layout is None or slot.place is None or kind is None:
            return None
        if kind.formula == "lora" and not {"bias", "bias_indices"} & set(parts):
            return None
        scale = adapter.scale(module, rank)
        is_scaled = scale != 1 and keys.ALPHA not in parts and "scale" not in parts  # by peft's settings
        if keys.MAGNITUDE_OUT in parts or (is_scaled and rank is None):
            return None
        name = writing.module_name(self.layout, slot.place, self.dialect)
        for part, info in parts.items():
            self.spool.raw(name + keys.suffix(part), adapter.checkpoint.read(info), info)
            self.kept.add(name + keys.suffix(part))
        if is_scaled and rank is not None:
            self.spool.add(name + keys.suffix(keys.ALPHA), _float32(scale * rank))
            self.kept.add(name + keys.suffix(keys.ALPHA))
        return Row(name, rank or 0, 1.0)

    def _add(self, total: _Sum, slot: Slot, lora: Lora, adapter: Adapter, module: str) -> None:
        parts, place = adapter.modules[module], slot.place
        if self.layout is not None and place is not None:
            strength = strengths(lora, self.layout)(place, module)
        else:
            component = names.component_of(module)
            te = lora.strength if lora.te is None else lora.te
            strength = te if component not in (None, UNET) else lora.strength
        if strength == 0:
            self.silent += 1
            return
        kind = adapter.kind(module)
        if kind is not None:
            shape = self.shapes.of(slot, shape_of(kind, adapter.shapes(module)))
            if total.shape and not same_weight(shape, total.shape):
                raise InputRefused(
                    f"module '{printable(module)}' is for a weight of shape {list(shape)} in {printable(adapter.path)}"
                    f", and of {list(total.shape)} in another adapter",
                    code="shape",
                    tensor=module,
                    path=adapter.path,
                )
            total.shape = max(total.shape, shape, key=lambda each: prod(each[2:]) if each else 0)
            self._magnitude(total, adapter, module)
            total.terms.append(term(adapter, module, shape, strength))
            total.is_norm = "w_norm" in parts
        for part, own in bias_terms(adapter, module, strength):
            total.others.setdefault(part, []).append(own)

    def _magnitude(self, total: _Sum, adapter: Adapter, module: str) -> None:
        part = next((each for each in (keys.MAGNITUDE, keys.MAGNITUDE_OUT) if each in adapter.modules[module]), None)
        if part is None:
            return
        if len(self.adapters) > 1:
            raise InputRefused(
                f"{printable(adapter.path)}: module '{printable(module)}' is DoRA, whose effect depends on the weight; "
                "bake it into the base model and extract an adapter from the result instead",
                code="unusable_tensor",
                tensor=module,
                path=adapter.path,
            )
        if self.loras[0].strength != 1 or self.loras[0].te not in (None, 1):
            raise InputRefused(
                f"{printable(adapter.path)}: a DoRA can't be scaled; give it strength 1",
                code="unusable_tensor",
                tensor=module,
                path=adapter.path,
            )
        total.magnitude = (part, array(adapter.checkpoint, adapter.modules[module][part]))
        note = "DoRA: the lengths are kept, which are right for whatever direction is left"
        if self.rank is not None and note not in self.notes:
            self.notes.append(note)

    def _write(self, slot: Slot, total: _Sum) -> list[Row]:
        module = slot.name
        if self.layout is not None and slot.place is not None:
            module = writing.module_name(self.layout, slot.place, self.dialect)
        rows = []
        found = combined(total.terms, None if total.is_norm else self.rank) if total.terms else None
        if found is not None:
            rows.append(Row(module, found.rank, found.kept))
            self._factors(module, found, total)
        for part, terms in total.others.items():
            values = sum(each.factor * each.values.astype("f8") for each in terms)
            self._difference(f"{module}.{part}", values.astype("f4"))  # type: ignore[union-attr]
            rows.append(Row(f"{module}.{part}", 0, 1.0))
        return rows

    def _factors(self, module: str, found: Combined, total: _Sum) -> None:
        import numpy as np

        shape, dialect = total.shape, self.dialect
        if found.values is not None and total.magnitude is not None:
            raise InputRefused(
                f"module '{printable(module)}' is DoRA over more than a product of two factors, which can't be written "
                "as LoRA; bake it into the base model and extract an adapter from the result instead",
                code="unusable_tensor",
                tensor=module,
            )
        if found.values is not None:
            part = "w_norm" if total.is_norm else "diff"
            self._difference(f"{module}.{part}", found.values.reshape(shape).astype(np.float32))
            return
        assert found.up is not None and found.down is not None
        up, down, rank = found.up, found.down, found.rank
        convolution = len(shape) == 4
        (self.ranks.conv if prod(shape[2:]) > 1 else self.ranks.linear).add((rank, found.alpha))
        self.spool.add(writing.key(module, keys.DOWN, dialect), down.reshape(rank, *shape[1:]).astype(np.float32))
        name = writing.key(module, keys.UP, dialect)
        self.spool.add(name, up.reshape(shape[0], rank, *[1] * (2 if convolution else 0)).astype(np.float32))
        self.scales[name] = found.alpha / rank
        if dialect == writing.KOHYA:
            self.spool.add(writing.key(module, keys.ALPHA, dialect), np.float32(found.alpha))
        if total.magnitude is not None:
            part, values = total.magnitude
            per_input = is_per_input(part, values.shape, shape[0])
            part, values = writing.magnitude(values, len(shape), dialect, per_input=per_input)
            self.spool.add(f"{module}.{part}", values)

    def _difference(self, name: str, values: Array) -> None:
        self.spool.add(name, values)
        if self.dialect == writing.DIFFUSERS:
            self.unread.append(name)

    def _bundled(self) -> None:
        """The embeddings that the adapters carry, as they are."""
        done = set()
        for adapter in self.adapters:
            for name in adapter.bundled:
                if name in done:
                    self.notes.append(f"{printable(adapter.path)}: '{printable(name)}' is in another adapter too")
                    continue
                done.add(name)
                info = adapter.checkpoint.tensors[name]
                self.spool.raw(name, adapter.checkpoint.read(info), info)


def _outline(
    opened: Sequence[Checkpoint], work: _Work, recipe: dict[str, Any], settings: Settings, title: str
) -> Outline:
    from .. import __version__

    *inputs, spooled = opened
    dtype = settings.target_dtype or _dtype(work.adapters)
    first, *others = [each.metadata() for each in inputs]
    agreed = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    agreed.pop("modelspec.implementation", None)  # which says whose names these are
    if words := _trigger_words([first, *others]):
        agreed["modelspec.trigger_phrase"] = ", ".join(words)
    if others and (tags := _tag_frequency([first, *others])):
        agreed["ss_tag_frequency"] = tags
    v_prediction = agreed.get("ss_base_model_version") == "sd_v2_v"
    plain = all(name.endswith(_PLAIN) or keys.is_bundled(name) for name in spooled.tensors)
    module = "networks.lora" if plain else "lycoris.kohya"
    without = work.dialect == writing.DIFFUSERS or not work.ranks.are_uniform()
    ranks = work.ranks.without_alphas() if without else work.ranks
    texts = writing.metadata(work.family, ranks, module=module, v_prediction=v_prediction, kept=agreed)
    texts["ss_output_name"] = title
    kind = writing.kind(work.family, work.dialect, v_prediction=v_prediction)
    number = len(inputs)
    pieces = []
    for info in spooled.tensors.values():
        if info.name in work.kept:
            dtype_of_it = settings.target_dtype if info.dtype.kind == "float" else None
            pieces.append(rounded(number, info, dtype_of_it, action=EXTRACTED))
            continue
        if without and info.name.endswith(".alpha"):
            continue
        if without and work.scales.get(info.name, 1.0) != 1.0:
            segments = whole(scaled(work.scales[info.name]), info.elements, (operand(number, info),))
            pieces.append(Piece(info.name, dtype, info.shape, EXTRACTED, segments))
            continue
        exact = info.name.endswith(".alpha") or info.name.startswith(keys.BUNDLED)
        pieces.append(rounded(number, info, None if exact else dtype, action=EXTRACTED))
    return Outline(
        str(recipe["method"]),
        tuple(opened),
        writing.in_order(pieces),
        Metadata(texts, tuple(parent(each) for each in inputs), recipe, title, kind, __version__, is_adapter=True),
        hashed=bool(settings.hash),
        family=detect(spooled.tensors).layout.name,
        notes=tuple(f"{printable(each.path)}: {note}" for each in inputs for note in each.notes),
    )


def _float32(value: float) -> Array:
    import numpy as np

    return np.array(value, np.float32)


def _dtype(adapters: Sequence[Adapter]) -> DType:
    """That of the adapters' tensors; float32 where they have several."""
    found = {
        info.dtype
        for adapter in adapters for parts in adapter.modules.values() for part, info in parts.items()
        if info.dtype.kind == "float" and part not in (keys.ALPHA, keys.MAGNITUDE, keys.MAGNITUDE_OUT, "scale")
    }  # fmt: skip
    return found.pop() if len(found) == 1 else F32


_PLAIN = (".lora_down.weight", ".lora_up.weight", ".alpha", ".lora_A.weight", ".lora_B.weight")


def _trigger_words(texts: Sequence[dict[str, str]]) -> list[str]:
    found = [training_facts(each).get("trigger_words", []) for each in texts if "modelspec.trigger_phrase" in each]
    return list(dict.fromkeys(word for words in found for word in words))


def _tag_frequency(texts: Sequence[dict[str, str]]) -> str:
    """kohya's ``ss_tag_frequency`` of all, by folder of training images: UIs list these tags. Empty where no file has
    one; that of a file which can't be read is left out."""
    counts: dict[str, dict[str, int]] = {}
    for text in dict.fromkeys(each.get("ss_tag_frequency", "") for each in texts):
        for folder, tags in tag_counts(text).items():
            own = counts.setdefault(folder, {})
            for tag, count in tags.items():
                own[tag] = own.get(tag, 0) + count
    return json.dumps(counts, ensure_ascii=False) if counts else ""


def _lines(rows: Sequence[Row]) -> list[str]:
    ranks = sorted({row.rank for row in rows if row.rank})
    shown = f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
    lines = [f"{number_of(len(rows), 'module')}{shown}"]
    worst = min(rows, key=lambda row: row.kept)
    if worst.kept < 1 - 1e-9:
        lines.append(f"least kept: {100 * worst.kept:.2f} % of {printable(worst.name)}")
    return lines
