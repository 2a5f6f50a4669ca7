"""exp, log and pow of arrays, by definition.

Of float32: ``csrc/functions.h`` over NumPy, every operation rounded by itself. The operations and their order are those
of the header, which says what the error is and where the method comes from; so the bits are the same. Of float64: the
functions of ``scalars``.
"""

from __future__ import annotations

import numpy as np

from . import scalars

F32, F64, I32, U32, U64 = np.float32, np.float64, np.int32, np.uint32, np.uint64
SHIFT = float.fromhex("0x1.8p52")
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
LOG2_E = float.fromhex("0x1.71547652b82fep+0")


def _numbers(*texts: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, texts))


NARROW_SHIFT = float.fromhex("0x1.8p23")
NARROW_LN2_HIGH, NARROW_LN2_LOW = _numbers("0x1.62e4p-1", "0x1.7f7d1cp-20")
NARROW_LOG2_E = float.fromhex("0x1.715476p+0")
NARROW_EXP = _numbers("0x1.a124f2p-13", "0x1.6d4324p-10", "0x1.1110e0p-7", "0x1.5554eap-5", "0x1.555556p-3", "0x1p-1")
NARROW_LOG_EVEN = _numbers("0x1.1d8ea6p-4", "0x1.dea282p-4", "0x1.23d21ap-3", "0x1.999d5ap-3", "0x1.555554p-2")
NARROW_LOG_ODD = _numbers("-0x1.d635bcp-4", "-0x1.fcf4c6p-4", "-0x1.555b4ap-3", "-0x1.fffffcp-3")
EXP = _numbers(
    "0x1.af38a9b0ec855p-26",
    "0x1.289185613a3d6p-22",
    "0x1.71de0dae63bb3p-19",
    "0x1.a019b90d2ae7ap-16",
    "0x1.a01a01a7c41d5p-13",
    "0x1.6c16c1788bd90p-10",
    "0x1.11111111109b3p-7",
    "0x1.5555555553d63p-5",
    "0x1.5555555555556p-3",
    "0x1.0000000000001p-1",
)
LOG = _numbers(
    "0x1.0c04595972ab8p-3",
    "0x1.0fbe83c2cbcf3p-3",
    "0x1.3b1c360763b8ap-3",
    "0x1.745cf901605f7p-3",
    "0x1.c71c720160b47p-3",
    "0x1.2492492476c87p-2",
    "0x1.9999999999a38p-2",
    "0x1.5555555555555p-1",
)
_SIZE = U64(0x7FFFFFFFFFFFFFFF)
_INFINITY = U64(0x7FF0000000000000)


def exp(x: np.ndarray) -> np.ndarray:
    """e to the power x, of float32."""
    with np.errstate(all="ignore"):
        x = np.where(x < -104, F32(-104), np.where(x > 89, F32(89), x))
        shift, half = F32(NARROW_SHIFT), F32(0.5)
        k = (x * F32(NARROW_LOG2_E) + shift) - shift
        high, low = x - k * F32(NARROW_LN2_HIGH), k * F32(NARROW_LN2_LOW)
        r = high - low
        p = _polynomial(NARROW_EXP, r)
        part = k * half + shift
        rest = (k - (part - shift)) + shift
        return (F32(1) + (high + (r * r * p - low))) * _power_of_two(part) * _power_of_two(rest)


def log(x: np.ndarray) -> np.ndarray:
    """The natural logarithm of float32; −Inf of a zero, NaN below."""
    with np.errstate(all="ignore"):
        subnormal = x < F32(2.0**-126)
        above = np.atleast_1d(np.where(subnormal, x * F32(2.0**23), x)).view(U32) - U32(0x3F3504F3)
        m = ((above & U32(0x7FFFFF)) + U32(0x3F3504F3)).view(F32).reshape(x.shape)
        k = (above.view(I32) >> I32(23)).astype(F32).reshape(x.shape) - np.where(subnormal, F32(23), F32(0))
        f = m - F32(1)
        z = f * f
        even, odd = _polynomial(NARROW_LOG_EVEN, z), _polynomial(NARROW_LOG_ODD, z)
        part = f * z * (even + f * odd) + k * F32(NARROW_LN2_LOW)
        found = k * F32(NARROW_LN2_HIGH) - ((F32(0.5) * z - part) - f)
        of_others = np.where(x == 0, F32(-np.inf), F32(np.nan))
        return np.where(x > 0, np.where(x < F32(np.inf), found, x), of_others)


def pow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x to the power y, of float32; NaN for x < 0 unless y is an integer."""
    with np.errstate(all="ignore"):
        x, y = np.broadcast_arrays(x, y)
        exponent = y.astype(F64)
        power = _exp(exponent * _log(x.astype(F64))).astype(np.float32)
        shifted = exponent + SHIFT
        large = np.abs(y) >= 2.0**24
        whole = (shifted - SHIFT == exponent) | large
        odd = whole & ~large & ((np.atleast_1d(shifted).view(U64).reshape(shifted.shape) & U64(1)) != 0)
        found = np.where(odd, np.copysign(power, x), power)
        found = np.where((x < 0) & ~np.isinf(x) & ~whole, np.float32(np.nan), found)
        return np.where((y == 0) | (x == 1) | ((np.abs(x) == 1) & np.isinf(y)), np.float32(1), found)


def correctly_rounded(op: str, *args: np.ndarray) -> np.ndarray:
    """exp, log or pow of float64 arrays of one shape, as ``scalars`` has them. Where the extended precision of the C
    library, with room for its error, leaves no doubt about the rounding, it is not asked."""
    args = tuple(np.broadcast_arrays(*args))
    found = np.empty(args[0].shape)
    sure = np.zeros(args[0].shape, bool)
    if np.finfo(np.longdouble).nmant >= 63:
        with np.errstate(all="ignore"):
            guess = {"exp": np.exp, "log": np.log, "pow": np.power}[op](*(arg.astype(np.longdouble) for arg in args))
            slack = np.ldexp(np.longdouble(1), -60)
            below, above = ((guess * side).astype(F64) for side in (1 - slack, 1 + slack))
            sure = (below == above) & (np.abs(below) > 1e-300) & np.isfinite(below)
        found[sure] = below[sure]
    function = getattr(scalars, op)
    rest = [arg[~sure].tolist() for arg in args]
    found[~sure] = [function(*values) for values in zip(*rest, strict=True)]
    return found


def _exp(x: np.ndarray) -> np.ndarray:
    x = np.where(x < -200, -200.0, np.where(x > 200, 200.0, x))
    shifted = x * LOG2_E + SHIFT
    k = shifted - SHIFT
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = _polynomial(EXP, r)
    scale = ((_bits(shifted) + U64(1023)) << U64(52)).view(F64).reshape(x.shape)
    return (1 + (r + r * r * p)) * scale


def _log(x: np.ndarray) -> np.ndarray:
    """Of the magnitude."""
    bits = _bits(x) & _SIZE
    above = bits - U64(0x3FE6A09E667F3BCD) + U64(1024 << 52)
    k = (U64(0x4330000000000000) | above >> U64(52)).view(F64) - (2.0**52 + 1024)
    m = (bits - ((above & U64(0xFFF0000000000000)) - U64(1024 << 52))).view(F64)
    f = m - 1
    half = 0.5 * (f * f)
    s = f / (2 + f)
    z = s * s
    p = _polynomial(LOG, z)
    found = k * LN2_HIGH - ((half - (s * (half + z * p) + k * LN2_LOW)) - f)
    found = np.where(bits >= _INFINITY, bits.view(F64), found)
    return np.where(bits == 0, -np.inf, found).reshape(x.shape)


def _power_of_two(shifted: np.ndarray) -> np.ndarray:
    bits = (np.atleast_1d(shifted).view(U32) + U32(127)) << U32(23)
    return bits.view(F32).reshape(shifted.shape)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.atleast_1d(x).view(U64)


def _polynomial(factors: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    p = np.full_like(x, factors[0])
    for factor in factors[1:]:
        p = p * x + x.dtype.type(factor)
    return p
