"""Orders of whole NumPy arrays: what needs every element's rank."""

from __future__ import annotations

import numpy as np

from .memory import needs


@needs(34)
def top_k_of(a: np.ndarray, b: np.ndarray, *ends: float) -> np.ndarray:
    """A's r-th smallest value where B has its r-th (of equal ones the first is first), where the value's magnitude lies
    between two order statistics; ``ends`` are these as shares of the elements, whether it lies outside them instead,
    and whether the lower one counts."""
    first, last, wraps, closed = ends
    flat, count = a.reshape(-1), a.size
    ordered = np.sort(flat)
    sizes = np.sort(np.abs(flat))
    low, high = (sizes[k - 1] if k > 0 else -1 for k in (round(first * count), round(last * count)))
    size = np.abs(ordered)
    moved = (size >= low if closed else size > low) & (size <= high)
    if wraps:
        moved = ~moved
    found = flat.copy()
    places = np.argsort(b.reshape(-1), kind="stable")
    found[places[moved]] = ordered[moved]
    return found.reshape(a.shape)
