"""merge: one formula over the tensors of several checkpoints.

A decides what the output looks like: its names, its order and, unless asked otherwise, its dtypes. docs/semantics.md
is the table of what becomes of a tensor that is missing, of another shape, or not to be averaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..adapters.lora import RESULT, Lora, Placed
from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F16, DType
from ..errors import InputRefused, printable
from ..files import require_found
from ..layouts import Layout, Traits, detect
from ..methods.registry import Flag, Method, get
from ..outline import ADDED, KEPT, MERGED, Dropped, Outline, Piece, Whole, copied, require_computable
from ..outline import rounded as rounded_piece
from ..program import identity
from ..report.warnings import of_file
from ..settings import Settings
from .across import Found, known, require_plain
from .common import Input, close_all, merged_metadata, open_all, planned, run_all, title_of
from .matching import Names, fronts, in_names_of, is_bare, read_under, require_usable, without_unit_tail
from .outputs import require_free
from .preflight import completenesses, letter, letters, refuse_conflicts, refuse_strangers, remarks, who
from .ratios import BlockWeights, Ratios, RuleSet, bound, with_rest
from .report import Report
from .sanity import doubts
from .swaps import Swap
from .sweep import variants
from .variants import is_swapped, is_variant, is_widened, merged_channels, takes_differences
from .with_adapters import Adapters

if TYPE_CHECKING:
    from ..composition import Composition  # only the value: making one is not its work

_INTEGERS = ("int", "bool")  # kinds of dtypes
_LEFT = "the method leaves it unchanged"


def merge(
    method: str,
    inputs: Sequence[Input],
    settings: Settings,
    *,
    parameters: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    add_missing: bool = False,
    use_ema: str | Sequence[str] = (),
    blocks: BlockWeights | Mapping[str, BlockWeights] | None = None,
    rules: RuleSet | Mapping[str, RuleSet] | None = None,
    map: Names = (),
    loras: Sequence[Sequence[Lora]] = (),
    vae: Input | None = None,
) -> list[Report]:
    """``sdsurgery.merge`` and ``sdsurgery.sweep`` of files: one report, or one for each of several numbers.
    ``parameters`` are the method's, those of a sweep as lists; ``loras`` are adapters, each at one strength or several.
    """
    chosen = get(method)
    parameters, blocks = with_rest(chosen, len(inputs), parameters, blocks)
    averaged = tuple(letters(use_ema, len(inputs)))
    wanted, outs = [], []
    for variant in variants(chosen, parameters, out, loras):
        params = bound(chosen, inputs, variant.parameters)
        given = {RESULT: variant.loras} if loras else {}
        places = fronts(map)
        wanted.append(
            Merge(chosen, tuple(inputs), params, blocks, rules, add_missing, averaged, None, given, places, vae)
        )
        outs.append(variant.out)
    return _written(wanted, outs, settings)


def merge_tree(
    tree: Composition, settings: Settings, *, out: str | os.PathLike[str] | None,
    parameters: Mapping[str, Any] | None = None, add_missing: bool = False, use_ema: str | Sequence[str] = (),
    loras: Sequence[Sequence[Lora]] = (), vae: Input | None = None,
) -> list[Report]:  # fmt: skip
    """Evaluate a tree of method calls in one pass: every file is read once, every tensor rounded once. ``parameters``
    are other numbers than the tree's, or lists of them for a sweep; ``loras`` are applied after the tree's own. Raises
    as ``merge`` does; ``use_ema`` names the tree's files by letters, in the order of their first use."""
    count = len(tree.leaves)
    averaged = {k for k, leaf in enumerate(tree.leaves) if leaf.use_ema}.union(letters(use_ema, count))
    inputs = tuple(leaf.input for leaf in tree.leaves)
    own = {k: leaf.loras for k, leaf in enumerate(tree.leaves) if leaf.loras}
    wanted, outs = [], []
    for variant in variants(tree.method, tree.numbers(parameters or {}), out, loras):
        numbers = variant.parameters
        changed = tree._replace(params=numbers)
        given = (tree.method, inputs, numbers, tree.blocks, tree.rules, add_missing, tuple(sorted(averaged)), changed)
        of_result = (*tree.loras, *variant.loras)
        wanted.append(Merge(*given, loras={**own, RESULT: of_result} if of_result else own, vae=vae))
        outs.append(variant.out)
    return _written(wanted, outs, settings)


class Merge(NamedTuple):
    """A method of files, with its bound parameters; ``tree`` is where it comes from when it is more than one call.
    ``use_ema`` are the numbers of the inputs whose EMA weights are taken; ``loras`` adapters of inputs and result."""

    method: Method
    inputs: tuple[Input, ...]
    params: Mapping[str, Any]
    blocks: Any = None
    rules: Any = None
    add_missing: bool = False
    use_ema: tuple[int, ...] = ()
    tree: Composition | None = None
    loras: Placed = {}  # noqa: RUF012
    map: tuple[tuple[str, str], ...] = ()  # what names of B, C, … begin with, and what they are read with instead
    vae: Input | None = None  # a file whose VAE the output gets


def _written(
    wanted: Sequence[Merge], outs: Sequence[str | os.PathLike[str] | None], settings: Settings
) -> list[Report]:
    """Merges of the same files, which differ in their numbers."""
    for out in outs:
        require_free(out, settings)
    donors = [] if wanted[0].vae is None else [wanted[0].vae]
    require_found(wanted[0].inputs)
    opened = open_all((*wanted[0].inputs, *donors), settings, selective=True)
    checkpoints, vae = opened[: len(wanted[0].inputs)], opened[-1] if donors else None
    adapters = None
    try:
        for checkpoint in checkpoints[1:]:
            read_under(checkpoint, wanted[0].map)
        adapters = Adapters(wanted[0].loras, settings)
        outlines, recipes = [], []
        statistics: Found = {}
        own = [adapters.at(each.loras) for each in wanted]
        for each, out, lent in zip(wanted, outs, own, strict=True):
            recipes.append(_recipe(each, settings))
            outlines.append(plan_merge(
                each.method, checkpoints, each.params, settings, recipe=recipes[-1], add_missing=each.add_missing,
                title=title_of(out), use_ema=each.use_ema, blocks=each.blocks, rules=each.rules, tree=each.tree,
                adapters=lent, vae=vae, statistics=statistics,
            ))  # fmt: skip
        reports = run_all(outlines, outs, settings, recipes)
        for report, lent in zip(reports, own, strict=True):
            report.adapters = lent.described()
        return reports
    finally:
        close_all(opened)
        if adapters is not None:
            adapters.close()


def _recipe(wanted: Merge, settings: Settings) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "method": wanted.method.name,
        "parameters": {
            name: value
            for name, value in wanted.params.items()
            if not (value is None or (isinstance(wanted.method.params[name], Flag) and value is False))
        },
        **settings.recorded,
        "compute": settings.compute,
        "add_missing": wanted.add_missing,
    }
    if wanted.tree is not None and wanted.tree.is_tree:
        recipe["inputs"] = wanted.tree.lettered()
    if wanted.map:
        recipe["map"] = [f"{old}={new}" for old, new in wanted.map]
    if wanted.use_ema:
        recipe["use_ema"] = [letter(source) for source in wanted.use_ema]
    return recipe


def plan_merge(
    method: Method,
    checkpoints: Sequence[Checkpoint],
    params: Mapping[str, Any],
    settings: Settings,
    *,
    recipe: dict[str, Any],
    add_missing: bool = False,
    title: str = "untitled",
    use_ema: Sequence[int] = (),
    blocks: Any = None,
    rules: Any = None,
    tree: Composition | None = None,
    adapters: Adapters | None = None,
    vae: Checkpoint | None = None,
    statistics: Found | None = None,
) -> Outline:
    """Decide what becomes of every tensor. Reads headers, and a few bytes of tensors; every refusal is made here.

    ``recipe`` is completed with the block weights and rules as they were understood, ``statistics`` with those of
    whole models, where the method looks at them: then it reads all that is merged.
    """
    if add_missing and is_bare(checkpoints):
        from .fix_names import modernise

        modernise(checkpoints[0])  # what is added stands beside it under the names of a whole checkpoint
    detections = [detect(checkpoint.tensors) for checkpoint in checkpoints]
    if "map" not in recipe:  # which moves one kind's tensors to another's names
        refuse_conflicts(checkpoints, detections)
    layout = next((found.layout for found in detections if found.layout.name != "unknown"), detections[0].layout)
    require_plain(method, adapted=adapters is not None and bool(adapters.recipe()))
    tensors: list[Mapping[str, TensorInfo]] = [checkpoint.tensors for checkpoint in checkpoints]
    notes = [note for checkpoint in checkpoints for note in of_file(checkpoint.path, checkpoint.notes)]
    if layout.name == "unknown":
        notes.append("the layout is unknown; tensors were matched by name, key by key")
    for source, checkpoint in enumerate(checkpoints):
        require_usable(source, checkpoint, tensors[0], layout, add_missing=add_missing)
    for source in use_ema:
        from .ema import twins

        tensors[source] = {**tensors[source], **twins(checkpoints[source], detections[source].layout)}
        notes.append(f"{printable(checkpoints[source].path)}: EMA weights used in the U-Net's place")
    for source in range(1, len(tensors)):
        tensors[source], found = in_names_of(tensors[0], tensors[source], layout)
        notes += [f"{who(source, checkpoints)}: {text}" for text in found]
    sources = [*checkpoints, *(adapters.checkpoints() if adapters is not None else ())]
    baked: Mapping[str, Piece] = {}
    if vae is not None:
        swap = Swap(checkpoints[0], layout, "vae", len(sources), vae)
        notes += swap.judge(allow_missing=False)
        baked = swap.pieces(settings)
        sources.append(vae)
        recipe["vae"] = os.path.basename(vae.path) if settings.store_names else letter(len(checkpoints))
    weights: dict[str, Any] = {"blocks": blocks, "rules": rules} | ({} if tree is None else {"without": tree.without})

    def decisions(method: Method, counted: bool = False) -> _Decisions:
        ratios = Ratios(method, len(checkpoints), params, layout, **weights)
        return _Decisions(layout, checkpoints, tensors, ratios, settings, given=baked, counted=counted)

    if method.across is not None:
        first = decisions(method.across.unknown(method), counted=True)
        method = known(method, first.all(add_missing)[0], checkpoints, layout, settings, found=statistics)
    decide = decisions(method)
    ratios = decide.ratios
    recipe.update(ratios.recipe())
    pieces, dropped, missing = decide.all(add_missing)
    shared = sum(piece.action == MERGED or piece.note == _LEFT for piece in pieces)
    refuse_strangers(checkpoints, shared, missing, settings.allow_unlike)
    notes += completenesses(checkpoints, detections, add_missing=add_missing, given=() if vae is None else ("vae",))
    notes += [
        *decide.notes,
        *ratios.notes(),
        *remarks(checkpoints, detections, missing, tensors, fix_clip=settings.fix_clip),
    ]
    changed = frozenset() if adapters is None else adapters.places()
    notes += doubts(checkpoints, tensors, ratios, pieces, changed)
    if adapters is not None:
        pieces, found = adapters.applied(pieces, tensors, layout, checkpoints[0].path)
        notes = found + notes
        recipe.update(adapters.recipe())
    metadata = merged_metadata(sources, layout, recipe, title)
    return planned(
        "merge", sources, pieces, metadata, settings=settings, layout=layout, notes=notes, dropped=dropped,
        missing=tuple(missing),
    )  # fmt: skip


class _Decisions:
    """What becomes of each tensor, one rule after the other."""

    def __init__(
        self,
        layout: Layout,
        checkpoints: Sequence[Checkpoint],
        tensors: Sequence[Mapping[str, TensorInfo]],
        ratios: Ratios,
        settings: Settings,
        *,
        given: Mapping[str, Piece],
        counted: bool,
    ) -> None:
        self.layout, self.checkpoints, self.tensors, self.ratios = layout, checkpoints, tensors, ratios
        self.given = given  # what comes from elsewhere
        self.counted = counted  # tensors that the method leaves A's are wanted too: its statistics count them
        self.dtype_of, self.watched = settings.dtype_of, settings.watched
        self.notes: list[str] = []
        self.missing: list[tuple[int, str]] = []
        self._groups: dict[tuple[Any, ...], Piece] = {}

    def all(self, add_missing: bool) -> tuple[list[Piece], list[Dropped], list[tuple[int, str]]]:
        first = self.tensors[0]
        pieces, dropped = [], []
        for name, info in first.items():
            traits = self.layout.traits(name)
            if traits.ema:
                dropped.append(Dropped(0, name, "EMA weights (they belong to the unmerged model)"))
            else:
                pieces.append(self.given.get(name) or self.one(name, info, traits))
        pieces += [piece for name, piece in self.given.items() if name not in first]
        added: set[str] = set()
        for source in range(1, len(self.tensors)):
            for name, info in self.tensors[source].items():
                if name in first or name in self.given or name in added or self.layout.is_ema(name):
                    continue
                if not add_missing:
                    dropped.append(Dropped(source, name, "not in A"))
                    continue
                added.add(name)
                dtype = (
                    None if self.layout.exact_copy(name) or info.dtype.kind != "float" else self.dtype_of(info.shape)
                )
                pieces.append(self.alone(source, name, info, dtype, action=ADDED))
        return pieces, dropped, self.missing

    def one(self, name: str, info: TensorInfo, traits: Traits) -> Piece:
        infos = tuple([tensors[name] for tensors in self.tensors if name in tensors])
        # Where ratios depend on the block alone, the same becomes of all of a block's tensors that have the same forms.
        group = (traits, *[id(each.form) for each in infos])
        like = self._groups.get(group)
        if like is not None and like.whole is not None:
            segments = Whole(like.whole.formula, infos)
            return Piece(name, like.dtype, like.shape, like.action, segments, like.note, like.facts)
        if traits.exact_copy:
            return copied(0, info, name=name, note="copied exactly (not a weight)")
        elements = info.elements
        if not elements or info.dtype.kind in _INTEGERS:
            return copied(0, info, name=name, note="integers are never averaged" if elements else "an empty tensor")
        if len(infos) < len(self.tensors) or any(x.shape != info.shape or not x.dtype.computable for x in infos):
            return self.unlike(name, info, traits)
        if not self.counted and self.ratios.leaves(name):
            return self.alone(0, name, info, self.dtype_of(info.shape), action=KEPT, note=_LEFT)
        piece = self.merged(name, info, infos, traits)
        if self.ratios.by_block:
            self._groups[group] = piece
        return piece

    def merged(
        self, name: str, info: TensorInfo, infos: Sequence[TensorInfo], traits: Traits, *,
        absent: frozenset[int] = frozenset(), sources: tuple[int, ...] | None = None,
    ) -> Piece:  # fmt: skip
        """The formula over ``infos``, which are of the inputs ``sources``, or of all; ``info`` is A's."""
        for each in infos:
            if each.encoded is not None:
                require_computable(each)
        formula, facts = self.ratios.of(name, traits.block, absent)
        segments = Whole(formula, tuple(infos), sources)
        return Piece(name, self.written(name, info), info.shape, MERGED, segments, facts=facts)

    def unlike(self, name: str, info: TensorInfo, traits: Traits) -> Piece:
        """Where an input lacks the tensor, has it in another shape, or as something else than floats."""
        all_of_it = [info, *self.others(name)]
        if len(all_of_it) < len(self.tensors):
            return self.without(name, info, traits)
        for each in all_of_it:
            if each.shape != info.shape:
                return self.of_several_shapes(name, all_of_it, traits)
            require_computable(each)
        raise AssertionError("then it is not unlike")

    def without(self, name: str, info: TensorInfo, traits: Traits) -> Piece:
        """Where an input lacks the tensor: what the recipe's tree makes of the others."""
        present = {at: each[name] for at, each in enumerate(self.tensors) if name in each and self.averaged(each[name])}
        inputs = self.ratios.inputs(frozenset(range(len(self.tensors))) - frozenset(present))
        if inputs is None:
            return self.alone(0, name, info, self.dtype_of(info.shape), action=KEPT, note="missing in another input")
        for at in inputs:
            self.require_shape(name, info, present[at], self.checkpoints[at])
            require_computable(present[at])
        absent = frozenset(range(len(self.tensors))) - frozenset(present)
        return self.merged(name, info, [present[at] for at in inputs], traits, absent=absent, sources=inputs)

    @staticmethod
    def averaged(info: TensorInfo) -> bool:
        return info.dtype.kind not in _INTEGERS

    def of_several_shapes(self, name: str, all_of_it: Sequence[TensorInfo], traits: Traits) -> Piece:
        info, *others = all_of_it
        if self.is_variant(name, info, others):
            return self.variant(name, info, others, traits)
        for other, checkpoint in zip(others, self.checkpoints[1:], strict=True):
            self.require_shape(name, info, other, checkpoint)
        for each in all_of_it:
            require_computable(each)
        return self.merged(name, info, all_of_it, traits)

    def others(self, name: str) -> list[TensorInfo]:
        """B's, C's, … tensor of that name; an input that has no such weight is left out, and noted."""
        found = []
        for source in range(1, len(self.tensors)):
            other = self.tensors[source].get(name)
            if other is None:
                self.missing.append((source, name))
            elif other.dtype.kind in _INTEGERS:
                path = printable(self.checkpoints[source].path)
                self.notes.append(f"'{printable(name)}' is {other.dtype.name} in {path}; A's was kept")
            else:
                found.append(other)
        return found

    def is_variant(self, name: str, info: TensorInfo, others: Sequence[TensorInfo]) -> bool:
        """Whether only channels 0–3 of a first convolution are to be merged."""
        if is_widened(name, info, others):
            return takes_differences(self.ratios.method, self.ratios.params)
        return is_variant(name, info, others)

    def variant(self, name: str, info: TensorInfo, others: Sequence[TensorInfo], traits: Traits) -> Piece:
        dtype = self.written(name, info)
        rest = None if dtype is info.dtype and not self.watched and info.encoded is None else identity()
        formula, facts = self.ratios.of(name, traits.block)
        piece = merged_channels(name, (info, *others), dtype, formula, rest)._replace(facts=facts)
        channels = ", ".join(f"{letter(source)} {each.shape[1]}" for source, each in enumerate((info, *others)))
        self.notes.append(f"'{printable(name)}': {piece.note} (input channels: {channels})")
        return piece

    def alone(
        self, source: int, name: str, info: TensorInfo, dtype: DType | None, *, action: str, note: str = ""
    ) -> Piece:
        if info.encoded is not None:
            dtype = self.written(name, info)
        return rounded_piece(source, info, dtype, name=name, action=action, note=note, watched=self.watched)

    def written(self, name: str, info: TensorInfo) -> DType:
        """The dtype that a tensor is written in: the one asked for, or its own; of an encoded weight that of the first
        input with a plain one, else fp16."""
        asked = self.dtype_of(info.shape)
        if asked is not None or info.encoded is None:
            return asked or info.dtype
        others = (tensors.get(name) for tensors in self.tensors)
        return next((each.dtype for each in others if each is not None and each.encoded is None), F16)

    def require_shape(self, name: str, info: TensorInfo, other: TensorInfo, checkpoint: Checkpoint) -> None:
        # [o, i, 1, 1] and [o, i] are the same matrix: a 1×1 convolution and a linear layer, as VAE files have both.
        if is_swapped(name, info, other):
            raise InputRefused(
                f"tensor '{printable(name)}' has {other.shape[1]} input channels in "
                f"{printable(checkpoint.path)} and {info.shape[1]} in {printable(self.checkpoints[0].path)}; swap the "
                "inputs: the model with more input channels must be A",
                code="shape",
                tensor=name,
                path=checkpoint.path,
                details={"found": list(other.shape), "expected": list(info.shape)},
            )
        if without_unit_tail(info.shape) != without_unit_tail(other.shape):
            raise InputRefused(
                f"tensor '{printable(name)}' has shape {list(other.shape)} in {printable(checkpoint.path)}, "
                f"{list(info.shape)} expected as in {printable(self.checkpoints[0].path)}",
                code="shape",
                tensor=name,
                path=checkpoint.path,
                details={"found": list(other.shape), "expected": list(info.shape)},
            )
