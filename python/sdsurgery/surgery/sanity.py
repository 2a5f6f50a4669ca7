"""Of merge: requests that are probably not meant. Warnings, never refusals; a few bytes of the inputs are read."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F32
from ..errors import printable
from ..files import native_errors
from ..methods.linear import shares
from ..methods.parameters import Param, PerInput
from ..outline import MERGED, Piece
from ..program import Formula
from ..report.warnings import Warned, warned
from . import vae_kin
from .preflight import letter, who
from .ratios import Ratios

_USUAL = (-1.0, 2.0)
_PERCENT = 5  # from here on a ratio looks like a percentage
_RATIOS = ("alpha", "beta")
_SAMPLE = 64  # bytes that are compared before the whole
_AT_ONCE = 8 << 20
_STRETCH = 64 << 10  # bytes that small tensors are compared in
_FEW = 3  # tensors by which inputs are told apart that have nothing in common

Tensors = Sequence[Mapping[str, TensorInfo]]


def doubts(
    checkpoints: Sequence[Checkpoint], tensors: Tensors, ratios: Ratios, pieces: Sequence[Piece],
    adapted: frozenset[int] = frozenset(),
) -> Iterator[Warned]:  # fmt: skip
    """The warnings. ``tensors`` are the inputs' under A's names; ``adapted`` inputs are not what their files hold."""
    yield from _numbers(ratios)
    same = list(_same(checkpoints, tensors, adapted))
    whole = shares(ratios.of("", None)[0]) if same else None
    for first, second in same:
        how = (
            f"both are {printable(checkpoints[first].path)}"
            if os.path.realpath(checkpoints[first].path) == os.path.realpath(checkpoints[second].path)
            else f"{who(first, checkpoints)} and {who(second, checkpoints)} are equal, byte for byte"
        )
        cancel = whole is not None and whole[first] != 0 and whole[first] + whole[second] == 0
        between = {letter(first), letter(second)} <= ratios.method.differences
        code = "zero_difference" if cancel or between else "same_file"
        yield warned(code, first=letter(first), second=letter(second), how=how)
    if not same:
        yield from _copy(checkpoints, ratios, pieces)
    for source in range(1, len(checkpoints)):
        yield from vae_kin.unrelated(checkpoints[0], ratios.layout, checkpoints[source], tensors[0], tensors[source])


# ---- numbers


def _numbers(ratios: Ratios) -> Iterator[Warned]:
    method = ratios.method
    for name, param in method.params.items():
        value = ratios.params[name]
        words = (name.rpartition(".")[2], *param.also.split())
        if isinstance(param, Param) and not param.within and not {*words}.isdisjoint(_RATIOS):
            given = [value] if value is not None else []
            given += ratios.blocks.get(name, {}).values()
            rules = ratios.rules.get(name)
            given += rules.as_mapping().values() if rules is not None else []
            odd = max(given, key=lambda each: abs(each - 0.5), default=0.5)
            if not _USUAL[0] <= odd <= _USUAL[1]:
                hint = f"; did you mean {odd / 100:g} ({odd:g} %)?" if _PERCENT <= odd <= 100 else ""
                yield warned("out_of_range", name=name, value=f"{odd:g}", hint=hint)
        if isinstance(param, PerInput) and param.weights and value:
            yield from _sums(ratios, name, value)


def _sums(ratios: Ratios, name: str, value: Sequence[float]) -> Iterator[Warned]:
    """Weights that don't sum to 1: those of the list, else those of the block with the worst sum."""
    total = sum(value)
    if abs(total - 1) > 1e-6:
        meant = ",".join(f"{each / 100:g}" for each in value)
        hint = f"; did you mean {meant}?" if abs(total - 100) < 1e-6 else ""
        yield warned("weights_sum", name=name, total=f"{total:g}", hint=hint)
        return
    own = {
        at: ratios.blocks[whose] for whose, (of, at) in ratios.letters.items() if of == name and whose in ratios.blocks
    }
    sums = {
        block: sum(own.get(at, {}).get(block, weight) for at, weight in enumerate(value))
        for block in dict.fromkeys(block for weights in own.values() for block in weights)
    }
    worst = max(sums, key=lambda block: abs(sums[block] - 1), default="")
    if worst and abs(sums[worst] - 1) > 1e-6:
        hint = "; give the other inputs' weights by block too, or leave weights= out: then A gets what they leave"
        yield warned("weights_sum", name=f"{name} of {worst}", total=f"{sums[worst]:g}", hint=hint)


def _copy(checkpoints: Sequence[Checkpoint], ratios: Ratios, pieces: Sequence[Piece]) -> Iterator[Warned]:
    """Where every formula that is used gives one input, and always the same one."""
    ends = any(number in (0, 1) for number in ratios.numbers.values())
    known: dict[int, int | None] = {}
    found = set()
    for piece in pieces:
        if piece.action != MERGED:
            continue
        for segment in piece.segments:
            if not isinstance(segment.formula, Formula):
                continue
            key = id(segment.formula)
            if key not in known:
                known[key] = _only(segment.formula, ends)
            place = known[key]
            if place is None:
                return
            found.add(segment.operands[place].source)
    if len(found) == 1:
        numbers = " and ".join(
            f"{name} {' '.join(f'{each:g}' for each in value) if isinstance(value, tuple) else f'{value:g}'}"
            for name, value in {**ratios.lists, **ratios.numbers}.items()
            if name not in ratios.letters
        )
        yield warned("copy", numbers=numbers or "these inputs", which=who(found.pop(), checkpoints))


def _only(formula: Formula, ends: bool) -> int | None:
    """The number of the input that the formula gives, unchanged. ``ends``: a ratio is 0 or 1, so a formula that is not
    linear is worth a trial."""
    parts = shares(formula)
    if parts is None:
        return _tried(formula) if ends else None
    if sorted(parts)[:-1] != [0.0] * (len(parts) - 1) or max(parts) != 1.0:
        return None
    return parts.index(1.0) if len(parts) > 1 else None


def _tried(formula: Formula) -> int | None:
    """As ``_only``, for any formula: by what it makes of a few numbers. None for one that only Python evaluates."""
    program = formula.program
    if program.functions or program.inputs < 2:
        return None
    from random import Random

    from .. import _native
    from ..backends.cpu import OVERFLOW, code_of, native_program

    side = 8
    draw = Random(0)
    given = [array("f", [draw.gauss(0, 1) for _ in range(side * side)]) for _ in range(program.inputs)]
    made = array("f", bytes(4 * side * side))
    code = code_of(F32)
    with suppress(_native.Error):
        _native.apply(
            native_program(program, False), formula.numbers, [(each.buffer_info()[0], code) for each in given],
            made.buffer_info()[0], code, side * side, overflow=OVERFLOW["default"], threads=1,
            target=os.environ.get("SDS_CPU", ""), shape=(side, side),
        )  # fmt: skip
    return next((place for place, each in enumerate(given) if each == made), None)


# ---- inputs


def _same(checkpoints: Sequence[Checkpoint], tensors: Tensors, adapted: frozenset[int]) -> Iterator[tuple[int, int]]:
    """The pairs of inputs that hold the same tensors."""
    some = [name for name, info in tensors[0].items() if info.nbytes >= _SAMPLE][-_FEW:]
    alike: dict[tuple[bytes, ...], list[int]] = {}
    for source, (checkpoint, own) in enumerate(zip(checkpoints, tensors, strict=True)):
        if source not in adapted:
            seen = tuple(_read(checkpoint, own[name], 0, _SAMPLE) if name in own else b"" for name in some)
            alike.setdefault(seen, []).append(source)
    for sources in alike.values():
        for first, second in combinations(sources, 2):
            if _equal(checkpoints[first], tensors[first], checkpoints[second], tensors[second]):
                yield first, second


def _equal(a: Checkpoint, first: Mapping[str, TensorInfo], b: Checkpoint, second: Mapping[str, TensorInfo]) -> bool:
    """Whether all tensors are equal that both have: first by a few bytes of each stretch, then as a whole."""
    pairs = [(info, second[name]) for name, info in first.items() if name in second]
    if not pairs or any((x.dtype, x.shape, x.nbytes) != (y.dtype, y.shape, y.nbytes) for x, y in pairs):
        return False
    pairs = [(x, y) for x, y in pairs if not _is_stored_once(a, x, b, y)]
    if any(info.strides or info.encoded or info.parts for pair in pairs for info in pair):
        return False
    stretches = _stretches(pairs)

    def same(x: TensorInfo, y: TensorInfo, at: int, count: int) -> bool:
        with native_errors():
            read = [c.files[info.file].read(info.offset + at, count) for c, info in ((a, x), (b, y))]
        return read[0] == read[1]

    return all(same(x, y, n // 2, min(_SAMPLE, n - n // 2)) for x, y, n in stretches) and all(
        same(x, y, at, min(_AT_ONCE, n - at)) for x, y, n in stretches for at in range(0, n, _AT_ONCE)
    )


def _stretches(pairs: Sequence[tuple[TensorInfo, TensorInfo]]) -> list[tuple[TensorInfo, TensorInfo, int]]:
    """Pairs of tensors, small neighbours in both files as one: the first pair of each stretch, and its bytes."""
    found: list[tuple[TensorInfo, TensorInfo, int]] = []
    for x, y in pairs:
        if found:
            before, other, n = found[-1]
            if (
                n + x.nbytes <= _STRETCH
                and (before.file, before.offset + n) == (x.file, x.offset)
                and (other.file, other.offset + n) == (y.file, y.offset)
            ):
                found[-1] = (before, other, n + x.nbytes)
                continue
        found.append((x, y, x.nbytes))
    return found


def _is_stored_once(a: Checkpoint, x: TensorInfo, b: Checkpoint, y: TensorInfo) -> bool:
    """Whether both are the same bytes of the same file."""
    here, there = a.files[x.file], b.files[y.file]
    same = here is there or (here.identity == there.identity and not here.in_memory)
    return same and (x.offset, x.form) == (y.offset, y.form)


def _read(checkpoint: Checkpoint, info: TensorInfo, first: int, count: int) -> bytes:
    with native_errors():
        return checkpoint.files[info.file].read(info.offset + first, max(0, min(count, info.nbytes - first)))
