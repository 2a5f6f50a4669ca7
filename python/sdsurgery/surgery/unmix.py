"""unmix: which of the candidates a model was mixed from, in what ratio, block by block. docs/unmix.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from ..layouts import detect
from ..report.warnings import warned
from ..settings import Settings
from .candidates import averaged, of_average, of_folder, separated
from .common import Input, close_all, open_all, open_input
from .gram import MOST, OfGrams, one_family

if TYPE_CHECKING:
    from .guesses import Guess
    from .mixture import Fit
    from .parentage import BlockMix, Work

MISSING_SHARE = 3e-3
"""A residual below this share of the spread is not called a missing parent where no block stands out."""
_TOLERANCES = (0.0, 2e-4, 2e-3)
"""A proof also tries decimals so far away: none shorter than the errors allow, and, where rounding doesn't bound the
ratios and parents are few ulps apart, further ones."""


@dataclass
class Unmixing(OfGrams):
    """What ``unmix`` found. ``ratios``, ``errors`` and those of ``blocks`` are by the candidates' paths; candidates
    that explain nothing are in ``left_out`` and nowhere else. ``parts``: by component the file that holds it alone, of
    which the mix has it; these components are none of the rest.

    ``unexplained``: what the best mix leaves, as a share of the weights' spread (their standard deviation), beside
    ``rounding``, the share that rounding to the file's dtype leaves. ``complete``: whether rounding accounts for it;
    where it doesn't, a parent may be missing, and the ratios of ``upper_bounds`` are no more than that. ``unique``:
    whether another mix of the candidates would be as near. ``condition``: of the normal equations. ``layers``: of every
    weight what the best mix of its block leaves, as ``block_residuals``. ``fingerprints``: traces of methods that are
    no sums. ``proof``:
    ``prove``'s, None where not asked.
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
    parts: dict[str, str] = field(default_factory=dict)
    unexplained: float = 0.0
    rounding: float = 0.0
    complete: bool = True
    upper_bounds: list[str] = field(default_factory=list)
    constant: bool = True
    unique: bool = True
    condition: float = 1.0
    formula: str = ""
    command: str = ""
    preset: str | None = None
    proof: dict[str, Any] | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    fingerprints: list[dict[str, Any]] = field(default_factory=list)
    residual_ranks: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Unmixing of {self.path}: {self.formula}, {self.unexplained:.2%} unexplained>"


def unmix(
    mix: Input, candidates: Sequence[Input], settings: Settings, *, folder: str | os.PathLike[str] | None = None,
    prove: bool = False,
) -> Unmixing:  # fmt: skip
    """``sdsurgery.unmix``."""
    from .parentage import Work

    opened = [open_input(mix, settings, selective=True, name="the mix")]
    try:
        opened += open_all(candidates, settings, selective=True)
        notes: list[str] = []
        if folder is not None:
            found, notes = of_folder(folder, opened, detect(opened[0].tensors), settings)
            opened += found
        models, parts = separated(opened)
        ours = one_family(models, models[0], "than the mix")
        if len(models) < 2 and folder is not None:
            where = printable(os.fspath(folder))
            raise UsageError(f"{where}: no other model of the mix's family ({ours.layout.name})", code="wrong_inputs")
        if len(models) < 2:
            raise UsageError(
                "no candidates: name the files that the mix may be made of, or a folder (folder=…)", code="wrong_inputs"
            )
        notes += of_average(models[0], ours.layout)
        ema = averaged(models[1:], ours.layout)[: max(0, MOST + 1 - len(opened))]
        return _result(Work(models, ema, ours.layout, settings, notes, parts=parts), prove)
    finally:
        close_all(opened)


def _result(work: Work, prove: bool) -> Unmixing:
    from . import baked, remarks
    from .guesses import dtype_of, dtype_words, guesses, overall
    from .ranks import residual_ranks

    found = Unmixing(work.opened[0].path, work.layout.name, [*work.names, *work.parts], notes=work.notes)
    found.passed(work.read, len(work.tensors) + work.in_parts)
    found.parts = {part.component: part.file.path for part in work.baked}
    usable = work.usable(found.notes)
    parents = work.parents(usable)
    by_block = work.by_block(parents)
    work.sharpened(parents, by_block)
    main = work.main(parents, by_block)
    _fill(found, work, parents, by_block, main)
    best = guesses(work, parents, by_block, main)
    found.formula, found.command, found.preset = best[0].formula, best[0].command, best[0].preset
    if prove:
        further = [guess for far in _TOLERANCES for guess in guesses(work, parents, by_block, main, far)]
        several: dict[str, Guess] = {}
        for guess in [*best, *further]:
            several.setdefault(guess.command, guess)
        _prove(found, work, list(several.values()))
    missing = _missing(found, work, usable, by_block, main)
    if found.upper_bounds and not found.constant:
        found.formula = f"{overall(work, parents, main[0])}; other ratios by block"
    found.formula += baked.formula(work.baked, work.short_baked)
    dtype = baked.dtype_for(work.baked, work.opened[0], dtype_of(work))
    found.command = baked.command(found.command, work.baked, dtype_words(dtype))
    more, unique = remarks.of_candidates(work, usable, parents)
    found.unique = found.unique and unique
    found.notes += more + remarks.of_components(work, parents) + baked.notes(work.baked, work.short_baked)
    if not _proved(found):
        found.notes += remarks.of_rounding(work)
    found.notes += [each["text"] for each in found.fingerprints]
    if missing and not found.fingerprints:
        fitted, apart = main
        alike = {i: float(fitted.ratios[i]) for i in parents}  # what is missing pulls at a block's own ratios
        found.residual_ranks = residual_ranks(
            work, {block: mix.ratios if block in apart else alike for block, mix in by_block.items()}
        )
        found.notes += remarks.of_ranks(found.residual_ranks, found.path)
    return found


def _fill(
    found: Unmixing, work: Work, parents: list[int], by_block: dict[str, BlockMix], main: tuple[Fit, set[str]]
) -> None:
    fitted, apart = main
    network = set(by_block) - {"VAE", "BASE"}
    found.constant = not apart & (network or set(by_block))
    found.ratios = {work.names[i]: float(fitted.ratios[i]) for i in parents}
    found.errors = {work.names[i]: float(fitted.errors[i]) for i in parents}
    found.left_out = [work.names[i] for i in range(work.count) if i not in parents]
    found.left_out += [path for path in work.parts if path not in found.parts.values()]
    found.condition, found.unique = fitted.condition, fitted.unique
    for block, mix in by_block.items():
        found.blocks[block] = {work.names[i]: ratio for i, ratio in mix.ratios.items()}
        found.block_errors[block] = {work.names[i]: error for i, error in mix.errors.items()}
        found.block_residuals[block] = {"unexplained": mix.unexplained, "over_rounding": mix.over_rounding}
    parts = {block: work.part([], chosen) for block, chosen in work.blocks.items()}
    spread = sum(part.spread for part in parts.values()) or 1.0
    energy = sum(mix.unexplained**2 * parts[block].spread for block, mix in by_block.items())
    found.unexplained = (energy / spread) ** 0.5
    found.rounding = (sum(part.rounding for part in parts.values()) / spread) ** 0.5
    found.layers = work.layers(by_block)


def _missing(
    found: Unmixing, work: Work, usable: list[int], by_block: dict[str, BlockMix], main: tuple[Fit, set[str]]
) -> bool:
    """Whether something is missing from the mix, with what is said of it."""
    from . import remarks
    from .fingerprints import fingerprints

    beyond, apart = _beyond(found), main[1]
    parents = [i for i in range(work.count) if work.names[i] in found.ratios]
    found.complete = not beyond or _proved(found)
    if found.complete:
        return False
    where = remarks.blocks(beyond, len(found.block_residuals))
    if work.mixed_by_layer(parents, beyond):
        names = " and ".join(printable(work.short[i]) for i in parents)
        found.notes.append(f"the ratios differ from layer to layer{where}: each layer by itself is a mix of {names}")
        return False
    found.fingerprints = [asdict(each) for each in fingerprints(work, parents, by_block)]
    if found.unexplained <= MISSING_SHARE:
        found.notes.append(f"the best mix leaves more than rounding{where}: {found.unexplained:.3%} of the spread")
        return True
    if found.fingerprints:
        cause, words = remarks.NOT_A_SUM
    else:
        cause = remarks.CAUSES
        explained = set(found.block_residuals) - set(beyond)
        above, words = remarks.bounded_above(work, usable, parents, bool(explained) and not explained & apart)
        found.upper_bounds = [work.names[i] for i in above]
    found.notes.append(
        warned("unexplained", share=found.unexplained, where=where, rounding=found.rounding, cause=cause, bounds=words)
    )
    return True


def _proved(found: Unmixing) -> bool:
    return found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def _beyond(found: Unmixing) -> list[str]:
    """The blocks in which more than rounding is left."""
    from .mixture import BEYOND

    return [block for block, left in found.block_residuals.items() if left["over_rounding"] > BEYOND]


def _prove(found: Unmixing, work: Work, best: Sequence[Guess]) -> None:
    from .proof import proved

    proof = proved(work, best, _beyond(found))
    found.proof = proof.to_dict()
    found.formula, found.command, found.preset = proof.guess.formula, proof.guess.command, proof.guess.preset
