"""Random numbers of merge methods, by definition: ``csrc/generated.h`` and ``csrc/normal.inl.h`` over NumPy.

Philox-4x32 of seven rounds (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011) of a
counter (block, draw, part), keyed by a seed and a tensor's name (``keys.py``). An element's number depends on nothing
else, so it is the same for any thread, tile, backend and order of the tensors.
"""

from __future__ import annotations

import numpy as np

F32, F64, U32, U64 = np.float32, np.float64, np.uint32, np.uint64


def _numbers(*texts: str) -> np.ndarray:
    return np.array([float.fromhex(text) for text in texts], F32)


NORMAL = (
    _numbers(
        "0x1.897d1ep-9",
        "0x1.913b26p-9",
        "0x1.997024p-9",
        "0x1.a22844p-9",
        "0x1.ab7182p-9",
        "0x1.b55bfcp-9",
        "0x1.bffa62p-9",
        "0x1.cb6284p-9",
        "0x1.d7aep-9",
        "0x1.e4fb24p-9",
        "0x1.f36e0ep-9",
        "0x1.019912p-8",
        "0x1.0a3e04p-8",
        "0x1.13c614p-8",
        "0x1.1e5916p-8",
        "0x1.2a28d8p-8",
        "0x1.377452p-8",
        "0x1.468c08p-8",
        "0x1.57d806p-8",
        "0x1.6bdfe8p-8",
        "0x1.835506p-8",
        "0x1.9f1da6p-8",
        "0x1.c04cacp-8",
        "0x1.9e175cp-8",
    ),
    _numbers(
        "-0x1.f7bc0ep-9",
        "-0x1.00beb2p-8",
        "-0x1.05e912p-8",
        "-0x1.0b648ep-8",
        "-0x1.1139a6p-8",
        "-0x1.17721ap-8",
        "-0x1.1e1938p-8",
        "-0x1.253c1ep-8",
        "-0x1.2cea32p-8",
        "-0x1.35358ep-8",
        "-0x1.3e33bap-8",
        "-0x1.47fe76p-8",
        "-0x1.52b4d6p-8",
        "-0x1.5e7cb6p-8",
        "-0x1.6b84a8p-8",
        "-0x1.7a068ep-8",
        "-0x1.8a4b3p-8",
        "-0x1.9caf18p-8",
        "-0x1.b1a94ep-8",
        "-0x1.c9d49p-8",
        "-0x1.e5fb9ep-8",
        "-0x1.039308p-7",
        "-0x1.16faaap-7",
        "-0x1.3a876p-8",
    ),
    _numbers(
        "0x1.b6cb0ap-8",
        "0x1.bf8db4p-8",
        "0x1.c8d91p-8",
        "0x1.d2bb5cp-8",
        "0x1.dd44f4p-8",
        "0x1.e888c4p-8",
        "0x1.f49cccp-8",
        "0x1.00cd64p-7",
        "0x1.07d08ap-7",
        "0x1.0f69d6p-7",
        "0x1.17aed2p-7",
        "0x1.20b97cp-7",
        "0x1.2aa97ap-7",
        "0x1.35a5bap-7",
        "0x1.41dea2p-7",
        "0x1.4f9102p-7",
        "0x1.5f0a2cp-7",
        "0x1.70ad7p-7",
        "0x1.84fb98p-7",
        "0x1.9c9c76p-7",
        "0x1.b86926p-7",
        "0x1.d9609ap-7",
        "0x1.fe0872p-7",
        "0x1.e858c8p-8",
    ),
    _numbers(
        "0x1.74227ap-8",
        "0x1.7c1a5ap-8",
        "0x1.84977cp-8",
        "0x1.8da8bap-8",
        "0x1.975f54p-8",
        "0x1.a1cf6cp-8",
        "0x1.ad10bp-8",
        "0x1.b93f2p-8",
        "0x1.c67c24p-8",
        "0x1.d4efeap-8",
        "0x1.e4cb34p-8",
        "0x1.f649bcp-8",
        "0x1.04dab8p-7",
        "0x1.0fb568p-7",
        "0x1.1bef78p-7",
        "0x1.29d3c8p-7",
        "0x1.39c32ep-7",
        "0x1.4c3bdep-7",
        "0x1.61e31ap-7",
        "0x1.7b92b2p-7",
        "0x1.9a7f1p-7",
        "0x1.c17482p-7",
        "0x1.033acep-6",
        "0x1.3b8cbcp-5",
    ),
    _numbers(
        "0x1.6edd28p-6",
        "0x1.76cd7ep-6",
        "0x1.7f4462p-6",
        "0x1.885116p-6",
        "0x1.920558p-6",
        "0x1.9c75f2p-6",
        "0x1.a7bb66p-6",
        "0x1.b3f2d2p-6",
        "0x1.c13f12p-6",
        "0x1.cfca42p-6",
        "0x1.dfc7bcp-6",
        "0x1.f176bcp-6",
        "0x1.0292fcp-5",
        "0x1.0d9c38p-5",
        "0x1.1a1602p-5",
        "0x1.285106p-5",
        "0x1.38b4fcp-5",
        "0x1.4bc5acp-5",
        "0x1.622162p-5",
        "0x1.7c5e96p-5",
        "0x1.9a520ap-5",
        "0x1.b7450ep-5",
        "0x1.b0c9a4p-5",
        "0x1.7634bp-12",
    ),
    _numbers(
        "0x1.763008p-4",
        "0x1.7ee18cp-4",
        "0x1.88326ep-4",
        "0x1.92366ep-4",
        "0x1.9d04d6p-4",
        "0x1.a8b96ap-4",
        "0x1.b5757cp-4",
        "0x1.c3618p-4",
        "0x1.d2af0ep-4",
        "0x1.e39bcp-4",
        "0x1.f67528p-4",
        "0x1.05cf44p-3",
        "0x1.11cc96p-3",
        "0x1.1f8892p-3",
        "0x1.2f788cp-3",
        "0x1.42414ap-3",
        "0x1.58d296p-3",
        "0x1.7499p-3",
        "0x1.97de6ap-3",
        "0x1.c69754p-3",
        "0x1.04285cp-2",
        "0x1.36dbeap-2",
        "0x1.92c0fcp-2",
        "0x1.40d738p-1",
    ),
    _numbers(
        "0x1.52dc7p2",
        "0x1.4aa938p2",
        "0x1.424418p2",
        "0x1.39a966p2",
        "0x1.30d504p2",
        "0x1.27c24p2",
        "0x1.1e6bc8p2",
        "0x1.14cb7ap2",
        "0x1.0ada3ap2",
        "0x1.008fbcp2",
        "0x1.ebc464p1",
        "0x1.d58bd2p1",
        "0x1.be597p1",
        "0x1.a60a7p1",
        "0x1.8c7352p1",
        "0x1.715c7ep1",
        "0x1.547d1ap1",
        "0x1.357296p1",
        "0x1.13b22ep1",
        "0x1.dcdc06p0",
        "0x1.88bc26p0",
        "0x1.267d54p0",
        "0x1.5956c8p-1",
        "0",
    ),
)
"""The factors of the 24 polynomials of ``normal``, from d⁶ down to 1; of each the octaves from the lowest on."""


def uniform(key: tuple[float, float], draw: float, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), multiples of 2^-24, for ``count`` elements from ``first`` on: float64."""
    return _drawn(key, draw, first, count) * 2.0**-24


def normal(key: tuple[float, float], draw: float, first: int, count: int) -> np.ndarray:
    """Numbers of mean 0 and deviation 1, for ``count`` elements from ``first`` on: float32, widened to float64."""
    return normal_of(_drawn(key, draw, first, count)).astype(F64)


def normal_of(n: np.ndarray) -> np.ndarray:
    """Where the normal distribution function is (n + ½)/2^24, but for an error below 2^-20: float32."""
    from_middle = n.astype(F32) - F32(2**23 - 0.5)
    t = F32(2**23) - np.abs(from_middle)  # the distance to the nearer end, times 2^24: all of it is exact
    bits = t.view(U32)
    octave = (bits >> U32(23)) - U32(126)
    d = F32(2) - ((bits & U32(0x7FFFFF)) | U32(0x3F800000)).view(F32)
    square = d * d
    f6, f5, f4, f3, f2, f1, f0 = (factors[octave] for factors in NORMAL)
    lower = (f3 * d + f2) * square + (f1 * d + f0)
    return np.copysign((f6 * square + (f5 * d + f4)) * (square * square) + lower, from_middle)


def _drawn(key: tuple[float, float], draw: float, first: int, count: int) -> np.ndarray:
    """24 bits for each element: a byte of a block of part 0, and a half of a word of a block of part 1."""
    index = np.arange(first, first + count, dtype=U64)
    byte = _piece(_philox(index >> U64(4), draw, 0, key), index & U64(15), 8)
    half = _piece(_philox(index >> U64(3), draw, 1, key), index & U64(7), 16)
    return byte << U32(16) | half


def _piece(words: list[np.ndarray], place: np.ndarray, size: int) -> np.ndarray:
    """Of the words of each block so many bits, from the lowest of the first word on."""
    bit = place * U64(size)
    word = np.choose((bit >> U64(5)).astype(np.intp), words)
    return word >> (bit & U64(31)).astype(U32) & U32(2**size - 1)


def _philox(block: np.ndarray, draw: float, part: int, given: tuple[float, float]) -> list[np.ndarray]:
    words = [block.astype(U32), (block >> U64(32)).astype(U32)]
    words += [np.full(block.shape, int(word), U32) for word in (draw, part)]
    key = [int(word) for word in given]
    for _ in range(7):
        products = words[0].astype(U64) * U64(0xD2511F53), words[2].astype(U64) * U64(0xCD9E8D57)
        (p_high, p_low), (q_high, q_low) = (((p >> U64(32)).astype(U32), p.astype(U32)) for p in products)
        words = [q_high ^ words[1] ^ U32(key[0]), q_low, p_high ^ words[3] ^ U32(key[1]), p_low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words
