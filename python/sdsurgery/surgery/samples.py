"""Some elements of the mix and of the candidates beside each other, for what sums can't tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..adapters.arrays import values
from ..outline import operand

if TYPE_CHECKING:
    from ..dtypes import DType
    from .parentage import Work

Array = Any


class Tensor(NamedTuple):
    """The first elements of a tensor of the mix, stored in ``dtype``, and of candidates (by their numbers), widened to
    float32 (float64 of F64), flat."""

    name: str
    block: str
    dtype: DType
    mix: Array
    inputs: dict[int, Array]


def sample(
    work: Work, candidates: Sequence[int], most: int, of_each: int, block: str | None = None
) -> Iterator[Tensor]:
    """Of the largest tensors of each block (or of one) until ``most`` elements are together, ``of_each`` at most."""
    taken: dict[str, int] = {}
    for each in sorted(work.tensors, key=lambda each: -each.elements):
        home = work.block_of(each.name)
        if taken.get(home, 0) >= most or (block is not None and home != block):
            continue
        infos = [work.read.tables[source].get(each.name) for source in (0, *(i + 1 for i in candidates))]
        if not all(each.has[i] for i in candidates) or any(info is None or info.parts for info in infos):
            continue
        count = min(each.elements, of_each)
        taken[home] = taken.get(home, 0) + count
        mix, *inputs = [
            values(work.opened[source], operand(source, info), count)
            for source, info in zip((0, *(i + 1 for i in candidates)), infos, strict=True) if info is not None
        ]  # fmt: skip
        dtype = work.stored(0, each.name).dtype
        yield Tensor(each.name, home, dtype, mix, dict(zip(candidates, inputs, strict=True)))
