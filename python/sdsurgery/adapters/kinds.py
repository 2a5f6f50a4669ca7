"""The kinds of adapters, by the parts that a module has: their shapes, and the rank that alpha is divided by.

``definitions/effects.py`` has their formulas. A factor may be a matrix or a 1×1 convolution, so shapes are compared
by their number of elements; every rule gives the shape in which the formula wants the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

from ..errors import InputRefused, printable
from .keys import ALPHA, DOWN, MAGNITUDE, MAGNITUDE_OUT, MID, PLAIN, SET_BIAS, UP

Shape = tuple[int, ...]


class Target(NamedTuple):
    """The weight as the adapter knows it: outputs, inputs, and elements of its kernel."""

    out: int
    inputs: int
    taps: int

    @classmethod
    def of(cls, shape: Shape) -> Target:
        return cls(shape[0], shape[1] if len(shape) > 1 else 1, prod(shape[2:]))

    @property
    def columns(self) -> int:
        return self.inputs * self.taps


class Fitted(NamedTuple):
    """A module's kind, its factors as (name in the formula, part, shape), and what alpha is divided by: None where
    there is no alpha in the formula."""

    kind: str
    factors: tuple[tuple[str, str, Shape], ...]
    rank: int | None


class _Parts:
    """The parts of one module. What is asked for is noted; a part that is missing or doesn't fit is refused."""

    def __init__(self, kind: str, module: str, shapes: Mapping[str, Shape]) -> None:
        self.kind, self.module, self.shapes = kind, module, shapes
        self.factors: list[tuple[str, str, Shape]] = []

    def __contains__(self, part: str) -> bool:
        return part in self.shapes

    def rows(self, part: str) -> int:
        return self.shape(part)[0]

    def shape(self, part: str) -> Shape:
        if part not in self.shapes:
            raise InputRefused(
                f"module '{printable(self.module)}' has {', '.join(sorted(self.shapes))} but no {part}; "
                "the file is incomplete",
                code="missing_tensors",
                tensor=self.module,
            )
        return self.shapes[part] or (1,)

    def need(self, part: str, *shape: int, name: str = "") -> None:
        """The part as a factor of this shape, in as many rows as it has itself, of as many elements."""
        found = self.shape(part)
        if prod(found) != prod(shape) or (len(shape) > 1 and len(found) > 1 and found[0] != shape[0]):
            raise InputRefused(
                f"module '{printable(self.module)}': {part} has shape {list(found)}, {list(shape)} expected for this "
                "checkpoint; the adapter is for another model, or the file is damaged",
                code="shape",
                tensor=self.module,
                details={"found": list(found), "expected": list(shape)},
            )
        self.factors.append((name or part, part, shape))

    def indivisible(self, part: str, out: int) -> InputRefused:
        """Blocks into which the outputs can't be divided."""
        found = list(self.shape(part))
        return InputRefused(
            f"module '{printable(self.module)}': {part} has shape {found}, and {out} outputs can't be divided so; "
            "the adapter is for another model, or the file is damaged",
            code="shape",
            tensor=self.module,
            details={"found": found, "expected": [out]},
        )


def _lora(parts: _Parts, to: Target) -> int:
    rank = parts.rows(DOWN)
    if MID in parts:
        inner = parts.shape(MID)[1]
        parts.need(DOWN, inner, to.inputs)
        rank = parts.rows(MID)
        parts.need(MID, rank, inner, to.taps)
    else:
        parts.need(DOWN, rank, to.columns)
    parts.need(UP, to.out, rank)
    if "bias_indices" in parts:
        count = prod(parts.shape("bias_values"))
        parts.need("bias_indices", 2, count)
        parts.need("bias_values", count)
    if "bias" in parts:
        parts.need("bias", to.out, to.columns)
    return parts.rows(DOWN)


def _loha(parts: _Parts, to: Target) -> int:
    for number in (1, 2):
        left, right, core = f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}"
        if core in parts:
            outer, inner = parts.shape(core)[:2]
            parts.need(core, outer, inner, to.taps)
            parts.need(left, outer, to.out)
            parts.need(right, inner, to.inputs)
        else:
            rank = parts.rows(right)
            parts.need(left, to.out, rank)
            parts.need(right, rank, to.columns)
    return parts.rows("hada_w1_b")


def _lokr(parts: _Parts, to: Target) -> int | None:
    outer = parts.shape("lokr_w1") if "lokr_w1" in parts else _outer(parts, "lokr_w1")
    rows, columns = outer[:2]
    if to.out % rows or to.inputs % columns:
        parts.need("lokr_w1" if "lokr_w1" in parts else "lokr_w1_a", to.out, to.inputs)  # says what doesn't fit
    if "lokr_w1" in parts:
        parts.need("lokr_w1", rows, columns)
    else:
        rank = parts.rows("lokr_w1_b")
        parts.need("lokr_w1_a", rows, rank)
        parts.need("lokr_w1_b", rank, columns)
    below, beside = to.out // rows, to.inputs // columns
    if "lokr_w2" in parts:
        parts.need("lokr_w2", below, beside * to.taps)
    elif "lokr_t2" in parts:
        first, second = parts.shape("lokr_t2")[:2]
        parts.need("lokr_t2", first, second, to.taps)
        parts.need("lokr_w2_a", first, below)
        parts.need("lokr_w2_b", second, beside)
    else:
        rank = parts.rows("lokr_w2_b")
        parts.need("lokr_w2_a", below, rank)
        parts.need("lokr_w2_b", rank, beside * to.taps)
    factored = next((part for part in ("lokr_w2_b", "lokr_w1_b") if part in parts), None)
    return None if factored is None else parts.rows(factored)


def _outer(parts: _Parts, name: str) -> Shape:
    return parts.rows(f"{name}_a"), prod(parts.shape(f"{name}_b")[1:])


def _glora(parts: _Parts, to: Target) -> int:
    new = parts.rows("a1") == to.inputs and parts.rows("b1") == to.out
    a1, a2, b1, b2 = ("a1", "a2", "b1", "b2") if new else ("a2", "a1", "b2", "b1")  # roles before LyCORIS 2024-05
    rank = parts.rows(a2)
    parts.need(a1, to.inputs, rank, name="a1")
    parts.need(a2, rank, to.inputs, name="a2")
    if "bm" in parts:
        outer, inner = parts.shape("bm")[:2]
        parts.need("bm", outer, inner, to.taps)
        parts.need(b1, to.out, outer, name="b1")
        parts.need(b2, inner, to.inputs, name="b2")
    else:
        own = parts.rows(b2)
        parts.need(b1, to.out, own, name="b1")
        parts.need(b2, own, to.columns, name="b2")
    return rank


def _oft(parts: _Parts, to: Target) -> None:
    part = "oft_diag" if "oft_diag" in parts else "oft_blocks"
    size = parts.shape(part)[-1]
    if not size or to.out % size:
        raise parts.indivisible(part, to.out)
    parts.need(part, to.out // size, size, size)
    if "rescale" in parts:
        parts.need("rescale", to.out)


def _boft(parts: _Parts, to: Target) -> None:
    levels, _, _, size = parts.shape("oft_blocks")
    if not size or size % 2 or to.out % size or to.out % (2**levels * size // 2):
        raise parts.indivisible("oft_blocks", to.out)
    parts.need("oft_blocks", levels, to.out // size, size, size)
    if "rescale" in parts:
        parts.need("rescale", to.out)


def _whole(part: str, name: str) -> Callable[[_Parts, Target], None]:
    def fit(parts: _Parts, to: Target) -> None:
        parts.need(part, to.out, to.columns, name=name)

    return fit


def _ia3(parts: _Parts, to: Target) -> None:
    count = prod(parts.shape(PLAIN))
    parts.need(PLAIN, count if count in (to.inputs, to.out) else to.inputs)  # on_input says of which


class Kind(NamedTuple):
    """``sign``: parts of which a module of this kind has one. ``others``: what it may have besides."""

    name: str
    title: str
    formula: str  # the name of its formula in definitions/effects.py
    sign: tuple[str, ...]
    others: tuple[str, ...]
    fit: Callable[[_Parts, Target], int | None]


_DORA = (ALPHA, MAGNITUDE, MAGNITUDE_OUT, "scale")
_FACTORED = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
KINDS = (
    Kind("LoRA", "LoRA, LoCon", "lora", (DOWN, UP, MID),
         (*_DORA, "bias", "bias_indices", "bias_values", "bias_size"), _lora),
    Kind("LoHa", "LoHa", "loha", _HADAMARD, _DORA, _loha),
    Kind("LoKr", "LoKr", "lokr", _FACTORED, _DORA, _lokr),
    Kind("GLoRA", "GLoRA", "glora", ("a1", "a2", "b1", "b2", "bm"), _DORA, _glora),
    Kind("IA3", "(IA)³", "ia3", ("on_input",), (PLAIN, ALPHA), _ia3),
    Kind("OFT", "Diag-OFT", "oft", ("oft_blocks", "oft_diag"), (ALPHA, "rescale"), _oft),
    Kind("BOFT", "BOFT", "boft", ("oft_blocks",), (ALPHA, "rescale"), _boft),
    Kind("full difference", "full difference", "full", ("diff",), (ALPHA,), _whole("diff", "diff")),
    Kind("norm", "norm layers", "full", ("w_norm",), (ALPHA,), _whole("w_norm", "diff")),
    Kind("replacement", "a whole weight", "set", ("set_weight",), (ALPHA,), _whole("set_weight", "set_weight")),
)  # fmt: skip
OF_BIAS = ("diff_b", "b_norm", "up_bias", SET_BIAS)
"""Parts that are added to the module's bias; the last stands in its place."""
_SIGNS = {part: kind for kind in reversed(KINDS) for part in kind.sign}


def kind_of(module: str, shapes: Mapping[str, Shape]) -> Kind | None:
    """The kind of what a module does to its weight, None when it changes only the bias or is no adapter's at all.
    InputRefused for parts of two kinds."""
    found = {_SIGNS[part].name: _SIGNS[part] for part in shapes if part in _SIGNS}
    if len(found) > 1:
        raise InputRefused(
            f"module '{printable(module)}' has parts of several kinds of adapters: {', '.join(found)}",
            code="extra_tensors",
            tensor=module,
        )
    kind = next(iter(found.values()), None)
    if kind is not None and "oft_blocks" in shapes:
        kind = next(each for each in KINDS if each.formula == ("boft" if len(shapes["oft_blocks"]) == 4 else "oft"))
    return kind


def fitted(kind: Kind, module: str, shapes: Mapping[str, Shape], seen: Shape) -> Fitted:
    """The module's factors for a weight of shape ``seen``. InputRefused when a part is missing or doesn't fit."""
    parts, to = _Parts(kind.name, module, shapes), Target.of(seen)
    rank = kind.fit(parts, to)
    if rank == 0:
        raise InputRefused(
            f"module '{printable(module)}' has rank 0, so it can change nothing; the file is damaged",
            code="shape",
            tensor=module,
        )
    for part in (MAGNITUDE, MAGNITUDE_OUT):
        if part in parts:
            _magnitude(parts, part, to)
    return Fitted(kind.formula, tuple(parts.factors), rank)


def _magnitude(parts: _Parts, part: str, to: Target) -> None:
    if is_per_input(part, parts.shape(part), to.out):
        parts.need(part, to.inputs, name="dora_in")
    else:
        parts.need(part, to.out, name="dora_out")


def is_per_input(part: str, shape: Shape, out: int) -> bool:
    """Whether DoRA's lengths are one for each input, not for each output: the axis of length 1 shows it."""
    return part == MAGNITUDE and (shape[0] == 1 < out if len(shape) > 1 else shape[0] not in (1, out))
