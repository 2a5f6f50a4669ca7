"""How files differ from one of them, tensor by tensor: inner products of the differences, in one pass over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple

from .. import engine
from ..backends import Options
from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import F32, DType
from ..errors import InputRefused, UsageError, number_of, printable
from ..layouts import Detection, Layout, conflict, detect
from ..outline import COMPARED, Outline, Piece, Segment, operand
from ..placing import runs
from ..program import ALL, INPUT, TEMP, Formula, Program, Stage
from ..report.warnings import in_json
from ..settings import Settings
from .matching import in_names_of, without_unit_tail

Array = Any
MOST = 63
"""Files beside the first: the products grow with their square, and the buffers of so many stay below 40 MB."""


class Gram(NamedTuple):
    """Of a tensor M of the first file and the same of the others C₁ … Cₙ: ``products[i, j]`` = ⟨Cᵢ − M, Cⱼ − M⟩ as
    float64 [n, n], ``total`` ΣM, ``square`` ΣM². ``has[i]``: whether file i has the tensor; where it hasn't, its
    products are 0. ``dtypes`` are M's and the others'."""

    name: str
    elements: int
    total: float
    square: float
    products: Array
    has: tuple[bool, ...]
    dtypes: tuple[DType | None, ...]

    @property
    def finite(self) -> bool:
        import numpy as np

        return bool(np.isfinite(self.products).all() and np.isfinite((self.total, self.square)).all())


class Grams(NamedTuple):
    """``tensors`` are the first file's weights that another has too, ``alone`` those that none has. ``tables`` are all
    files' tensors under the first one's names."""

    tensors: list[Gram]
    alone: list[str]
    tables: list[dict[str, TensorInfo]]
    notes: list[str]
    outcome: engine.Outcome
    bytes_read: int

    def finite(self, notes: list[str]) -> list[Gram]:
        """The tensors without NaN and Inf; of the others there is a note."""
        odd = [each.name for each in self.tensors if not each.finite]
        if odd:
            words = "holds NaN or Inf and was" if len(odd) == 1 else "hold NaN or Inf and were"
            notes.append(f"{number_of(len(odd), 'tensor')} {words} left out ('{printable(odd[0])}')")
        return [each for each in self.tensors if each.finite]


@dataclass(kw_only=True)
class OfGrams:
    """What results that were found by ``grams`` have besides their own: ``notes``, how many ``tensors`` were looked at,
    and how the pass went."""

    notes: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    how: dict[str, Any] = field(default_factory=dict)

    def passed(self, read: Grams, tensors: int) -> None:
        self.tensors, self.bytes_read = tensors, read.bytes_read
        self.seconds, self.how = read.outcome.seconds, read.outcome.how

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        common = {each.name: found.pop(each.name) for each in fields(OfGrams)}
        return {**found, **common, **in_json(self.notes)}


@lru_cache(maxsize=64)
def program(others: int) -> Program:
    """Reads M and ``others`` tensors: ΣM, ⟨M, M⟩ and ⟨Cᵢ − M, Cⱼ − M⟩ for i ≤ j are its values, in this order."""
    steps = tuple(("sub", ((INPUT, i + 1), (INPUT, 0)), i) for i in range(others))
    dots = [("dot", ALL, ((TEMP, i), (TEMP, j))) for i in range(others) for j in range(i, others)]
    reductions = (("sum", ALL, ((INPUT, 0),)), ("dot", ALL, ((INPUT, 0), (INPUT, 0))), *dots)
    return Program(others + 1, 0, (), (INPUT, 0), (Stage(steps, reductions, ()),))


def one_family(opened: Sequence[Checkpoint], first: Checkpoint, than: str = "") -> Detection:
    """The family of ``first``. InputRefused, with "another family ``than``", for a file of another one."""
    ours = detect(first.tensors)
    for other in opened:
        different = conflict(ours, detect(other.tensors))
        if different:
            words = " ".join(filter(None, (printable(other.path) + ": another family", than)))
            raise InputRefused(f"{words}: {different}", code="family")
    return ours


def grams(opened: Sequence[Checkpoint], layout: Layout, settings: Settings) -> Grams:
    """One pass over all files: every weight of the first that another has in the same shape. EMA weights, integers and
    what is no weight are left out. UsageError for more than ``MOST`` other files."""
    if len(opened) - 1 > MOST:
        raise UsageError(f"{len(opened) - 1} files to compare with; at most {MOST} can be read together")
    first, *others = opened
    tables, notes = [dict(first.tensors)], []
    for other in others:
        renamed, found = in_names_of(first.tensors, other.tensors, layout)
        tables.append(dict(renamed))
        notes += found
    pieces: list[Piece] = []
    owners: list[tuple[str, tuple[bool, ...]]] = []  # of each piece
    alone = []
    for name, info in first.tensors.items():
        if not _is_weight(info) or layout.is_ema(name) or layout.exact_copy(name):
            continue
        beside = [table.get(name) for table in tables[1:]]
        has = tuple(each is not None and _fits(info, each) for each in beside)
        if not any(has):
            alone.append(name)
            continue
        chosen = [(0, info), *((k + 1, each) for k, each in enumerate(beside) if each is not None and has[k])]
        operands = tuple(operand(k, each) for k, each in chosen)
        formula = Formula(program(len(chosen) - 1), ())
        for part in runs(Segment(formula, 0, info.elements, operands)):
            segment = part._replace(first=0, count=1, elements=part.count)
            pieces.append(Piece(name, F32, (1,), COMPARED, (segment,)))
            owners.append((name, has))
    placed = Outline("gram", tuple(opened), tuple(pieces)).unwritten()
    options = Options.of(settings)
    with placed.names_in_errors():
        outcome = engine.examine(
            placed.plan, placed.sources(), options, settings.callback, settings.backend, values=True
        )
    found_by_name: dict[str, Gram] = {}
    for number, (name, has) in enumerate(owners):
        dtypes = tuple(table[name].dtype if name in table else None for table in tables)
        one = _gram(name, first.tensors[name].elements, outcome.values[number], has, dtypes)
        before = found_by_name.get(name)
        found_by_name[name] = one if before is None else before._replace(
            total=before.total + one.total, square=before.square + one.square, products=before.products + one.products
        )  # fmt: skip
    return Grams(list(found_by_name.values()), alone, tables, notes, outcome, placed.plan.bytes_to_read())


def _is_weight(info: TensorInfo) -> bool:
    decodable = info.encoded is None or info.encoded.encoding is not None
    return info.dtype.computable and info.elements > 0 and decodable


def _fits(info: TensorInfo, other: TensorInfo) -> bool:
    return _is_weight(other) and without_unit_tail(info.shape) == without_unit_tail(other.shape)


def _gram(name: str, elements: int, values: Sequence[float], has: tuple[bool, ...], dtypes: Any) -> Gram:
    import numpy as np

    products = np.zeros((len(has), len(has)))
    at = [k for k, there in enumerate(has) if there]
    rest = iter(values[2:])
    for i, row in enumerate(at):
        for column in at[i:]:
            products[row, column] = products[column, row] = next(rest)
    return Gram(name, elements, values[0], values[1], products, has, dtypes)
