"""floor, exp, log and pow of float32 in Triton: csrc/functions.h, line by line.

exp and log in float32 operations, pow in float64; each operation is rounded by itself, as elementwise.py says.
"""

from __future__ import annotations

import triton
import triton.language as tl
from sdsurgery.definitions import elementary

EXP_FACTORS, LOG_FACTORS = tl.constexpr(elementary.EXP), tl.constexpr(elementary.LOG)
SHIFT, LOG2_E = tl.constexpr(elementary.SHIFT), tl.constexpr(elementary.LOG2_E)
LN2_HIGH, LN2_LOW = tl.constexpr(elementary.LN2_HIGH), tl.constexpr(elementary.LN2_LOW)
NARROW_EXP = tl.constexpr(elementary.NARROW_EXP)
NARROW_LOG_EVEN = tl.constexpr(elementary.NARROW_LOG_EVEN)
NARROW_LOG_ODD = tl.constexpr(elementary.NARROW_LOG_ODD)
NARROW_SHIFT, NARROW_LOG2_E = tl.constexpr(elementary.NARROW_SHIFT), tl.constexpr(elementary.NARROW_LOG2_E)
NARROW_LN2_HIGH = tl.constexpr(elementary.NARROW_LN2_HIGH)
NARROW_LN2_LOW = tl.constexpr(elementary.NARROW_LN2_LOW)


@triton.jit
def magnitude_bits(x, WIDE: tl.constexpr):
    """Bits without the sign."""
    if WIDE:
        return x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def narrow_floor(x):
    """tl.floor takes subnormals for zeros: those below zero would not become -1."""
    whole = x.to(tl.int32).to(tl.float32)
    below = tl.where(whole > x, whole - 1.0, whole)
    signed = magnitude_bits(below, False) | (x.to(tl.int32, bitcast=True) & -0x80000000)
    return tl.where(magnitude_bits(x, False) < 0x4B000000, signed.to(tl.float32, bitcast=True), x)


@triton.jit
def _power_of_two(shifted):
    return ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _narrow_polynomial(x, FACTORS: tl.constexpr, COUNT: tl.constexpr):
    p = tl.full(x.shape, FACTORS[0], tl.float32)
    for k in tl.static_range(1, COUNT):
        p = p * x + FACTORS[k]
    return p


@triton.jit
def narrow_exp(x):
    x = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
    k = (x * NARROW_LOG2_E + NARROW_SHIFT) - NARROW_SHIFT
    high = x - k * NARROW_LN2_HIGH
    low = k * NARROW_LN2_LOW
    r = high - low
    p = _narrow_polynomial(r, NARROW_EXP, 6)
    part = k * 0.5 + NARROW_SHIFT
    rest = (k - (part - NARROW_SHIFT)) + NARROW_SHIFT
    return (1.0 + (high + (r * r * p - low))) * _power_of_two(part) * _power_of_two(rest)


@triton.jit
def narrow_log(x):
    subnormal = x < 1.1754943508222875e-38
    above = tl.where(subnormal, x * 8388608.0, x).to(tl.int32, bitcast=True) - 0x3F3504F3
    m = ((above & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    k = (above >> 23).to(tl.float32) - tl.where(subnormal, 23.0, 0.0)
    f = m - 1.0
    z = f * f
    even = _narrow_polynomial(z, NARROW_LOG_EVEN, 5)
    odd = _narrow_polynomial(z, NARROW_LOG_ODD, 4)
    part = f * z * (even + f * odd) + k * NARROW_LN2_LOW
    found = k * NARROW_LN2_HIGH - ((0.5 * z - part) - f)
    of_others = tl.where(x == 0.0, float("-inf"), float("nan"))
    return tl.where(x > 0.0, tl.where(x < float("inf"), found, x), of_others)


@triton.jit
def wide_number(x, VALUE: tl.constexpr):
    """A float64 number beside x: a literal by itself would be a float32."""
    return tl.full(x.shape, VALUE, tl.float64)


@triton.jit
def _polynomial(x, FACTORS: tl.constexpr, COUNT: tl.constexpr):
    p = wide_number(x, FACTORS[0])
    for k in tl.static_range(1, COUNT):
        p = p * x + wide_number(x, FACTORS[k])
    return p


@triton.jit
def _exp(x):
    x = tl.where(x < -200, wide_number(x, -200.0), tl.where(x > 200, wide_number(x, 200.0), x))
    shifted = x * wide_number(x, LOG2_E) + wide_number(x, SHIFT)
    k = shifted - wide_number(x, SHIFT)
    r = (x - k * wide_number(x, LN2_HIGH)) - k * wide_number(x, LN2_LOW)
    p = _polynomial(r, EXP_FACTORS, 10)
    scale = ((shifted.to(tl.int64, bitcast=True) + 1023) << 52).to(tl.float64, bitcast=True)
    return (1 + (r + r * r * p)) * scale


@triton.jit
def _log(x):
    bits = magnitude_bits(x, True)
    above = bits - 0x3FE6A09E667F3BCD + 0x4000000000000000
    k = (0x4330000000000000 | (above >> 52)).to(tl.float64, bitcast=True) - wide_number(x, 4503599627371520.0)
    m = (bits - ((above & -0x10000000000000) - 0x4000000000000000)).to(tl.float64, bitcast=True)
    f = m - 1
    half = 0.5 * (f * f)
    s = f / (2 + f)
    z = s * s
    p = _polynomial(z, LOG_FACTORS, 8)
    found = k * wide_number(x, LN2_HIGH) - ((half - (s * (half + z * p) + k * wide_number(x, LN2_LOW))) - f)
    found = tl.where(bits >= 0x7FF0000000000000, bits.to(tl.float64, bitcast=True), found)
    return tl.where(bits == 0, float("-inf"), found)


@triton.jit
def narrow_pow(x, y):
    exponent = y.to(tl.float64)
    power = _exp(exponent * _log(x.to(tl.float64))).to(tl.float32)
    shifted = exponent + wide_number(exponent, SHIFT)
    x_bits = x.to(tl.int32, bitcast=True)
    size = magnitude_bits(x, False)
    y_size = magnitude_bits(y, False)
    large = y_size >= 0x4B800000
    whole = (shifted - wide_number(exponent, SHIFT) == exponent) | large
    odd = whole & (y_size < 0x4B800000) & ((shifted.to(tl.int64, bitcast=True) & 1) != 0)
    found = (power.to(tl.int32, bitcast=True) | tl.where(odd, x_bits & -0x80000000, 0)).to(tl.float32, bitcast=True)
    found = tl.where((x < 0) & (size < 0x7F800000) & (whole == 0), float("nan"), found)
    one = (y_size == 0) | (x == 1) | ((size == 0x3F800000) & (y_size == 0x7F800000))
    return tl.where(one, 1.0, found)
