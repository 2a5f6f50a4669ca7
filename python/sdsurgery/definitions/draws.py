"""Random numbers of merge methods, by definition: ``csrc/generated.h`` over NumPy.

Philox-4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011) of a counter (block,
draw), keyed by a seed and a tensor's name (``keys.py``). An element's number depends on nothing else, so it is the same
for any thread, tile, backend and order of the tensors.
"""

from __future__ import annotations

import numpy as np

from .elementary import F64, U32, U64, normals_of


def uniform(key: tuple[float, float], draw: float, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), multiples of 2^-24, for ``count`` elements from ``first`` on: float64."""
    index = np.arange(first, first + count, dtype=U64)
    words = _philox(index >> U64(2), draw, key)
    chosen = np.choose((index & U64(3)).astype(np.intp), words)
    return (chosen >> U32(8)).astype(F64) * 2.0**-24


def normal(key: tuple[float, float], draw: float, first: int, count: int) -> np.ndarray:
    """Numbers of mean 0 and deviation 1, for ``count`` elements from ``first`` on: float64."""
    index = np.arange(first, first + count, dtype=U64)
    words = _philox(index >> U64(2), draw, key)
    later = (index & U64(2)) != 0
    even, odd = normals_of(np.where(later, words[2], words[0]), np.where(later, words[3], words[1]))
    return np.where((index & U64(1)) != 0, odd, even)


def _philox(block: np.ndarray, draw: float, given: tuple[float, float]) -> list[np.ndarray]:
    words = [block.astype(U32), (block >> U64(32)).astype(U32), np.full(block.shape, int(draw), U32)]
    words.append(np.zeros(block.shape, U32))
    key = [int(word) for word in given]
    for _ in range(10):
        products = words[0].astype(U64) * U64(0xD2511F53), words[2].astype(U64) * U64(0xCD9E8D57)
        (p_high, p_low), (q_high, q_low) = (((p >> U64(32)).astype(U32), p.astype(U32)) for p in products)
        words = [q_high ^ words[1] ^ U32(key[0]), q_low, p_high ^ words[3] ^ U32(key[1]), p_low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words
