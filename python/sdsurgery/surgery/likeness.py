"""How alike two tensors are, and two sets of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Likeness:
    """How alike A and B are over a set of tensors, or over one.

    ``tensors`` counts those that both files have in one shape, ``equal`` those of them that are the same dtype and the
    same bits. The numbers below are float64 sums and maxima over the weights among them (``weights``): floats in both
    files, without ``position_ids``, noise schedules and markers. NaN and Inf are counted and otherwise left out.
    """

    tensors: int = 0
    equal: int = 0
    weights: int = 0
    elements: int = 0  # of the weights
    equal_elements: int = 0
    dot: float = 0.0
    a_squared: float = 0.0
    b_squared: float = 0.0
    difference_squared: float = 0.0
    a_max: float = 0.0
    b_max: float = 0.0
    difference_max: float = 0.0
    a_nonfinite: int = 0
    b_nonfinite: int = 0

    def add(self, other: Likeness) -> None:
        """Take in what another set of tensors has."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MAXIMA:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ ⁄ (‖A‖·‖B‖); 1 when both are zero, None when only one is, or without weights, or after an overflow."""
        if not self.weights:
            return None
        if abs(self.dot) == self.a_squared == self.b_squared < math.inf:
            return math.copysign(1.0, self.dot)
        norms = math.sqrt(self.a_squared) * math.sqrt(self.b_squared)
        value = self.dot / norms if norms else math.nan
        return max(-1.0, min(1.0, value)) if math.isfinite(value) else None

    @property
    def relative_l2(self) -> float | None:
        """‖A − B‖ ⁄ ‖A‖; 0 when both are zero, None when only A is, or without weights, or after an overflow."""
        if not self.weights:
            return None
        if self.difference_squared == 0:
            return 0.0
        value = math.sqrt(self.difference_squared / self.a_squared) if self.a_squared else math.nan
        return value if math.isfinite(value) else None

    @property
    def equal_share(self) -> float | None:
        """Share of bit-equal tensors; None when there are none to compare."""
        return self.equal / self.tensors if self.tensors else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are null."""
        return {
            "tensors": self.tensors,
            "equal": self.equal,
            "equal_share": self.equal_share,
            "weights": self.weights,
            "elements": self.elements,
            "equal_elements": self.equal_elements,
            "cosine": self.cosine,
            "relative_l2": self.relative_l2,
            "a_norm": _finite(math.sqrt(self.a_squared)),
            "b_norm": _finite(math.sqrt(self.b_squared)),
            "difference_norm": _finite(math.sqrt(self.difference_squared)),
            "a_max": _finite(self.a_max),
            "b_max": _finite(self.b_max),
            "difference_max": _finite(self.difference_max),
            "a_nonfinite": self.a_nonfinite,
            "b_nonfinite": self.b_nonfinite,
        }


_MAXIMA = ("a_max", "b_max", "difference_max")
_SUMS = tuple(item.name for item in fields(Likeness) if item.name not in _MAXIMA)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
