"""Mixes of spectra, over whole NumPy arrays: transforms and filters in float64, the result in the arrays' dtype."""

from __future__ import annotations

import math

import numpy as np

from .fused import lerp
from .memory import needs


@needs(48)
def crossover(a: np.ndarray, b: np.ndarray, alpha: float, tilt: float, fused: float) -> np.ndarray:
    """A + F⁻¹(f·F(B − A)), f of ``crossover_filter``; the weighted sum of a number, and where A and B hardly differ."""
    if alpha == 0 or not a.size:
        return a
    if alpha == 1:
        return b
    if tilt % 4 == 1 or not a.ndim or np.allclose(a, b):
        return lerp(a, b, alpha, bool(fused))
    wide, away = a.astype(np.float64), b.astype(np.float64) - a
    spectrum = np.fft.rfftn(away)
    spectrum *= crossover_filter(spectrum.shape, alpha, tilt)
    found: np.ndarray = wide + np.fft.irfftn(spectrum, s=a.shape, axes=range(a.ndim))
    return found


def crossover_filter(shape: tuple[int, ...], alpha: float, tilt: float) -> np.ndarray:
    """The share of B at each frequency of a half spectrum; ρ from 0 to 1 is the root mean square over the axes of how
    high the frequency is along each. A step at 1 − α, tilted: at tilt 1 it is α everywhere, at 2 the other way round.
    """
    tilt %= 4
    if tilt > 2:
        return 1.0 - _tilted(_radius(shape), 1 - alpha, tilt)
    return _tilted(_radius(shape), alpha, tilt)


def _radius(shape: tuple[int, ...]) -> np.ndarray:
    """In float32, so that a frequency at the edge of a step falls on the side where it does in sd-mecha."""
    total = np.zeros(shape, np.float32)
    for axis, n in enumerate(shape):
        if axis == len(shape) - 1 or n == 1:
            heights = _even_steps(0, 1, n)
        else:  # negative frequencies are in the second half
            up, half = _even_steps(0, (n - 1) // 2, n - n // 2), n // 2
            heights = np.concatenate([up, _even_steps(half, 1, half)]) / np.float32(half)
        if len(shape) == 1:
            return heights
        total += (heights * heights).reshape([-1 if other == axis else 1 for other in range(len(shape))])
    found: np.ndarray = np.sqrt(total / np.float32(len(shape)))
    return found


def _even_steps(first: float, last: float, count: int) -> np.ndarray:
    """``torch.linspace`` of float32: steps up from the first in the lower half, down from the last in the upper."""
    at = np.arange(count, dtype=np.float32)
    step = np.float32(last - first) / np.float32(max(count - 1, 1))
    found: np.ndarray = np.where(at < count // 2, np.float32(first) + step * at, np.float32(last) - step * at[::-1])
    return found if count > 1 else np.full(count, first, np.float32)


def _tilted(radius: np.ndarray, alpha: float, tilt: float) -> np.ndarray:
    if tilt in (0, 2):
        cut = np.float32(1 - alpha)
        return (radius > cut if tilt == 0 else radius < cut).astype(np.float64)
    slope = 1 / math.tan(math.pi * tilt / 2)
    if tilt <= 1 or 2 < tilt <= 3:
        return np.clip(radius * slope + alpha * slope + alpha - slope, 0, 1)
    return np.clip(radius * slope - alpha * slope + alpha, 0, 1)


@needs(44)
def distribution_crossover(a: np.ndarray, b: np.ndarray, c: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """A and B in the order of C's values: low frequencies of A's sequence up to a share α, then B's, over a width β."""
    if a.ndim == 0 or not a.size:
        return a.dtype.type(alpha) * a + a.dtype.type(1 - alpha) * b
    order = np.argsort(c.reshape(-1), kind="stable")
    first, away = a.reshape(-1)[order].astype(np.float64), (b.astype(np.float64) - a).reshape(-1)[order]
    spectrum = np.fft.rfft(away)
    heights = np.arange(spectrum.size) / spectrum.size
    spectrum *= np.clip((heights - alpha) / beta + 0.5, 0, 1) if beta > 1e-10 else heights >= alpha
    del away
    first += np.fft.irfft(spectrum, a.size)
    del spectrum, heights
    found = np.empty(a.size)
    found[order] = first
    return found.reshape(a.shape)


@needs(32)
def frequency_band(a: np.ndarray, b: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Of kernels the transforms mixed by α, but for what lies within ``cut`` of row 1; others are a weighted sum."""
    if a.ndim != 4 or min(a.shape[-2:]) < 3:
        return a.dtype.type(1 - alpha) * a + a.dtype.type(alpha) * b
    high, wide = a.shape[-2:]
    spectrum = np.fft.rfft2(b.astype(np.float64) - a)
    cut = max(int(min(high, wide) * beta), 1)
    rows, columns = np.ogrid[:high, : spectrum.shape[-1]]
    kept = (abs(rows - high // 2) < cut) & (abs(columns - spectrum.shape[-1] // 2) < cut + 1)
    spectrum[..., kept] = 0
    found: np.ndarray = a + alpha * np.fft.irfft2(spectrum, s=(high, wide))
    return found


@needs(lambda shape: (64 if len(shape) == 4 else 34) * math.prod(shape))
def feature_weighted(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """A + α·δ·factor, the factor of how A, B and the (smoothed) difference spread; matched half way to A."""
    least = 1e-6
    wide, delta = a.astype(np.float64), b.astype(np.float64) - a
    if a.ndim == 4 and min(a.shape[-2:]) >= 3:
        delta = _box(0.5 * delta + 0.5 * _box(delta))
    of_a, of_b, of_delta = (_deviation(each) for each in (wide, b.astype(np.float64), delta))
    if not min(of_a, of_b, of_delta) >= least:
        return a.dtype.type(1 - alpha) * a + a.dtype.type(alpha) * b
    ratio = np.clip(of_b / (of_a + least), 0.5, 2)
    power = 1 - 0.5 * (ratio - 1)
    factor = np.clip((of_a / (of_delta + least)) ** power, 0.5, 1.5)
    factor *= np.clip(np.sqrt(of_a / (of_b + least)), 0.8, 1.1)
    mixed = wide + alpha * factor * delta
    of_mixed, mean = _deviation(mixed), mixed.mean()
    if not of_mixed >= least:
        return mixed
    found: np.ndarray = mixed - mean
    found /= of_mixed  # in place: NumPy reuses the memory of a term by itself only on some systems
    found *= (of_a + of_mixed) / 2
    found += (wide.mean() + mean) / 2
    return found


def _deviation(x: np.ndarray) -> float:
    """Of a sample."""
    return float(x.std(ddof=1)) if x.size > 1 else math.nan


def _box(x: np.ndarray) -> np.ndarray:
    """The mean of 3 × 3 in each kernel, of zeros beyond its edges."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    high, wide = x.shape[-2:]
    total = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            total += padded[..., i : i + high, j : j + wide]
    return total / 9
