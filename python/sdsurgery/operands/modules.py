"""Adapters' modules as operands and steps of a job's formula, so that any backend computes them in its loop.

``W + n·Δ`` is two steps more, with Δ an operand that is computed from the factors (``low_rank.py``); the norms of DoRA
are a stage, and so is what mixes rows or inputs (``mixing.py``). The values are those of ``definitions/effects.py``,
operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

from ..dtypes import BF16, BY_NAME, F8_E4M3, F8_E5M2, F16, F32, F64
from ..errors import InputRefused
from ..plan import Operand
from ..program import CHANNEL, FIRST, INPUTS, SECOND, Formula
from ..program.symbols import Scalar, Symbol, Tracer
from ..program.tracing import linearised
from .encoding import Companion
from .low_rank import LowRank, Matrix, Place
from .mixing import Mixing
from .replay import replayed

NEAR_ZERO = 2.0**-23  # what peft and LyCORIS add to a norm before they divide by it
_MOST_OPERANDS = 500  # of a job: the engine takes 512, of which some are values of rows and columns


class Traits(NamedTuple):
    """Of a kind's formula: whether it gives a difference Δ or the weight W₁ itself, and whether that depends on W."""

    difference: bool
    of_weight: bool


TRAITS = {
    "lora": Traits(difference=True, of_weight=False),
    "loha": Traits(difference=True, of_weight=False),
    "lokr": Traits(difference=True, of_weight=False),
    "full": Traits(difference=True, of_weight=False),
    "glora": Traits(difference=True, of_weight=True),
    "ia3": Traits(difference=True, of_weight=True),
    "oft": Traits(difference=False, of_weight=True),
    "boft": Traits(difference=False, of_weight=True),
    "set": Traits(difference=False, of_weight=False),
}
"""The kinds by name. ``_MADE`` has their formulas as steps of a job, ``definitions/effects.py`` over NumPy arrays."""


class Module(NamedTuple):
    """What an adapter makes of a weight W: ``W + strength·(W₁ − W)``; ``definitions/effects.py`` defines W₁ for every
    ``kind``.

    ``shape`` is W's. ``factors`` are (name in the formula, number among the factors that come with it, shape).
    ``scale`` is alpha/rank, ``constraint`` OFT's alpha. ``transposed``: the adapter's W is the transpose of the stored
    one. ``channels``, where not 0: it changes only so many of the input channels, the first. ``on_input``: (IA)³'s
    vector is one of inputs. W is the result of a formula, or (``input``) one of its operands; of these, the rows from
    ``first`` on.
    """

    kind: str
    shape: tuple[int, ...]
    strength: float
    factors: tuple[tuple[str, int, tuple[int, ...]], ...]
    scale: float = 1.0
    constraint: float = 0.0
    transposed: bool = False
    channels: int = 0
    on_input: bool = False
    input: int = -1
    first: int = 0

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape of W as the adapter knows it."""
        if self.transposed:
            return tuple(reversed(self.shape))
        return (self.shape[0], self.channels, *self.shape[2:]) if self.channels else self.shape

    @property
    def limit(self) -> float:
        """Of the norm of OFT's skew-symmetric blocks; 0: none."""
        return self.constraint * self.seen[0]


class Factor(NamedTuple):
    """A tensor that a module consists of: all its elements, row by row."""

    operand: Operand
    elements: int


class Adapted(NamedTuple):
    """A formula with what adapters make of its operands and its result, its operands, and what its stages mix."""

    formula: Formula
    operands: tuple[Operand, ...]
    mixings: tuple[Mixing, ...]


def adapted(
    formula: Formula,
    operands: Sequence[Operand],
    modules: Sequence[Module],
    factors: Sequence[Factor],
    shape: tuple[int, ...],
) -> Adapted:
    """The formula of a tensor of that shape with its modules, one after the other. InputRefused for a factor whose
    dtype is not computed with, and for more modules than a job takes."""
    tracer = Tracer()
    growing = _Growing(tracer, operands, factors, shape)
    inputs = []
    for at in range(len(operands)):
        symbol = Symbol(tracer, "input", (at,))
        for module in modules:
            symbol = growing.through(symbol, module) if module.input == at else symbol
        inputs.append(symbol)
    result = replayed(formula, inputs, tracer)
    for module in modules:
        result = growing.through(result, module) if module.input < 0 else result
    program = linearised(result, len(growing.operands), tracer)
    numbers = tuple(each.value({}) if isinstance(each, Scalar) else each for each in tracer.constants)
    return Adapted(Formula(program, numbers), tuple(growing.operands), tuple(growing.mixings))


class _Growing:
    """The operands and mixings of a formula that is traced."""

    def __init__(
        self, tracer: Tracer, operands: Sequence[Operand], factors: Sequence[Factor], shape: tuple[int, ...]
    ) -> None:
        self.tracer, self.operands, self.factors = tracer, list(operands), factors
        self.rows, self.columns = (shape[0] if shape else 1), prod(shape[1:])
        self.mixings: list[Mixing] = []

    def through(self, weight: Symbol, module: Module) -> Symbol:
        return _Step(self, weight, module).result()

    def operand(self, operand: Operand) -> Symbol:
        self.operands.append(operand)
        if len(self.operands) > _MOST_OPERANDS:
            raise InputRefused(
                "more adapters change this tensor than one run takes; bake some of them first", code="unusable_tensor"
            )
        return Symbol(self.tracer, "input", (len(self.operands) - 1,))

    def number(self, value: float) -> Symbol:
        """A constant of its own, so that a formula's shape does not depend on its numbers."""
        return self.tracer.lift(Scalar(lambda: value))


class _Step:
    """One module on one weight. Matrices are the adapter's, wherever they lie in the tensor."""

    def __init__(self, growing: _Growing, weight: Symbol, module: Module) -> None:
        self.growing, self.weight, self.module = growing, weight, module
        self.apply = growing.tracer.apply
        self.rows, self.columns = module.seen[0] if module.seen else 1, prod(module.seen[1:])
        self.taps = prod(module.seen[2:])
        self.parts = {name: _Part(growing.factors[at], shape) for name, at, shape in module.factors}
        self.place = Place(module.first, growing.rows, growing.columns)

    def result(self) -> Symbol:
        module, kind = self.module, TRAITS[self.module.kind]
        made = _MADE[module.kind](self)
        decomposed = self.parts.keys() & {"dora_in", "dora_out"}
        if kind.difference and not decomposed:
            made = self.sum(self.weight, module.strength * module.scale, made)
        elif module.kind != "set":
            if kind.difference:
                made = self.sum(self.weight, module.scale, made)
            if decomposed:
                made = self.apply("mul", made, self.of_trained_length(made))
            made = self.sum(self.weight, module.strength, self.apply("sub", made, self.weight))
        inside = self.inside()
        return made if inside is None else self.apply("where", inside, made, self.weight)

    def sum(self, weight: Symbol, number: float, change: Symbol) -> Symbol:
        return self.apply("add", weight, self.apply("mul", self.growing.number(number), change))

    def inside(self) -> Symbol | None:
        """1 for the elements that the module changes; None where it changes all."""
        tracer, first, rows = self.growing.tracer, self.module.first, self.module.shape[0] if self.module.shape else 1
        found = []
        if first:
            found.append(self.apply("ge", tracer.make("index", FIRST), float(first)))
        if first + rows < self.growing.rows:
            found.append(self.apply("lt", tracer.make("index", FIRST), float(first + rows)))
        if self.module.channels:
            found.append(self.apply("lt", tracer.make("index", SECOND), float(self.module.channels)))
        inside = None
        for each in found:
            inside = each if inside is None else self.apply("mul", inside, each)
        return inside

    def of_trained_length(self, made: Symbol) -> Symbol:
        """By what DoRA multiplies rows or inputs."""
        tracer, inside = self.growing.tracer, self.inside()
        per_row = "dora_out" in self.parts
        part = self.parts["dora_out" if per_row else "dora_in"]
        along = (CHANNEL if per_row else INPUTS) if not self.module.transposed else (FIRST if per_row else CHANNEL)
        counted = made if inside is None else self.apply("where", inside, made, 0.0)
        length = tracer.scalar("add", tracer.scalar("sqrt", tracer.reduce("dot", along, counted, counted)), NEAR_ZERO)
        return self.apply("div", self.by_row(part) if per_row else self.by_input(part), length)

    def computed(self, kind: str, left: Matrix, right: Matrix | None = None) -> Symbol:
        """What is made of the adapter's matrices, where the tensor has it."""
        rows, columns = self.rows, self.columns
        if self.module.transposed:
            rows, columns, kind = columns, rows, _TURNED.get(kind, kind)
            left, right = left.transposed, None if right is None else right.transposed
            if kind == "product" and right is not None:
                left, right = right, left
        made = LowRank(kind, rows, columns, self.place, left, right)
        return self.growing.operand(Operand(0, F32, 0, low_rank=made))

    def whole(self, name: str) -> Symbol:
        """A factor that has the shape of the weight."""
        part = self.parts[name]
        plain = self.rows == self.growing.rows and self.columns == self.growing.columns and not self.module.transposed
        if plain and part.factor.operand.dtype in (F32, F16, BF16):
            return self.growing.operand(part.factor.operand)
        return self.computed("matrix", Matrix("stored", self.rows, self.columns, (part.numbers(),)))

    def by_row(self, part: _Part) -> Symbol:
        return self.computed("by_row", Matrix("stored", self.rows, 1, (part.numbers(),)))

    def by_input(self, part: _Part) -> Symbol:
        return self.computed("by_column", Matrix("stored", 1, part.factor.elements, (part.numbers(),)))

    def mixed(self, kind: str, size: int, left: Matrix, right: Matrix | None = None) -> Symbol:
        """The whole weight, multiplied."""
        mixing = Mixing(
            kind, self.rows, self.columns, self.place, self.module.transposed, size, self.module.limit, left, right
        )
        self.growing.mixings.append(mixing)
        return self.growing.tracer.mix(self.weight, len(self.growing.mixings) - 1)


_TURNED = {"by_row": "by_column", "by_column": "by_row"}
_STORED = (F32, F16, BF16, F64, F8_E4M3, F8_E5M2, *(BY_NAME[name] for name in ("I16", "I32", "I64")))


class _Part(NamedTuple):
    """A factor and its shape."""

    factor: Factor
    shape: tuple[int, ...]

    def numbers(self) -> Companion:
        operand = self.factor.operand
        if operand.dtype not in _STORED or operand.computed:
            stored = "encoded" if operand.computed else operand.dtype.name
            raise InputRefused(
                f"an adapter's factor of this tensor is {stored}; convert the adapter to fp16 first",
                code="unusable_tensor",
            )
        return Companion(operand.source, operand.dtype, operand.offset, self.factor.elements, operand.view)

    def matrix(self) -> Matrix:
        return Matrix("stored", self.shape[0], self.factor.elements // max(1, self.shape[0]), (self.numbers(),))


def _with_kernel(core: _Part, right: _Part) -> Matrix:
    rank, inner = core.shape[:2]
    columns = prod(core.shape[2:]) * (right.factor.elements // max(1, right.shape[0]))
    return Matrix("with_kernel", rank, columns, (core.numbers(), right.numbers()), inner=inner)


def _lora(step: _Step) -> Symbol:
    parts = step.parts
    right = _with_kernel(parts["mid"], parts["down"]) if "mid" in parts else parts["down"].matrix()
    delta = step.computed("product", parts["up"].matrix(), right)
    if "bias" in parts:
        delta = step.apply("add", delta, step.whole("bias"))
    if "bias_indices" in parts:
        some = (parts["bias_indices"].numbers(), parts["bias_values"].numbers())
        delta = step.apply("add", delta, step.computed("matrix", Matrix("sparse", step.rows, step.columns, some)))
    return delta


def _loha(step: _Step) -> Symbol:
    pair = []
    for number in (1, 2):
        left, right = step.parts[f"hada_w{number}_a"], step.parts[f"hada_w{number}_b"]
        core = step.parts.get(f"hada_t{number}")
        if core is None:
            pair.append(step.computed("product", left.matrix(), right.matrix()))
        else:
            pair.append(step.computed("product", left.matrix().transposed, _with_kernel(core, right)))
    return step.apply("mul", *pair)


def _lokr(step: _Step) -> Symbol:
    return step.computed("kronecker", *(_kronecker_factor(step.parts, name) for name in ("lokr_w1", "lokr_w2")))


def _kronecker_factor(parts: dict[str, _Part], name: str) -> Matrix:
    if name in parts:
        return parts[name].matrix()
    left, right = parts[f"{name}_a"], parts[f"{name}_b"]
    core = parts.get("lokr_t2") if name == "lokr_w2" else None
    if core is None:
        rank = right.shape[0]
        columns = right.factor.elements // max(1, rank)
        return Matrix("product", left.shape[0], columns, (left.numbers(), right.numbers()), rank=rank)
    rank, inner = core.shape[:2]
    columns = _with_kernel(core, right).columns
    stored = (left.numbers(), core.numbers(), right.numbers())
    return Matrix("turned_product", prod(left.shape[1:]), columns, stored, rank=rank, inner=inner)


def _glora(step: _Step) -> Symbol:
    parts = step.parts
    through = step.mixed("inputs", step.taps, parts["a1"].matrix(), parts["a2"].matrix())
    right = _with_kernel(parts["bm"], parts["b2"]) if "bm" in parts else parts["b2"].matrix()
    return step.apply("add", through, step.computed("product", parts["b1"].matrix(), right))


def _full(step: _Step) -> Symbol:
    return step.whole("diff")


def _ia3(step: _Step) -> Symbol:
    vector = step.parts["weight"]
    return step.apply("mul", step.weight, step.by_input(vector) if step.module.on_input else step.by_row(vector))


def _rotated(step: _Step) -> Symbol:
    part = step.parts["oft_diag" if "oft_diag" in step.parts else "oft_blocks"]
    kind = "butterfly" if step.module.kind == "boft" else "given" if "oft_diag" in step.parts else "rotation"
    size = part.shape[-1]
    blocks = Matrix("stored", part.factor.elements // max(1, size), size, (part.numbers(),))
    made = step.mixed(kind, size, blocks)
    return step.apply("mul", made, step.by_row(step.parts["rescale"])) if "rescale" in step.parts else made


def _set(step: _Step) -> Symbol:
    return step.whole("set_weight")


_MADE: dict[str, Callable[[_Step], Symbol]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "full": _full,
    "ia3": _ia3,
    "oft": _rotated,
    "boft": _rotated,
    "set": _set,
}
