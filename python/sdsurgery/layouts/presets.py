"""The well-known merge-block presets as formulas over the 25 U-Net blocks IN00…IN11, M00, OUT00…OUT11.

Origin: ``csv/preset.tsv`` of bbc-mc/sdweb-merge-block-weighted-gui, from which the other tools took them. There the
values are printed decimals; here each is the formula behind them, x = i/24 for i = 0…24, evaluated in float64 (they
agree to all printed digits). A value is the weight of model B in that block. The base value is not part of a preset.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

COUNT = 25


def _curve(function: Callable[[float], float]) -> tuple[float, ...]:
    return tuple(function(i / (COUNT - 1)) for i in range(COUNT))


def _runs(*runs: tuple[float, int]) -> tuple[float, ...]:
    """(value, how many blocks) one after the other."""
    values = tuple(float(value) for value, count in runs for _ in range(count))
    assert len(values) == COUNT
    return values


def _mirrored(*runs: tuple[float, int]) -> tuple[float, ...]:
    """Runs for the first 13 blocks; the rest mirrors them around M00."""
    half = tuple(float(value) for value, count in runs for _ in range(count))
    assert len(half) == COUNT // 2 + 1
    return half + half[-2::-1]


def _fold(x: float) -> float:
    """Triangle wave: x on 0…1, back down on 1…2, and so on."""
    x %= 2
    return 2 - x if x > 1 else x


def _smoothstep(x: float) -> float:
    return x * x * (3 - 2 * x)


def _cosine(x: float) -> float:
    return (1 + cos(pi * x)) / 2


def _hermite(x: float, start: float) -> float:
    """Cubic Hermite curve from (0, start) to (1, 1) with slope 25/6 at both ends."""
    slope = 25 / 6
    rise = x * (1 - x) * (1 - 2 * x)  # the two tangent terms, for equal slopes
    return start + (1 - start) * _smoothstep(x) + slope * rise


def _true_hermite(x: float) -> float:
    """Starts at 1/24, though the published list has 0 for the first block."""
    return _hermite(x, 1 / 24) if x else 0.0


def _reversed(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1 - value for value in values)


def _build() -> dict[str, tuple[float, ...]]:
    true_hermite = _curve(_true_hermite)
    fake_hermite = _curve(lambda x: _hermite(x, 0))
    found = {
        "GRAD_V": _curve(lambda x: abs(1 - 2 * x)),
        "GRAD_A": _curve(lambda x: _fold(2 * x)),
        "FLAT_25": _runs((0.25, 25)),
        "FLAT_75": _runs((0.75, 25)),
        "WRAP08": _mirrored((1, 4), (0, 9)),
        "WRAP12": _mirrored((1, 6), (0, 7)),
        "WRAP14": _mirrored((1, 7), (0, 6)),
        "WRAP16": _mirrored((1, 8), (0, 5)),
        "MID12_50": _runs((0, 5), (0.5, 14), (0, 6)),
        "OUT07": _runs((0, 18), (1, 7)),
        "OUT12": _runs((0, 13), (1, 12)),
        "OUT12_5": _runs((0, 12), (0.5, 1), (1, 12)),
        "RING08_SOFT": _mirrored((0, 5), (0.5, 1), (1, 3), (0.5, 1), (0, 3)),
        "RING08_5": _mirrored((0, 6), (1, 4), (0, 3)),
        "RING10_5": _mirrored((0, 5), (1, 5), (0, 3)),
        "RING10_3": _mirrored((0, 6), (1, 5), (0, 2)),
        "SMOOTHSTEP": _curve(_smoothstep),
        "REVERSE-SMOOTHSTEP": _reversed(_curve(_smoothstep)),
        "COSINE": _curve(_cosine),
        "REVERSE_COSINE": _reversed(_curve(_cosine)),
        "TRUE_CUBIC_HERMITE": true_hermite,
        "TRUE_REVERSE_CUBIC_HERMITE": _reversed(true_hermite),
        "FAKE_CUBIC_HERMITE": fake_hermite,
        "FAKE_REVERSE_CUBIC_HERMITE": _reversed(fake_hermite),
        "ALL_A": _runs((0, 25)),
        "ALL_B": _runs((1, 25)),
    }
    for times in (2, 3, 4):
        tall = _curve(lambda x, n=times: _fold(n * _smoothstep(x)))  # type: ignore[misc]
        often = _curve(lambda x, n=times: _smoothstep(_fold(n * x)))  # type: ignore[misc]
        found[f"SMOOTHSTEP*{times}"], found[f"R_SMOOTHSTEP*{times}"] = tall, _reversed(tall)
        found[f"SMOOTHSTEP/{times}"], found[f"R_SMOOTHSTEP/{times}"] = often, _reversed(often)
    return found


PRESETS = _build()
"""Preset name to its 25 values."""

ALIASES = {
    "NORMAL-SIGMOID": "SMOOTHSTEP",
    "REVERSE-SIGMOID": "REVERSE-SMOOTHSTEP",
    "REVERSE_SMOOTHSTEP": "REVERSE-SMOOTHSTEP",
    "R_SMOOTHSTEP": "REVERSE-SMOOTHSTEP",
    "R_COSINE": "REVERSE_COSINE",
} | {f"{stem}{n}": f"{stem}*{n}" for stem in ("SMOOTHSTEP", "R_SMOOTHSTEP") for n in (2, 3, 4)}
"""Other spellings in use (older releases of the extension, and tools whose names can't hold ``*``)."""


def fitted(half: int) -> dict[str, tuple[float, ...]]:
    """Every preset, under all its names, for a U-Net with ``half`` input blocks.

    The last inputs and the last outputs of a smaller U-Net are left out, as supermerger does it.
    """
    middle = COUNT // 2
    own = {
        name: (*values[:half], values[middle], *values[middle + 1 : middle + 1 + half])
        for name, values in PRESETS.items()
    }
    return own | {alias: own[name] for alias, name in ALIASES.items()}


def preset(name: str) -> tuple[float, ...] | None:
    """The 25 values of a preset by name, in any letter case; None for an unknown name."""
    word = name.upper()
    return PRESETS.get(ALIASES.get(word, word))
