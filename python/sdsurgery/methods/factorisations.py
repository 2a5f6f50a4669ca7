"""Factorisations: rotations, and differences of a lower rank. They are NumPy's, in float64: results are the same to
about one rounding on every machine, and not to the bit. A tensor with a NaN or Inf is a weighted sum, or unchanged."""

from __future__ import annotations

from typing import Any

from ..functions import whole
from .registry import Param, method
from .sums import FUSED


def _rotated(a: Any, b: Any, *numbers: float) -> Any:
    from ..definitions.factorisations import rotate

    return whole(rotate, a, b, *numbers)


ALIGNMENT = Param(1.0, "how far A is turned towards B")
MIXED = Param(0.0, "how much of B, turned back, is mixed into A first; of tensors with one axis the weight of B")
CENTRALIZATION = Param(1.0, "how much of the mean of the rows is left out of the rotation", "[0, 1]")


@method("rotate", inputs="A B", alignment=ALIGNMENT, alpha=MIXED, centralization=CENTRALIZATION, fused=FUSED)
def rotate(a: Any, b: Any, *, alignment: float, alpha: float, centralization: float, fused: bool) -> Any:
    """((1 − α)·A + α·B·Qᵀ)·Q^alignment, Q the orthogonal matrix that takes A nearest to B; rows are output channels.

    ``rotate`` of sd-mecha. The rows of a convolution are its kernels; the mean of the rows is mixed apart. Of fewer
    rows than columns Q acts on the span of the rows, without the direction that centred rows lack. A weighted sum of
    tensors with one axis, and where A and B agree in fp16.
    """
    return _rotated(a, b, alignment, alpha, centralization, float(fused))


@method("rotate.wide", inputs="A B", alignment=ALIGNMENT, alpha=MIXED, centralization=CENTRALIZATION, fused=FUSED)
def rotate_wide(a: Any, b: Any, *, alignment: float, alpha: float, centralization: float, fused: bool) -> Any:
    """As rotate, which takes tensors with fewer rows than columns by itself."""
    return _rotated(a, b, alignment, alpha, centralization, float(fused))


@method("rotate.differences", inputs="A B C", base="C", alignment=ALIGNMENT, alpha=MIXED, centralization=CENTRALIZATION,
        fused=FUSED)  # fmt: skip
def rotate_differences(
    a: Any, b: Any, c: Any, *, alignment: float, alpha: float, centralization: float, fused: bool
) -> Any:
    """C + rotate(A − C, B − C): what A learned beyond C is turned towards what B learned.

    ``rotate`` of sd-mecha, of differences.
    """
    return c + _rotated(a - c, b - c, alignment, alpha, centralization, float(fused))


RANK = Param(8, "singular values that are kept", "[0, inf)", whole=True)


@method("truncate-rank", inputs="A", rank=RANK)
def truncate_rank(a: Any, rank: float) -> Any:
    """Σ σᵢ·uᵢ·vᵢᵀ over the largest singular values of A, a difference: its best approximation of that rank.

    ``truncate_rank`` of sd-mecha, with exact singular vectors. Rows are output channels; unchanged with one axis.
    """
    from ..definitions import factorisations

    return whole(factorisations.truncate_rank, a, rank)


@method("truncate-rank.difference", inputs="A B", base="A", rank=RANK)
def truncate_rank_of_difference(a: Any, b: Any, rank: float) -> Any:
    """A + the best approximation of B − A of that rank.

    ``truncate_rank`` of sd-mecha, of what B learned beyond A.
    """
    from ..definitions import factorisations

    return a + whole(factorisations.truncate_rank, b - a, rank)


@method("truncate-kronecker", inputs="A",
        kronecker_ratio=Param(0.5, "size of the first factor: 0 the smallest, 1 the largest", "[0, 1]"))  # fmt: skip
def truncate_kronecker(a: Any, kronecker_ratio: float) -> Any:
    """X ⊗ Y nearest to A, a difference; the axes of X divide those of A.

    ``truncate_kronecker`` of sd-mecha, with exact singular vectors. Unchanged with one axis.
    """
    from ..definitions import factorisations

    return whole(factorisations.truncate_kronecker, a, kronecker_ratio)
