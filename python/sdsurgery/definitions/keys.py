"""The keys of random numbers, apart from ``draws.py``: a run that draws numbers needs keys, but not NumPy."""

from __future__ import annotations

import hashlib
import struct


def key_word(seed: float, name: str, word: int) -> float:
    """One of the two 32-bit words of the key: of the SHA-256 of the seed (as float64, little-endian) and the name."""
    digest = hashlib.sha256(struct.pack("<d", seed + 0.0) + name.encode("utf-8", "surrogateescape")).digest()
    return float(struct.unpack_from("<I", digest, 4 * word)[0])
