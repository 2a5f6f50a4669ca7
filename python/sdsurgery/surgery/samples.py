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
    work: Work, candidates: Sequence[int], most: int, of_each: int, blocks: Sequence[str] = ()
) -> Iterator[Tensor]:
    """Of the largest tensors of each block (or of some) until ``most`` elements are together, ``of_each`` at most."""
    sources = (0, *(i + 1 for i in candidates))
    for block, tensors in work.blocks.items():
        taken = 0
        for each in sorted(tensors, key=lambda each: -each.elements) if not blocks or block in blocks else ():
            if taken >= most:
                break
            infos = [work.read.tables[source].get(each.name) for source in sources]
            if not all(each.has[i] for i in candidates) or any(info is None or info.parts for info in infos):
                continue
            count = min(each.elements, of_each)
            taken += count
            mix, *inputs = [
                values(work.opened[source], operand(source, info), count)
                for source, info in zip(sources, infos, strict=True) if info is not None
            ]  # fmt: skip
            yield Tensor(
                each.name, block, work.stored(0, each.name).dtype, mix, dict(zip(candidates, inputs, strict=True))
            )
