"""Stored elements widened to float32 or float64, and values rounded to a dtype.

NumPy's conversions where it has the dtype, the definition of the format (``small_floats.py``) where it hasn't.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import BY_NAME, COMPUTABLE, F64, NUMPY, DType
from . import small_floats

STORAGE: dict[DType, Any] = {
    dtype: np.dtype(NUMPY.get(dtype.name, f"u{dtype.itemsize}")).type
    for dtype in BY_NAME.values()
    if dtype.native is not None
}
STORAGE[BY_NAME["BOOL"]] = np.uint8
_SMALL = tuple(dtype for dtype in COMPUTABLE if dtype.name not in NUMPY)
"""What NumPy lacks."""


def widen(stored: np.ndarray, dtype: DType, wide: bool) -> np.ndarray:
    """Stored values (in the dtype's storage type) as float32, or float64 when ``wide``. Exact."""
    if dtype in _SMALL:
        stored = small_floats.values(dtype.format)[stored]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return stored.astype(np.float64 if wide else np.float32)


def _fits(magnitude: np.ndarray, dtype: DType) -> np.ndarray:
    """Whether a magnitude rounds to a finite value of the format: it does up to halfway past the largest (the tie
    itself goes to the even neighbour, which is the overflow where the format has an Inf)."""
    largest = dtype.format.largest
    if dtype is F64:
        return magnitude <= largest
    half = 2.0 ** (np.frexp(largest)[1] - 2 - dtype.format.mantissa_bits)
    with np.errstate(invalid="ignore"):
        wide = magnitude.astype(np.float64)
        return wide < largest + half if dtype.format.has_inf else wide <= largest + half


def store(values: np.ndarray, inputs_finite: np.ndarray, dtype: DType, overflow: str) -> tuple[np.ndarray, int]:
    """Round to the stored dtype: (stored values, number of overflows). Policies as in docs/numerics.md."""
    finite_fit = _fits(np.abs(values), dtype) & np.isfinite(values)
    safe = np.where(finite_fit, values, 0)
    out = (small_floats.codes(safe, dtype.format) if dtype in _SMALL else safe).astype(STORAGE[dtype])
    if finite_fit.all():
        return out, 0
    bits = out.view(f"u{out.itemsize}")
    sign_bit = 1 << (8 * out.itemsize - 1)
    sign = np.signbit(values).astype(bits.dtype) * bits.dtype.type(sign_bit)
    nan = np.isnan(values)
    carried = np.isinf(values) & ~inputs_finite
    over = ~finite_fit & ~nan & ~carried
    form = dtype.format
    infinity = bits.dtype.type(form.inf_code) | sign if form.has_inf else np.full_like(bits, form.nan_code)
    saturates = overflow == "saturate" or (overflow in ("default", "error") and dtype.bits == 8)
    largest_bits = bits.dtype.type(form.inf_code - 1)
    bits[...] = np.where(carried, infinity, bits)
    bits[...] = np.where(over, (largest_bits | sign) if saturates else infinity, bits)
    bits[...] = np.where(nan, bits.dtype.type(form.nan_code), bits)
    return out, int(over.sum() + (nan & inputs_finite).sum())
