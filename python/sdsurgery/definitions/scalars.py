"""The scalar functions of merge methods, by definition: float64 → float64, the exact result rounded once.

These are the reference; `csrc/scalars.h` computes the same bits natively. Each function evaluates with mpmath at 200
bits and checks that the neighbourhood of the value rounds to one float64; if not, it doubles the precision (Ziv, "Fast
evaluation of elementary mathematical functions with correctly rounded last bit", 1991). Special values follow Annex F
of C99, except that a NaN result is always the canonical one. Nothing here raises on a value.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable
from typing import Any

NAN: float = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000000))[0]
INF = math.inf

_FIRST_BITS = 200
_LAST_BITS = 1600  # what is closer than this to the middle between two float64 is the middle itself: some powers


def sqrt(x: float) -> float:
    """The square root for x ≥ 0 (√−0 = −0), else NaN. Exactly rounded by IEEE 754."""
    return math.sqrt(x) if x >= 0 else NAN


def sin(x: float) -> float:
    """The sine of x radians, for any finite x, else NaN. Correctly rounded; sin(−0) = −0."""
    if not math.isfinite(x):
        return NAN
    return x if x == 0 else _rounded(lambda mp: mp.sin(x))


def cos(x: float) -> float:
    """The cosine of x radians, for any finite x, else NaN. Correctly rounded."""
    return _rounded(lambda mp: mp.cos(x)) if math.isfinite(x) else NAN


def acos(x: float) -> float:
    """The angle in radians, from 0 to π, whose cosine is x, for |x| ≤ 1, else NaN. Correctly rounded."""
    if not abs(x) <= 1:
        return NAN
    return 0.0 if x == 1 else _rounded(lambda mp: mp.acos(x))


def exp(x: float) -> float:
    """e to the power x, for any x. Correctly rounded, subnormal results too; past the largest float64: inf."""
    if math.isnan(x):
        return NAN
    if abs(x) >= 1000:
        return INF if x > 0 else 0.0
    return _rounded(lambda mp: mp.exp(x))


def log(x: float) -> float:
    """The natural logarithm for x > 0; −inf for ±0, NaN for x < 0. Correctly rounded."""
    if math.isnan(x) or x < 0:
        return NAN
    if x == 0:
        return -INF
    return x if x == INF else 0.0 if x == 1 else _rounded(lambda mp: mp.log(x))


def pow(x: float, y: float) -> float:
    """x to the power y. Correctly rounded; the special values are those of C99, F.9.4.4.

    x < 0 needs an integer y, else the result is NaN. pow(x, ±0) and pow(1, y) are 1, even for a NaN.
    """
    if y == 0 or x == 1:
        return 1.0
    if math.isnan(x) or math.isnan(y):
        return NAN
    if math.isinf(y):
        if abs(x) == 1:
            return 1.0
        return INF if (abs(x) > 1) == (y > 0) else 0.0
    sign = -1.0 if math.copysign(1.0, x) < 0 and math.fmod(y, 2.0) in {1.0, -1.0} else 1.0
    if x == 0:
        return sign * (INF if y < 0 else 0.0)
    if math.isinf(x):
        return sign * (INF if y > 0 else 0.0)
    if x < 0 and not y.is_integer():
        return NAN
    if abs(x) == 1:
        return sign
    estimate = y * math.log2(abs(x))
    if abs(estimate) > 1100:
        return sign * (INF if estimate > 0 else 0.0)
    return sign * _rounded(lambda mp: mp.exp(mp.mpf(y) * mp.log(abs(x))))


_of_thread = threading.local()


def _context() -> Any:
    """This thread's own mpmath context: not the shared one, whose precision others may use, and not a new one for each
    number, which takes as long as the number."""
    found = getattr(_of_thread, "context", None)
    if found is None:
        import mpmath

        found = _of_thread.context = mpmath.MPContext()
    return found


def _rounded(value: Callable[[Any], Any]) -> float:
    """What `value(mpmath context)` gives, rounded once to the nearest float64, ties to even."""
    context = _context()
    bits = _FIRST_BITS
    while True:
        context.prec = bits + 16  # a function of mpmath is off by a few units at most
        exact = value(context)
        context.prec = bits + 40
        below, above = (_nearest(exact * (1 + side * context.ldexp(1, -bits))) for side in (-1, 1))
        if below == above:
            return below
        if bits >= _LAST_BITS:
            context.prec = bits // 2
            return _nearest(+exact)
        bits *= 2


def _nearest(value: Any) -> float:
    negative, mantissa, exponent, length = value._mpf_
    if exponent + length > 1025:
        size = INF
    elif exponent + length < -1100:
        size = 0.0
    else:
        try:  # the quotient of two integers is rounded once, subnormals too
            size = float(int(mantissa) << exponent) if exponent >= 0 else int(mantissa) / (1 << -exponent)
        except OverflowError:
            size = INF
    return -size if negative else size
