"""x·y + z with one rounding, by definition, over NumPy arrays and torch tensors: what the processor's ``fma`` gives.

The float32 product is exact in float64. Its sum with z is rounded there to odd (of the two neighbours of an inexact sum
the one with an odd last bit), which keeps what the rounding to float32 needs to know (Boldo and Melquiond, "Emulation
of FMA and correctly rounded sums", 2008). float64 is computed with rational numbers, one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction


def fma(x: Any, y: Any, z: Any) -> Any:
    """x·y + z of arrays of one float type, and numbers, which are rounded to it; the result is of the first array's
    kind."""
    array = next(item for item in (x, y, z) if hasattr(item, "dtype"))
    if isinstance(array, np.ndarray | np.generic):
        return _of_arrays(*(np.asarray(item, array.dtype) for item in (x, y, z)))
    import torch

    parts = [item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else item for item in (x, y, z)]
    return torch.as_tensor(fma(*parts), device=array.device)


def lerp(a: np.ndarray, b: np.ndarray, t: float, fused: bool = False) -> np.ndarray:
    """``functions.lerp`` of arrays: a + t·(b − a) for |t| < ½, else b − (1 − t)·(b − a), t as a float32."""
    t = np.float32(t).astype(a.dtype)
    away = b - a
    if abs(t) < 0.5:
        near, share = a, t
    else:
        near, share = b, t - 1
    found: np.ndarray = fma(away, share, near) if fused else near + share * away
    return found


def _of_arrays(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    x, y, z = np.broadcast_arrays(x, y, z)
    with np.errstate(all="ignore"):
        return _narrow(x, y, z) if x.dtype == np.float32 else _wide(x, y, z)


def _narrow(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
    total = np.asarray(product + addend)
    back = total - product
    error = (product - (total - back)) + (addend - back)  # of the sum, exactly
    even = (total.view(np.int64) & 1) == 0
    off = (error != 0) & even & np.isfinite(total)
    return np.where(off, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total).astype(np.float32)


def _wide(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    from fractions import Fraction

    found = np.where(np.isfinite(x) & np.isfinite(y) & np.isinf(z), z, x * y + z)
    exact = np.isfinite(x) & np.isfinite(y) & np.isfinite(z) & (x != 0) & (y != 0)
    for at in zip(*np.nonzero(exact), strict=True):
        found[at] = _rounded(Fraction(float(x[at])) * Fraction(float(y[at])) + Fraction(float(z[at])))
    return found


def _rounded(value: Fraction) -> float:
    """The nearest float64; Inf past the largest. (An exact 0 is +0: x·y is not 0 then, and z is its opposite.)"""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
