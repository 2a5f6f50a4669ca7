"""What an adapter's factors make of a tensor, as numbers of a Plan: an operand that nothing is stored of.

``csrc/low_rank.h`` computes it, in the order that ``definitions/products.py`` defines.
"""

from __future__ import annotations

from typing import NamedTuple

from .encoding import Companion

FORMS = ("stored", "product", "with_kernel", "turned_product", "sparse")
"""What a Matrix is made of, by the native engine's numbers."""
KINDS = ("product", "kronecker", "by_row", "by_column", "matrix")
"""What is made of one or two matrices, likewise."""


class Matrix(NamedTuple):
    """A factor, made of ``parts``. What the form makes has ``rows`` × ``columns``:

    stored: it itself, row by row; product: [rows, rank] · [rank, columns]; with_kernel: a core [rows, inner, taps] and
    a right factor [inner, columns ⁄ taps] (Tucker); turned_product: the transpose of [rank, rows], times such a core
    [rank, inner, taps] with its right factor; sparse: rows and columns of some elements [2, n], and their values [n].

    ``turned``: the factor is the transpose of that.
    """

    form: str
    rows: int
    columns: int
    parts: tuple[Companion, ...]
    rank: int = 0
    inner: int = 0
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of the factor."""
        return (self.columns, self.rows) if self.turned else (self.rows, self.columns)

    @property
    def transposed(self) -> Matrix:
        return self._replace(turned=not self.turned)


def factors_of(*matrices: Matrix | None) -> tuple[Companion, ...]:
    """All that matrices are made of."""
    return tuple(part for matrix in matrices if matrix is not None for part in matrix.parts)


def bytes_of(parts: tuple[Companion, ...]) -> int:
    """As they are stored."""
    return sum(part.dtype.nbytes(part.count) or 0 for part in parts)


class Place(NamedTuple):
    """Where a matrix lies in a tensor of ``rows`` × ``columns``: in its rows from ``first`` on, and in its first
    columns."""

    first: int
    rows: int
    columns: int


class LowRank(NamedTuple):
    """A tensor that has, in one place, a matrix of ``rows`` × ``columns``, and zeros around it. The matrix is the
    product of ``left`` and ``right``, their Kronecker product, the numbers of ``left`` for each row or for each (or
    every few) columns, or ``left`` itself. ``start`` elements of the tensor are left out in front."""

    kind: str
    rows: int
    columns: int
    place: Place
    left: Matrix
    right: Matrix | None = None
    start: int = 0

    def at(self, element: int) -> LowRank:
        """The same without its first elements."""
        return self._replace(start=self.start + element)

    @property
    def factors(self) -> tuple[Companion, ...]:
        return factors_of(self.left, self.right)

    @property
    def stored_bytes(self) -> int:
        return bytes_of(self.factors)
