"""unmix: which of the candidates a model was mixed from, in what ratio, block by block. docs/unmix.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import Failure, InputRefused, UsageError, printable
from ..layouts import UNKNOWN, conflict, detect
from ..report.warnings import in_json, warned
from ..settings import Settings
from .common import Input, close_all, open_all, open_input
from .gram import Gram, Grams, grams

if TYPE_CHECKING:
    from ..layouts import Layout
    from .guesses import Guess
    from .mixture import Fit
    from .proof import Proof

Array = Any

MISSING_SHARE = 3e-3
"""A residual below this share of the spread is not called a missing parent where no block stands out."""
_CONSTANT = 5.0  # standard errors within which a block has the overall ratio
_BLOCKWISE = 2e-3
_FURTHER = (2e-4, 2e-3)
"""A proof also tries decimals so far away: where parents are few ulps apart, rounding is not independent of them."""


@dataclass
class BlockMix:
    """Ratios of one block by candidate's number, their standard errors, what the best mix leaves: ``unexplained`` as a
    share of the block's spread, ``over_rounding`` as a multiple of the size of rounding."""

    ratios: dict[int, float]
    errors: dict[int, float]
    unexplained: float
    over_rounding: float
    tensors: int
    elements: int


@dataclass
class Unmixing:
    """What ``unmix`` found. ``ratios``, ``errors`` and those of ``blocks`` are by the candidates' paths; candidates
    that explain nothing are in ``left_out`` and nowhere else.

    ``unexplained``: what the best mix leaves, as a share of the weights' spread (their standard deviation), beside
    ``rounding``, the share that rounding to the file's dtype leaves. ``complete``: whether rounding accounts for it;
    where it doesn't, a parent may be missing, and the ratios are upper bounds. ``unique``: whether another mix of the
    candidates would be as near. ``condition``: of the normal equations. ``proof``: ``prove``'s, None where not asked.
    """

    path: str
    family: str
    candidates: list[str]
    ratios: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, dict[str, float]] = field(default_factory=dict)
    block_errors: dict[str, dict[str, float]] = field(default_factory=dict)
    block_residuals: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    unexplained: float = 0.0
    rounding: float = 0.0
    complete: bool = True
    constant: bool = True
    unique: bool = True
    condition: float = 1.0
    formula: str = ""
    command: str = ""
    preset: str | None = None
    proof: dict[str, Any] | None = None
    residual_ranks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    how: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Unmixing of {self.path}: {self.formula}, {self.unexplained:.2%} unexplained>"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **in_json(self.notes)}


def unmix(
    mix: Input, candidates: Sequence[Input], settings: Settings, *, folder: str | os.PathLike[str] | None = None,
    prove: bool = False,
) -> Unmixing:  # fmt: skip
    """``sdsurgery.unmix``."""
    first = open_input(mix, settings, selective=True, name="the mix")
    opened = [first]
    try:
        opened += open_all(candidates, settings, selective=True)
        ours = detect(first.tensors)
        notes: list[str] = []
        for other in opened[1:]:
            different = conflict(ours, detect(other.tensors))
            if different:
                raise InputRefused(f"{printable(other.path)}: another family than the mix: {different}", code="family")
        if folder is not None:
            found, notes = _of_folder(folder, opened, ours, settings)
            opened += found
        if len(opened) < 2:
            raise UsageError(
                "no candidates: name the files that the mix may be made of, or a folder (folder=…)", code="wrong_inputs"
            )
        return _Unmixer(opened, ours.layout, settings, notes).result(prove)
    finally:
        close_all(opened)


def _of_folder(
    folder: str | os.PathLike[str], opened: Sequence[Checkpoint], ours: Any, settings: Settings
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints of the mix's family in a folder, but for the files that are open; and notes on the others."""
    try:
        names = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise InputRefused(
            f"{printable(os.fspath(folder))}: cannot be listed: {error.strerror}", code="not_found"
        ) from None
    known = {os.path.realpath(each.path) for each in opened}
    found, strangers = [], 0
    try:
        for path in names:
            if os.path.realpath(path) in known:
                continue
            try:
                other = open_input(path, settings, selective=True)
            except Failure:
                strangers += 1
                continue
            theirs = detect(other.tensors)
            same = theirs.layout is ours.layout if ours.layout is not UNKNOWN else True
            if same and not conflict(ours, theirs):
                found.append(other)
            else:
                strangers += 1
                other.close()
    except BaseException:
        close_all(found)
        raise
    where = printable(os.fspath(folder))
    return found, [f"{where}: {strangers} files are not of the mix's family and were left out"] if strangers else []


class _Part:
    """Sums over some tensors: ``plain`` Gram matrix, and ``weighted`` by 1/(variance of rounding) of each tensor, so
    that its residual is a number of elements where rounding is all that is left."""

    def __init__(self, chosen: Iterable[Gram], count: int) -> None:
        import numpy as np

        from .mixture import noise

        self.plain, self.weighted = np.zeros((count, count)), np.zeros((count, count))
        self.elements = self.tensors = 0
        self.spread = self.rounding = 0.0
        for each in chosen:
            error = noise(each.square, each.elements, each.dtypes)
            self.plain += each.products
            self.weighted += each.products * (each.elements / max(error, 1e-30 * each.square, 1e-300))
            self.elements += each.elements
            self.tensors += 1
            self.spread += max(each.square - each.total**2 / each.elements, 0.0)
            self.rounding += error

    def fit(self, keep: list[int]) -> Fit:
        from .mixture import fit

        return fit(self.weighted, self.elements, keep)

    def left(self, ratios: Array) -> float:
        """The residual as a share of the spread."""
        energy = max(float(ratios @ self.plain @ ratios), 0.0)
        return float((energy / self.spread) ** 0.5) if self.spread else 0.0

    def over_rounding(self, ratios: Array) -> float:
        return float((max(float(ratios @ self.weighted @ ratios), 0.0) / max(1, self.elements)) ** 0.5)


class _Unmixer:
    def __init__(self, opened: list[Checkpoint], layout: Layout, settings: Settings, notes: list[str]) -> None:
        self.opened, self.layout, self.settings = opened, layout, settings
        self.read: Grams = grams(opened, layout, settings)
        self.count = len(opened) - 1
        self.names = [each.path for each in opened[1:]]
        self.short = short_names(self.names)
        self.notes = [*notes, *self.read.notes]
        odd = [each.name for each in self.read.tensors if not each.finite]
        if odd:
            self.notes.append(f"{len(odd)} tensors hold NaN or Inf and were left out ('{printable(odd[0])}')")
        self.tensors = [each for each in self.read.tensors if each.finite]
        if not self.tensors:
            raise InputRefused(
                f"{printable(opened[0].path)}: no candidate has a weight of the same name and shape", code="unlike"
            )
        if self.read.alone:
            self.notes.append(
                f"{len(self.read.alone)} weights of the mix are in no candidate ('{printable(self.read.alone[0])}')"
            )

    def block_of(self, name: str) -> str:
        if not self.layout.blocks:
            return "all"
        return self.layout.block(name) or "BASE"

    def part(self, keep: Sequence[int], chosen: Iterable[Gram] | None = None) -> _Part:
        """Of the tensors that all of the candidates ``keep`` have."""
        given = self.tensors if chosen is None else chosen
        return _Part((each for each in given if all(each.has[i] for i in keep)), self.count)

    def result(self, prove: bool) -> Unmixing:
        from .guesses import guesses
        from .ranks import residual_ranks

        found = Unmixing(self.opened[0].path, self.layout.name, self.names, notes=self.notes)
        found.tensors, found.bytes_read = len(self.tensors), self.read.bytes_read
        found.seconds, found.how = self.read.outcome.seconds, self.read.outcome.how
        usable = self._usable(found)
        parents = self._parents(usable)
        by_block = self._by_block(parents)
        main = self._main(parents, by_block)
        self._fill(found, parents, by_block, main)
        self._say_candidates(found, usable, parents)
        found.notes += self._components(parents)
        best = guesses(self, parents, by_block, main)
        found.formula, found.command, found.preset = best[0].formula, best[0].command, best[0].preset
        if not found.complete:
            found.residual_ranks = residual_ranks(self, by_block)
            found.notes += _rank_notes(found.residual_ranks)
        if prove:
            more = [guess for far in _FURTHER for guess in guesses(self, parents, by_block, main, far)]
            self._prove(found, list({guess.command: guess for guess in [*best, *more]}.values()))
        return found

    # ---- who

    def _usable(self, found: Unmixing) -> list[int]:
        """The candidates, of identical ones only the first."""
        identical: dict[int, list[int]] = {}
        usable: list[int] = []
        for i in range(self.count):
            if not any(each.has[i] for each in self.tensors):
                found.notes.append(f"{self.short[i]} has no weight of the mix and was left out")
                continue
            twin = next((j for j in usable if self._distance(i, j) == 0.0), None)
            if twin is None:
                usable.append(i)
            else:
                identical.setdefault(twin, []).append(i)
        for i, others in identical.items():
            names = " and ".join(self.short[j] for j in others)
            found.notes.append(f"{names} has the same weights as {self.short[i]}, which stands for both")
        return usable

    def _distance(self, i: int, j: int) -> float | None:
        """Σ(Cᵢ − Cⱼ)² over the weights that they share with the mix; None when one has weights that the other lacks."""
        if any(each.has[i] != each.has[j] for each in self.tensors):
            return None
        return sum(each.products[i, i] - 2 * each.products[i, j] + each.products[j, j] for each in self.tensors)

    def _parents(self, usable: list[int]) -> list[int]:
        """Who explains something: of the whole model, or of some block."""
        from .mixture import eliminated

        together = [i for i in usable if self.part(usable).elements or i == usable[0]]
        whole = self.part(together)
        if not whole.elements:  # no tensor that all have: one after the other
            together = [max(usable, key=lambda i: sum(each.elements for each in self.tensors if each.has[i]))]
            whole = self.part(together)
        parents, _ = eliminated(whole.weighted, whole.elements, together)
        for _, chosen in self._blocks():
            part = self.part(together, chosen)
            if part.elements:
                more, fitted = eliminated(part.weighted, part.elements, together)
                strong = [i for i in more if abs(fitted.ratios[i]) > max(10 * fitted.errors[i], 0.01)]
                parents += [i for i in strong if i not in parents and not self._same_there(i, parents, chosen)]
        return sorted(parents)

    def _same_there(self, i: int, parents: Sequence[int], chosen: Sequence[Gram]) -> bool:
        """Whether a parent has the same weights as candidate i in these tensors."""
        return any(
            sum(each.products[i, i] - 2 * each.products[i, j] + each.products[j, j] for each in chosen) == 0.0
            for j in parents if j != i
        )  # fmt: skip

    def _blocks(self) -> Iterator[tuple[str, list[Gram]]]:
        by_name: dict[str, list[Gram]] = {}
        for each in self.tensors:
            by_name.setdefault(self.block_of(each.name), []).append(each)
        order = {block: number for number, block in enumerate(self.layout.blocks)}
        yield from sorted(by_name.items(), key=lambda item: order.get(item[0], len(order)))

    # ---- how much

    def _by_block(self, parents: list[int]) -> dict[str, BlockMix]:
        overall = self.part(parents).fit(parents).ratios
        found = {}
        for block, chosen in self._blocks():
            keep = [i for i in parents if any(each.has[i] for each in chosen)]
            part = self.part(keep, chosen)
            if not part.elements or not keep:
                continue
            ratios, errors = self._block_ratios(part, keep, overall)
            full, wrong = _array(ratios, self.count), part
            found[block] = BlockMix(
                {i: ratios.get(i, 0.0) for i in parents}, {i: errors.get(i, 0.0) for i in parents},
                wrong.left(full), wrong.over_rounding(full), part.tensors, part.elements,
            )  # fmt: skip
        return found

    def _block_ratios(self, part: _Part, keep: list[int], overall: Array) -> tuple[dict[int, float], dict[int, float]]:
        """Candidates with the same weights there share one ratio, as they do overall."""
        groups: list[list[int]] = []
        for i in keep:
            plain = part.plain
            home = next((g for g in groups if plain[i, i] - 2 * plain[i, g[0]] + plain[g[0], g[0]] == 0.0), None)
            if home is None:
                groups.append([i])
            else:
                home.append(i)
        fitted = part.fit([group[0] for group in groups])
        ratios, errors = {}, {}
        for group in groups:
            share = float(sum(overall[i] for i in group))
            for number, i in enumerate(group):
                own = float(overall[i]) / share if abs(share) > 1e-6 else float(number == 0)
                ratios[i] = float(fitted.ratios[group[0]]) * own
                errors[i] = float(fitted.errors[group[0]]) * abs(own)
        return ratios, errors

    def _main(self, parents: list[int], by_block: dict[str, BlockMix]) -> tuple[Fit, set[str]]:
        """The ratios of the model, and the blocks that have others: of all blocks together, or of the network's where
        VAE or text encoder differ."""
        apart: set[str] = set()
        whole = self.part(parents).fit(parents)
        for without in ((), ("VAE",), ("VAE", "BASE")):
            chosen = [each for each in self.tensors if self.block_of(each.name) not in without]
            part = self.part(parents, chosen)
            if not part.elements:
                continue
            main = part.fit(parents)
            apart = {block for block, mix in by_block.items() if not _agrees(mix, main, parents)}
            if apart <= set(without):
                return main, apart
        return whole, {block for block, mix in by_block.items() if not _agrees(mix, whole, parents)}

    def _fill(
        self, found: Unmixing, parents: list[int], by_block: dict[str, BlockMix], main: tuple[Fit, set[str]]
    ) -> None:
        from .mixture import MISSING

        fitted, apart = main
        network = set(by_block) - {"VAE", "BASE"}
        found.constant = not apart & (network or set(by_block))
        found.ratios = {self.names[i]: float(fitted.ratios[i]) for i in parents}
        found.errors = {self.names[i]: float(fitted.errors[i]) for i in parents}
        found.left_out = [self.names[i] for i in range(self.count) if i not in parents]
        found.condition, found.unique = fitted.condition, fitted.unique
        for block, mix in by_block.items():
            found.blocks[block] = {self.names[i]: ratio for i, ratio in mix.ratios.items()}
            found.block_errors[block] = {self.names[i]: error for i, error in mix.errors.items()}
            found.block_residuals[block] = {"unexplained": mix.unexplained, "over_rounding": mix.over_rounding}
        parts = {block: self.part([], chosen) for block, chosen in self._blocks()}
        spread = sum(part.spread for part in parts.values()) or 1.0
        energy = sum(mix.unexplained**2 * parts[block].spread for block, mix in by_block.items())
        found.unexplained = (energy / spread) ** 0.5
        found.rounding = (sum(part.rounding for part in parts.values()) / spread) ** 0.5
        beyond = [block for block, mix in by_block.items() if mix.over_rounding**2 > MISSING]
        found.complete = not beyond
        if beyond and found.unexplained > MISSING_SHARE:
            found.notes.append(warned("unexplained", share=found.unexplained, rounding=found.rounding))
        elif beyond:
            found.notes.append(
                f"the best mix leaves more than rounding in {len(beyond)} blocks ({', '.join(beyond[:6])}"
                f"{', …' if len(beyond) > 6 else ''}), {found.unexplained:.3%} of the spread"
            )

    # ---- what else can be said

    def _say_candidates(self, found: Unmixing, usable: list[int], parents: list[int]) -> None:
        from .mixture import MISSING, coarser, eliminated, noise

        for i in usable:
            there = [each for each in self.tensors if each.has[i]]
            energy = sum(each.products[i, i] for each in there)
            rounding = sum(noise(each.square, each.elements, each.dtypes[i + 1 : i + 2]) for each in there)
            if energy == 0.0:
                found.notes.append(f"{self.short[i]} has the weights of the mix, bit for bit in value")
            elif energy <= MISSING * rounding and any(coarser(e.dtypes[i + 1], e.dtypes[0]) for e in there):
                found.notes.append(f"{self.short[i]} is this model in {there[0].dtypes[i + 1].name}")  # type: ignore[union-attr]
        if len(usable) < 3:
            return
        for i in usable:
            others = [j for j in usable if j != i]
            moved = [_moved(each, i) for each in self.tensors if each.has[i] and all(each.has[j] for j in others)]
            part = _Part(moved, self.count)
            if not part.elements:
                continue
            keep, fitted = eliminated(part.weighted, part.elements, others)
            if part.over_rounding(fitted.ratios) ** 2 <= MISSING:
                found.unique = False
                mix = " + ".join(f"{fitted.ratios[j]:.4g}·{self.short[j]}" for j in keep)
                found.notes.append(
                    f"{self.short[i]} is itself {mix} to within rounding: the answer is not unique, and this is the "
                    "shortest"
                )
                break

    def _components(self, parents: list[int]) -> list[str]:
        """Components that are a candidate's, unchanged."""
        by_component: dict[str, list[Gram]] = {}
        for each in self.tensors:
            by_component.setdefault(self.layout.component(each.name), []).append(each)
        if len(by_component) < 2:
            return []
        notes = []
        for component, chosen in by_component.items():
            same = [
                self.short[i] for i in range(self.count)
                if all(each.has[i] for each in chosen) and sum(each.products[i, i] for each in chosen) == 0.0
            ]  # fmt: skip
            if same and len(same) < self.count and len(parents) > 1:
                notes.append(f"{component} is that of {' and of '.join(same)}, unchanged")
            elif same:
                notes.append(f"{component} is the same in all files")
        return notes

    def _prove(self, found: Unmixing, best: Sequence[Guess]) -> None:
        from .proof import proved

        proof: Proof = proved(self, best)
        found.proof = proof.to_dict()
        found.formula, found.command, found.preset = proof.guess.formula, proof.guess.command, proof.guess.preset

    def stored(self, source: int, name: str) -> TensorInfo:
        """The tensor of file ``source`` (0: the mix) that the mix calls ``name``."""
        return self.read.tables[source][name]


def _moved(each: Gram, i: int) -> Gram:
    """The same products of differences from candidate i instead of the mix."""
    import numpy as np

    p = each.products
    return each._replace(products=p - p[:, i][:, None] - p[i, :][None, :] + np.full_like(p, p[i, i]))


def _agrees(mix: BlockMix, main: Fit, parents: Sequence[int]) -> bool:
    return all(
        abs(mix.ratios[i] - main.ratios[i])
        <= max(_CONSTANT * (mix.errors[i] ** 2 + float(main.errors[i]) ** 2) ** 0.5, _BLOCKWISE)
        for i in parents
    )


def _array(ratios: dict[int, float], count: int) -> Array:
    import numpy as np

    return np.array([ratios.get(i, 0.0) for i in range(count)])


def _rank_notes(ranks: Sequence[dict[str, Any]]) -> list[str]:
    low = [row for row in ranks if row["low"]]
    if not low:
        return (
            ["what is left is of full rank where it was looked at: training or a parent, not an adapter"]
            if ranks
            else []
        )
    most = max(row["rank"] for row in low)
    return [
        f"what is left is of low rank (at most {most}) in {len(low)} of {len(ranks)} layers looked at: an adapter is "
        "baked into the model; extract-lora gets it out of the difference to the mix without it"
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """Names for formulas: without folder and suffix where these differ, else the paths."""
    stems = [printable(os.path.splitext(os.path.basename(path))[0], 60) for path in paths]
    return [stem if stems.count(stem) == 1 else printable(path) for stem, path in zip(stems, paths, strict=True)]
