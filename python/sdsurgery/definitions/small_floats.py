"""Floats of 8 and 16 bits by their definition: the values of all codes, and the code of any value.

NumPy has no BF16 and no fp8 type; ``csrc/dtypes.h`` is the same natively.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..dtypes import FloatFormat


@cache
def values(form: FloatFormat) -> np.ndarray:
    """Values of all codes in their order, the sign's bit highest: float64 [2^bits]."""
    exponent_bits, mantissa_bits, has_inf = form
    codes = np.arange(1 << (exponent_bits + mantissa_bits))
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    whole = np.where(exponent == 0, mantissa, mantissa + (1 << mantissa_bits)).astype(np.float64)
    found = np.ldexp(whole, np.maximum(exponent, 1) - form.bias - mantissa_bits)
    if has_inf:
        top = exponent == (1 << exponent_bits) - 1
        found[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    else:
        found[-1] = np.nan
    return np.concatenate([found, -found])


def codes(numbers: np.ndarray, form: FloatFormat) -> np.ndarray:
    """int64 codes of finite values within the format's range, rounded to nearest, ties to even.

    The quantum at each magnitude is a power of two, so value / quantum is exact in float64 and rint rounds it.
    """
    magnitude = np.abs(numbers.astype(np.float64))
    _, exponent = np.frexp(magnitude)
    # Of the leading bit; fixed below the normals, and so for zero (of which frexp says 0).
    least = form.least_exponent
    exponent = np.where(magnitude == 0, least, np.maximum(exponent - 1, least))
    steps = np.rint(np.ldexp(magnitude, form.mantissa_bits - exponent)).astype(np.int64)
    found = steps + ((exponent - least).astype(np.int64) << form.mantissa_bits)
    return found | np.signbit(numbers).astype(np.int64) << (form.exponent_bits + form.mantissa_bits)
