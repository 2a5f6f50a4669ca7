"""What an adapter makes of all of a tensor, as numbers of a Plan: what a stage of a job's program mixes.

``csrc/mixing.h`` computes it, as ``definitions/mixing.py`` defines.
"""

from __future__ import annotations

from typing import NamedTuple

from .encoding import Companion
from .low_rank import Matrix, Place, factors_of

KINDS = ("rotation", "given", "butterfly", "inputs")
"""By the native engine's numbers."""


class Mixing(NamedTuple):
    """A matrix of ``rows`` × ``columns`` in a tensor (``turned``: its transpose lies there) that is multiplied:

    rotation: each block of ``size`` rows by the transpose of the rotation R that a block of ``left`` stands for; given:
    the same, the blocks are R; butterfly: by R, once for every level of blocks, over rows that lie apart (BOFT);
    inputs: each row by ``left`` [inputs, r] and ``right`` [r, inputs], at each of ``size`` places of a kernel.

    A ``limit`` above 0 bounds the norm of all blocks' skew-symmetric parts together.
    """

    kind: str
    rows: int
    columns: int
    place: Place
    turned: bool
    size: int
    limit: float
    left: Matrix
    right: Matrix | None = None

    @property
    def factors(self) -> tuple[Companion, ...]:
        return factors_of(self.left, self.right)
