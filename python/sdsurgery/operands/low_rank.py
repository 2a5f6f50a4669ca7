"""What an adapter's factors make of a tensor, as numbers of a Plan: an operand that nothing is stored of.

``csrc/low_rank.h`` computes it, in the order that ``definitions/products.py`` defines.
"""

from __future__ import annotations

from typing import NamedTuple

from .encoding import Companion

FORMS = ("stored", "transposed", "product", "with_kernel", "turned_product")
"""What a Matrix is made of, by the native engine's numbers."""
KINDS = ("product", "kronecker", "by_row", "by_column")
"""What is made of two matrices, likewise."""


class Matrix(NamedTuple):
    """A factor of ``rows`` × ``columns``, made of ``parts``:

    stored: it itself, row by row; transposed: [columns, rows]; product: [rows, rank] · [rank, columns];
    with_kernel: a core [rows, inner, taps] and a right factor [inner, columns ⁄ taps] (Tucker); turned_product: the
    transpose of [rank, rows], times such a core [rank, inner, taps] with its right factor.
    """

    form: str
    rows: int
    columns: int
    parts: tuple[Companion, ...]
    rank: int = 0
    inner: int = 0


class LowRank(NamedTuple):
    """A tensor of ``rows`` × ``columns``: the product of ``left`` and ``right``, their Kronecker product, or the
    numbers of ``left`` for each row or for each (or every few) columns. ``start`` elements are left out in front."""

    kind: str
    rows: int
    columns: int
    left: Matrix
    right: Matrix | None = None
    start: int = 0

    def at(self, element: int) -> LowRank:
        """The same without its first elements."""
        return self._replace(start=self.start + element)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the factors."""
        matrices = (self.left,) if self.right is None else (self.left, self.right)
        return sum(part.dtype.nbytes(part.count) or 0 for matrix in matrices for part in matrix.parts)
