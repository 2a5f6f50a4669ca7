"""What merges give the ratios that were found: methods and numbers, as a formula and as a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import asin, isclose, sin
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dtypes import BY_OPTION, DType
from ..report.command import options
from .preflight import letter

if TYPE_CHECKING:
    from ..layouts import Layout
    from .mixture import Fit
    from .parentage import BlockMix, Work

Row = tuple[float, ...]
"""Ratios of a merge's inputs, in their order."""
_PRESET = 2e-3
_NO_NETWORK = ("BASE", "VAE")
"""Blocks of which a preset says nothing."""


class Form(NamedTuple):
    """A method that gives weighted sums. ``numbers`` makes its parameters from the ratios of its inputs, None where it
    can't give those. ``fixed`` are further parameters. ``of_exact``: short parameters make long ratios, so the
    parameters are rounded and not the ratios that they are made from. ``by_block``: it takes block weights."""

    method: str
    inputs: int  # 0: any number
    numbers: Callable[[Row], dict[str, Any] | None]
    fixed: Mapping[str, Any] = {}
    of_exact: bool = False
    by_block: bool = True


def _alpha(r: Row) -> dict[str, Any]:
    return {"alpha": r[1]}


def _alpha_of_first(r: Row) -> dict[str, Any]:
    return {"alpha": r[0]}


def _difference(r: Row) -> dict[str, Any] | None:
    return {"alpha": r[1]} if isclose(r[0], 1, abs_tol=1e-9) and isclose(r[1], -r[2], abs_tol=1e-9) else None


def _two(r: Row) -> dict[str, Any]:
    return {"alpha": r[1], "beta": r[2]}


def _twice(r: Row) -> dict[str, Any] | None:
    return None if isclose(r[2], 1) else {"alpha": r[1] / (1 - r[2]), "beta": r[2]}


def _weights(r: Row) -> dict[str, Any]:
    return {"weights": r}


def _equal(r: Row) -> dict[str, Any] | None:
    return {} if all(isclose(each, 1 / len(r), abs_tol=1e-6) for each in r) else None


def _subtract(r: Row) -> dict[str, Any] | None:
    return {"alpha": 1.0, "beta": -r[1] / r[0]} if r[0] > 1 else None


def _chain(r: Row) -> dict[str, Any] | None:
    decay = 1 - r[-1]
    made = (decay ** (len(r) - 1), *((1 - decay) * decay ** (len(r) - 1 - at) for at in range(1, len(r))))
    alike = all(isclose(a, b, abs_tol=1e-3) for a, b in zip(r, made, strict=True))
    return {"decay": decay} if len(r) > 3 and 0 < decay < 1 and alike else None


def _from_first(r: Row) -> dict[str, Any] | None:
    return {"weights": r[1:]} if len(r) > 2 else None


def _smooth(r: Row) -> dict[str, Any] | None:
    return {"alpha": 0.5 - sin(asin(1 - 2 * r[1]) / 3)} if 0 <= r[1] <= 1 else None


def _inverse_smooth(r: Row) -> dict[str, Any] | None:
    return {"alpha": r[1] ** 2 * (3 - 2 * r[1])} if 0 <= r[1] <= 1 else None


_FUSED = {"fused": True}
FORMS = (
    Form("weighted-sum", 2, _alpha),
    Form("add-diff", 3, _difference),
    Form("n-sum", 0, _weights),
    Form("weighted-sum.lerp", 2, _alpha),
    Form("weighted-sum.lerp", 2, _alpha, _FUSED),
    Form("add-diff", 3, _difference, _FUSED),
    Form("mean", 0, _equal),
    Form("n-sum.running-mean", 0, _equal),
    Form("n-sum.running-mean", 0, _equal, _FUSED),
    Form("triple-sum", 3, _two),
    Form("triple-sum", 3, _two, _FUSED),
    Form("triple-sum.lerp", 3, _two),
    Form("triple-sum.lerp", 3, _two, _FUSED),
    Form("sum-twice", 3, _twice, of_exact=True),
    Form("sum-twice.lerp", 3, _twice, of_exact=True),
    Form("sum-twice.lerp", 3, _twice, _FUSED, of_exact=True),
    Form("n-sum", 0, _weights, _FUSED),
    Form("n-sum.normalised", 0, _weights),
    Form("n-sum.normalised", 0, _weights, _FUSED),
    Form("weighted-sum.first", 2, _alpha_of_first),
    Form("add-diff", 0, _from_first, by_block=False),
    Form("add-diff", 0, _from_first, _FUSED, by_block=False),
    Form("weighted-subtract", 2, _subtract, of_exact=True, by_block=False),
    Form("ema-chain", 0, _chain, of_exact=True, by_block=False),
    Form("ema-chain.lerp", 0, _chain, of_exact=True, by_block=False),
    Form("ema-chain.lerp", 0, _chain, _FUSED, of_exact=True, by_block=False),
    Form("weighted-sum.smoothstep", 2, _smooth, of_exact=True),
    Form("weighted-sum.inverse-smoothstep", 2, _inverse_smooth, of_exact=True),
)
"""In the order in which they are tried; the first that can give the ratios is what is said without a proof."""


@dataclass(frozen=True)
class Guess:
    """A merge of the candidates ``order`` (their numbers). ``blocks``: block weights by ratio; the numbers of a list
    are ratios by the inputs' letters. ``presets``: by ratio, whose block weights are a preset's."""

    method: str
    order: tuple[int, ...]
    parameters: dict[str, Any]
    blocks: dict[str, dict[str, float]] = field(default_factory=dict)
    formula: str = ""
    command: str = ""
    presets: dict[str, str] = field(default_factory=dict)
    via: DType | None = None  # the merge is written in this dtype first, and cast then

    @property
    def preset(self) -> str | None:
        """The preset of the first ratio that has one."""
        return next(iter(self.presets.values()), None)

    def of_block(self, block: str) -> dict[str, Any]:
        """The parameters for a tensor of the block."""
        found = dict(self.parameters)
        for ratio, weights in self.blocks.items():
            if block not in weights:
                continue
            if ratio in found:
                found[ratio] = weights[block]
            else:
                at = ord(ratio) - ord("A")
                found["weights"] = (*found["weights"][:at], weights[block], *found["weights"][at + 1 :])
        return found


class _Found(NamedTuple):
    """Who the parents are, and the rounded ratios of the model ("") and of the blocks that have others; the same as
    they were found, with how far each may be off."""

    work: Work
    parents: Sequence[int]
    rows: Mapping[str, Row]
    exact: Mapping[str, tuple[Row, Row]]
    dtype: DType | None


def guesses(
    work: Work, parents: Sequence[int], by_block: Mapping[str, BlockMix], main: tuple[Fit, set[str]],
    tolerance: float = 2e-5,
) -> list[Guess]:  # fmt: skip
    """The merges that give the ratios, rounded to the nearest short decimals; the likeliest first. There is always
    one. ``tolerance``: how far a decimal may be away, where five standard errors are less; 0: one standard error."""
    fitted, apart = main

    def exact(mix: Any) -> tuple[Row, Row]:
        wide = 5 if tolerance else 1
        return (
            tuple(float(mix.ratios[i]) for i in parents),
            tuple(max(wide * float(mix.errors[i]), tolerance) for i in parents),
        )

    def row(mix: Any) -> Row:
        return rounded([mix.ratios[i] for i in parents], [mix.errors[i] for i in parents], tolerance)

    usual, as_found = row(fitted), {"": exact(fitted)}
    each = {block: row(mix) if block in apart else usual for block, mix in by_block.items()}
    # What most blocks have; of equally frequent ratios the text encoder's, which no preset has.
    usual = max([each.get("BASE", usual), *each.values()], key=list(each.values()).count)
    rows = {"": usual, **{block: row for block, row in each.items() if row != usual}}
    if usual != row(fitted):
        alike = [exact(by_block[block]) for block in each if each[block] == usual]
        as_found[""] = min(alike, key=lambda found: max(found[1]))
    as_found |= {block: exact(by_block[block]) if block in apart else exact(fitted) for block in rows if block}
    given = _Found(work, parents, rows, as_found, dtype_of(work))
    if len(parents) == 1:
        return [_alone(given)]
    chosen = [form for form in FORMS if form.inputs in (0, len(parents))]
    whole = [at for at, i in enumerate(parents) if work.has_all(i, parents)]  # A's shapes are the output's
    tried = (
        _guess(given, form, order) for form in chosen for order in _orders(len(parents), rows[""], form)
        if order[0] in whole or not whole
    )  # fmt: skip
    found = [guess for guess in tried if guess is not None]
    return found + [cast for guess in found if (cast := _cast_then(given, guess)) is not None]


def _orders(count: int, main: Row, form: Form) -> Iterator[tuple[int, ...]]:
    """Orders of the inputs to try: as given, the largest ratio first, then the others of a few inputs."""
    falling = tuple(sorted(range(count), key=lambda at: -main[at]))
    given = tuple(range(count))
    if form.numbers is _difference:  # A is what has the ratio 1, B what is added
        nearest = min(given, key=lambda at: abs(main[at] - 1))
        for one in dict.fromkeys([nearest, *(at for at in given if main[at] == 1)]):
            rest = sorted((at for at in given if at != one), key=lambda at: -main[at])
            yield (one, *rest)
        return
    yield from list(dict.fromkeys([given, falling, *(permutations(given) if count <= 5 else ())]))


def _guess(given: _Found, form: Form, order: tuple[int, ...]) -> Guess | None:
    if len(given.rows) > 1 and not form.by_block:
        return None
    numbers: dict[str, dict[str, Any]] = {}
    for block, row in given.rows.items():
        ordered = tuple(row[at] for at in order)
        made = _of_exact(form, *given.exact[block], order) if form.of_exact else form.numbers(ordered)
        if made is None:
            return None
        numbers[block] = made
    main = numbers.pop("")
    blocks: dict[str, dict[str, float]] = {}
    for block, own in numbers.items():
        for name, value in own.items():
            each = value if isinstance(value, tuple) else (value,)
            ratios = [letter(at) for at in range(len(each))] if isinstance(value, tuple) else [name]
            usual = main[name] if isinstance(value, tuple) else (main[name],)
            for ratio, weight, most in zip(ratios, each, usual, strict=True):
                if weight != most:
                    blocks.setdefault(ratio, {})[block] = weight
    _vae_and_base(blocks, main)
    files = tuple(given.parents[at] for at in order)
    network = given.work.layout.network
    presets: dict[str, str] = {}
    for ratio, weights in blocks.items():
        preset = _preset(weights, main.get(ratio), given.work.layout)
        if preset and network is not None:
            presets[ratio] = preset
            weights.update(zip(network.blocks, network.presets()[preset], strict=True))
    names = [given.work.short[i] for i in files]
    text = formula(tuple(given.rows[""][at] for at in order), names, form.numbers is _difference)
    if blocks:
        text += "; " + block_text(blocks, presets, names, form.numbers is _alpha_of_first)
    guess = Guess(form.method, files, {**main, **form.fixed}, blocks, text, presets=presets)
    return replace(guess, command=_command(given, guess))


def _vae_and_base(blocks: dict[str, dict[str, float]], main: Mapping[str, Any]) -> None:
    """A weight of BASE goes for the VAE too unless that has its own."""
    for ratio, weights in blocks.items():
        if "BASE" in weights and "VAE" not in weights:
            weights["VAE"] = main[ratio] if ratio in main else main["weights"][ord(ratio) - ord("A")]


def _alone(given: _Found) -> Guess:
    work, (only,) = given.work, given.parents
    words = [
        "sdsurgery",
        "ema" if only in work.averaged else "cast",
        work.file(only),
        *dtype_words(given.dtype or work.commonest_dtype(0)),
    ]
    return Guess("cast", (only,), {}, {}, work.short[only], shlex.join([*words, "-o", "OUT.safetensors"]))


def formula(row: Row, names: Sequence[str], difference: bool) -> str:
    """The weighted sum with file names."""
    if difference:
        times = "" if row[1] == 1 else f"{row[1]:.9g}·"
        return f"{names[0]} + {times}({names[1]} − {names[2]})"
    text = ""
    for ratio, name in zip(row, names, strict=True):
        if ratio == 0:
            continue
        sign = (" − " if text else "−") if ratio < 0 else (" + " if text else "")
        text += f"{sign}{name}" if isclose(abs(ratio), 1) else f"{sign}{abs(ratio):.9g}·{name}"
    return text


def overall(work: Work, parents: Sequence[int], fitted: Fit) -> str:
    """The formula of the overall ratios alone."""
    row = rounded([fitted.ratios[i] for i in parents], [fitted.errors[i] for i in parents], 2e-5)
    return formula(row, [work.short[i] for i in parents], False)


def block_text(
    blocks: Mapping[str, Mapping[str, float]], presets: Mapping[str, str], names: Sequence[str], first: bool
) -> str:  # fmt: skip
    """Block weights in the formula; ``first``: alpha is the first input's."""
    parts = []
    words = {"alpha": f"α of {names[0 if first else 1]}", "beta": f"β of {names[-1]}"}
    for ratio, weights in blocks.items():
        name = names[ord(ratio) - ord("A")] if len(ratio) == 1 else words.get(ratio, ratio)
        own = {block: weight for block, weight in weights.items() if ratio not in presets or block in _NO_NETWORK}
        listed = [*([presets[ratio]] if ratio in presets else []), *(f"{b} {w:.6g}" for b, w in own.items())]
        parts.append(f"{name} by block: {', '.join(listed)}")
    return "; ".join(parts)


def _preset(weights: Mapping[str, float] | None, main: float | None, layout: Layout) -> str | None:
    """The preset whose numbers the network's blocks have."""
    if weights is None or main is None or layout.network is None:
        return None
    network = layout.network
    row = [weights.get(block, main) for block in network.blocks]
    for name, values in network.presets().items():
        if len(set(values)) > 1 and all(abs(a - b) <= _PRESET for a, b in zip(row, values, strict=True)):
            return name
    return None


def _command(given: _Found, guess: Guess) -> str:
    work, network = given.work, given.work.layout.network
    words = ["sdsurgery", "merge", *(work.file(i) for i in guess.order), "--method", guess.method]
    if used := [letter(at) for at, i in enumerate(guess.order) if i in work.averaged]:
        words += ["--use-ema", ",".join(used)]
    words += options(guess.parameters, _text)
    for ratio, weights in guess.blocks.items():
        preset = guess.presets.get(ratio)
        own = {b: w for b, w in weights.items() if not (preset and network and b in network.blocks)}
        listed = [*([preset] if preset else []), *(f"{block}={_text(own[block])}" for block in own)]
        words += ["--blocks", f"{ratio}:{','.join(listed)}"]
    if given.dtype is not None and any(each.dtypes[0] is not each.dtypes[guess.order[0] + 1] for each in work.tensors):
        words += dtype_words(given.dtype)
    return shlex.join([*words, "-o", "OUT.safetensors"])


def _cast_then(given: _Found, guess: Guess) -> Guess | None:
    """The guess as a merge in the dtype of its first input, and a cast of that. None where that is the mix's dtype."""
    own = given.work.commonest_dtype(guess.order[0] + 1)
    if given.dtype is None or own is None or own is given.dtype:
        return None
    first = _command(given._replace(dtype=None), guess).removesuffix("OUT.safetensors")
    words = ["sdsurgery", "cast", "MERGED.safetensors", *dtype_words(given.dtype), "-o", "OUT.safetensors"]
    return replace(guess, via=own, command=f"{first}MERGED.safetensors && {shlex.join(words)}")


def _text(value: float) -> str:
    return f"{value:.9g}"


def dtype_words(dtype: DType | None) -> list[str]:
    """A dtype as words of a command; None gives none."""
    return ["--dtype", word] if (word := option_of(dtype)) else []


def option_of(dtype: DType | None) -> str | None:
    """A dtype as ``--dtype`` takes it."""
    return next((word for word, each in BY_OPTION.items() if each is dtype), None)


def dtype_of(work: Work) -> DType | None:
    """The mix's dtype, where all its weights have one; fp8 beside another one, which is that of its vectors."""
    found = {each.dtypes[0] for each in work.tensors}
    narrow = [dtype for dtype in found if dtype is not None and dtype.itemsize == 1]
    if len(found) == 2 and len(narrow) == 1:
        return narrow[0]
    return found.pop() if len(found) == 1 else None


# ---- short decimals


def _of_exact(form: Form, ratios: Row, tolerances: Row, order: tuple[int, ...]) -> dict[str, Any] | None:
    """The parameters of ratios that are not rounded, as short as the ratios' tolerances allow."""
    row = tuple(ratios[at] for at in order)
    made = form.numbers(row)
    if made is None:
        return None
    widths = dict.fromkeys(made, 0.0)
    for at, input_ in enumerate(order):
        moved = form.numbers((*row[:at], row[at] + tolerances[input_], *row[at + 1 :]))
        if moved is not None:
            widths = {name: width + abs(moved[name] - made[name]) for name, width in widths.items()}
    return {name: short(value, widths[name]) for name, value in made.items()}


def rounded(ratios: Sequence[float], errors: Sequence[float], tolerance: float) -> Row:
    """Each ratio as the shortest decimal within five standard errors and ``tolerance``; the one that is known worst
    takes what is left of 1."""
    pairs = zip(ratios, errors, strict=True)
    wide = 5 if tolerance else 1
    found = [short(float(ratio), max(wide * float(error), tolerance)) for ratio, error in pairs]
    if len(found) > 1 and not isclose(sum(found), 1, abs_tol=1e-12):
        worst = max(range(len(found)), key=lambda at: errors[at])
        found[worst] = round(1 - sum(found[:worst]) - sum(found[worst + 1 :]), 9)
    return tuple(found)


def short(value: float, tolerance: float) -> float:
    """The decimal of fewest digits within ``tolerance``, or a fraction of small numbers where that takes four or
    more."""
    for digits in range(7):
        if digits >= 4:
            for below in (3, 6, 7, 9, 11, 12):
                fraction = round(value * below) / below
                if abs(fraction - value) <= tolerance:
                    return fraction
        if abs(round(value, digits) - value) <= tolerance:
            return round(value, digits) + 0.0
    return value
