"""The numerical rank of what a mix leaves of some layers: low where an adapter is baked in, full after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..adapters.arrays import array

if TYPE_CHECKING:
    from .parentage import Work

_LAYERS = 8
_LARGEST = 1 << 22  # elements of a layer whose factors are looked for
_SMALLEST = 16  # rows and columns that a layer must have
_LOW = 0.5
"""A rank up to this share of full rank, with almost all of the energy, counts as low."""
_ENERGY = 0.9
_NOISE = 2.5
"""Times the energy of rounding that the rest may have: of two roundings it is twice that."""


def residual_ranks(work: Work, by_block: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Of the layers in which most is left beside rounding, after a mix with the block's ratios by candidate's number:
    ``name``, ``rank`` (singular values above twice the largest that rounding noise of that size makes, σ·(√m + √n):
    Marchenko & Pastur, 1967; twice, since a merge into which an adapter was baked is rounded two times), ``full`` (the
    smaller side), ``energy`` (their share of the residual's), ``strength`` (the residual's norm beside the layer's),
    ``low``."""
    import numpy as np

    from .mixture import noise

    left = []
    for each in work.tensors:
        info = work.stored(0, each.name)
        ratios = by_block.get(work.block_of(each.name))
        rows = info.shape[0] if info.shape else 1
        columns = each.elements // max(1, rows)
        if ratios is None or min(rows, columns) < _SMALLEST or each.elements > _LARGEST or info.parts:
            continue
        if not all(each.has[i] for i, ratio in ratios.items() if ratio):
            continue
        r = np.array([ratios.get(i, 0.0) for i in range(work.count)])
        energy = float(r @ each.products @ r)
        rounding = noise(each.square, each.elements, each.dtypes)
        if energy > 4 * rounding:
            left.append((energy / max(rounding, 1e-300), each, ratios, rounding))
    left.sort(key=lambda row: (-row[0], row[1].name))
    found = []
    for _, each, ratios, rounding in left[:_LAYERS]:
        infos = [(i, work.stored(i + 1, each.name)) for i, ratio in ratios.items() if ratio]
        if any(info.parts for _, info in infos):
            continue
        rest = array(work.opened[0], work.stored(0, each.name)).astype(np.float64)
        shape = (rest.shape[0], -1)
        rest = rest.reshape(shape)
        norm = float(np.linalg.norm(rest))
        for i, info in infos:
            rest = rest - ratios[i] * array(work.opened[i + 1], info).astype(np.float64).reshape(shape)
        # Singular values by the smaller product with itself, a tenth of the work: exact to 1e-8 of the largest.
        square = rest @ rest.T if rest.shape[0] <= rest.shape[1] else rest.T @ rest
        values = np.sqrt(np.linalg.eigvalsh(square)[::-1].clip(0))
        edge = 2 * (rounding / each.elements) ** 0.5 * (rest.shape[0] ** 0.5 + rest.shape[1] ** 0.5)
        rank, energy = int((values > edge).sum()), float((values**2).sum())
        share = float((values[:rank] ** 2).sum()) / energy if energy else 0.0
        full = min(rest.shape)
        outside = (1 - rank / rest.shape[0]) * (1 - rank / rest.shape[1])  # the share of noise that is no part of it
        noise_alone = (1 - share) * energy <= _NOISE * rounding * outside
        low = 0 < rank <= _LOW * full and share >= _ENERGY and noise_alone
        found.append(
            {
                "name": each.name,
                "rank": rank,
                "full": full,
                "energy": share,
                "strength": energy**0.5 / norm if norm else 0.0,
                "low": low,
            }
        )
    return found
