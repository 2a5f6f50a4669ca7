"""Products: methods that multiply powers of models, or of what they learned."""

from __future__ import annotations

import math
from typing import Any

from ..functions import copysign, exp, is_nan, log, maximum, pow, where
from .registry import Param, method

SHARE = Param(0.5, "0: the size of A's difference, 1: of B's", "[0, 1]")
MIDDLE = Param(0.5, "weight of B in the mix that gives the sign", "[0, 1]")


@method("multiply-diff", inputs="A B C", base="C", alpha=SHARE, beta=MIDDLE)
def multiply_difference(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """C + |A − C|^(1 − α)·|B − C|^α, with the sign of (1 − β)·A + β·B − C: the geometric mean of two differences.

    ``multiply_difference`` of meh. 0⁰ is 1: at α = 0 or 1 a zero difference does not make the product 0.
    """
    mixed = (1 - beta) * a + beta * b
    return c + copysign(pow(abs(a - c), 1 - alpha) * pow(abs(b - c), alpha), mixed - c)


@method("multiply-diff.ge", inputs="A B C", base="C", alpha=SHARE, beta=MIDDLE)
def multiply_difference_ge(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
    """As multiply-diff; the sign is + of −0 too.

    ``multiply_difference`` of Chattiori-Model-Merger since 2025.
    """
    mixed = (1 - beta) * a + beta * b
    size = pow(abs(a - c), 1 - alpha) * pow(abs(b - c), alpha)
    return c + where(mixed - c >= 0, size, -size)


@method("geometric-sum", inputs="A B", alpha=Param(0.5, "weight of B in the exponents"))
def geometric_sum(a: Any, b: Any, alpha: float) -> Any:
    """Re(A^(1 − α)·B^α) over complex numbers: |A|^(1 − α)·|B|^α, times cos π(1 − α) where A < 0, cos πα where B < 0.

    ``geometric_sum`` of sd-mecha. Of positive numbers the geometric mean; of a negative one the real part of a root.
    """
    size = pow(abs(a), 1 - alpha) * pow(abs(b), alpha)
    first, second = turned(1 - alpha), turned(alpha)
    both = turned(1)  # (1 − α) + α half turns
    return where(a < 0, where(b < 0, size * both, size * first), where(b < 0, size * second, size))


@method("geometric-sum.real", inputs="A B", alpha=Param(0.5, "weight of B in the exponents"))
def geometric_sum_real(a: Any, b: Any, alpha: float) -> Any:
    """A^(1 − α)·B^α of real numbers: not a number where the power of a negative one is none.

    ``geom`` of Chattiori-Model-Merger. For recipes that were made with it: every model has negative weights.
    """
    return pow(a, 1 - alpha) * pow(b, alpha)


COSINE = (0.024627111595228412, 0.23507436832239592, 1.3352399607008951, 4.0587114146834375, 4.934802196986985)
"""Of (1 − cos πr)/r² for r in [−½, ½], in r² from the fourth power down, by interpolation at Chebyshev nodes."""


def turned(half_turns: Any) -> Any:
    """The real part of e^(iπ·t)."""
    from ..functions import of_numbers

    return of_numbers(lambda t: math.cos(math.pi * t), half_turns)


@method(
    "multiply-quotient", inputs="A B C", base="C", alpha=Param(1.0, "how much of the quotient B/C is multiplied in")
)
def multiply_quotient(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """Re(A·(B/C)^e), e = α·max(0, −x·y/max(|x|, |y|)²) with x = ln|A/C| and y = ln|B/C|; A where that is not a number.

    ``multiply_quotient`` of sd-mecha.
    """
    x, y = log(abs(a / c)), log(abs(b / c))
    larger = maximum(abs(x), abs(y))
    power = alpha * maximum(-(x * y) / (larger * larger), 0)
    found = a * exp(power * y)
    found = where((b < 0) != (c < 0), found * cosine_of_half_turns(power), found)
    return where(is_nan(found), a, found)


def cosine_of_half_turns(t: Any) -> Any:
    """cos πt of elements of any size: a polynomial around the nearest integer, whose parity gives the sign; off by
    2⁻²² at most."""
    from ..functions import floor

    nearest = floor(t + 0.5)
    rest, half = t - nearest, nearest * 0.5
    x = rest * rest
    series, *factors = COSINE
    for factor in factors:
        series = factor - x * series
    return (1 - 4 * (half - floor(half))) * (1 - x * series)
