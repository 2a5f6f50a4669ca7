"""The numerical rank of what a mix leaves of some layers, or of what two files differ by: low where an adapter is
baked in, full after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..adapters.arrays import array

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TensorInfo
    from .gram import Gram
    from .parentage import Work

Array = Any

_LAYERS = 8
_LARGEST = 1 << 22  # elements of a layer whose factors are looked for
_LAYERS_OF_LINK, _LARGEST_OF_LINK = 3, 1 << 20  # of the differences of two files: a map has many pairs
_SMALLEST = 16  # rows and columns that a layer must have
_LOW = 0.5
"""A rank up to this share of full rank, with almost all of the energy, counts as low."""
_ENERGY = 0.9
_NOISE = 2.5
"""Times the energy of rounding that the rest may have: of two roundings it is twice that."""


class LayerRank(NamedTuple):
    """Of a layer's residual: ``rank`` (singular values above twice the largest that rounding noise of that size makes,
    σ·(√m + √n): Marchenko & Pastur, 1967; twice, since a merge into which an adapter was baked is rounded two times),
    ``full`` (the smaller side), ``energy`` (the share of it that these have), its ``norm``, and whether it is ``low``:
    nothing but rounding is left besides."""

    rank: int
    full: int
    energy: float
    norm: float
    low: bool


def rank_of(rest: Array, rounding: float) -> LayerRank:
    """Of a residual [m, n] in float64, in which rounding has this energy."""
    import numpy as np

    # Singular values by the smaller product with itself, a tenth of the work: exact to 1e-8 of the largest.
    square = rest @ rest.T if rest.shape[0] <= rest.shape[1] else rest.T @ rest
    values = np.sqrt(np.linalg.eigvalsh(square)[::-1].clip(0))
    edge = 2 * (rounding / rest.size) ** 0.5 * (rest.shape[0] ** 0.5 + rest.shape[1] ** 0.5)
    rank, energy, full = int((values > edge).sum()), float((values**2).sum()), min(rest.shape)
    share = float((values[:rank] ** 2).sum()) / energy if energy else 0.0
    outside = (1 - rank / rest.shape[0]) * (1 - rank / rest.shape[1])  # the share of noise that is no part of it
    noise_alone = (1 - share) * energy <= _NOISE * rounding * outside
    return LayerRank(rank, full, share, energy**0.5, 0 < rank <= _LOW * full and share >= _ENERGY and noise_alone)


def _has_rank(info: TensorInfo, largest: int) -> bool:
    """Whether it is a matrix, or the kernels of a convolution, of a size whose factors are looked for."""
    rows = info.shape[0] if info.shape else 1
    return min(rows, info.elements // max(1, rows)) >= _SMALLEST and info.elements <= largest and not info.parts


def _matrix(checkpoint: Checkpoint, info: TensorInfo) -> Array:
    import numpy as np

    return array(checkpoint, info).astype(np.float64).reshape(info.shape[0], -1)


def difference_rank(
    files: tuple[Checkpoint, Checkpoint],
    tables: tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]],
    layers: Sequence[tuple[float, Gram]],
) -> LayerRank | None:
    """Of what two files differ by: the largest rank of the layers in which they differ most beside rounding, low if all
    of these are; None where they differ by no more than rounding, or only in what has no rank. ``tables`` are their
    tensors under the same names, ``layers`` the energies of the differences."""
    from .mixture import noise

    left = []
    for energy, each in layers:
        infos = [table.get(each.name) for table in tables]
        if any(info is None or not _has_rank(info, _LARGEST_OF_LINK) for info in infos):
            continue
        rounding = noise(each.square, each.elements, [info.dtype for info in infos if info is not None])
        if energy > 4 * rounding:
            left.append((energy / max(rounding, 1e-300), each.name, rounding))
    left.sort(key=lambda row: (-row[0], row[1]))
    found = []
    for _, name, rounding in left[:_LAYERS_OF_LINK]:
        first, second = (_matrix(file, table[name]) for file, table in zip(files, tables, strict=True))
        if first.shape == second.shape:
            found.append(rank_of(first - second, rounding))
    if not found:
        return None
    return max(found, key=lambda layer: layer.rank)._replace(low=all(layer.low for layer in found))


def residual_ranks(work: Work, by_block: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Of the layers in which most is left beside rounding, after a mix with the block's ratios by candidate's number:
    ``name``, what ``LayerRank`` has, and ``strength`` (the residual's norm beside the layer's)."""
    import numpy as np

    from .mixture import noise

    left = []
    for each in work.tensors:
        info = work.stored(0, each.name)
        ratios = by_block.get(work.block_of(each.name))
        if ratios is None or not _has_rank(info, _LARGEST):
            continue
        if not all(each.has[i] for i, ratio in ratios.items() if ratio):
            continue
        r = np.array([ratios.get(i, 0.0) for i in range(work.count)])
        energy = float(r @ each.products @ r)
        rounding = noise(each.square, each.elements, [each.dtypes[at] for at in (0, *(i + 1 for i in work.rounded))])
        if energy > 4 * rounding:
            left.append((energy / max(rounding, 1e-300), each, ratios, rounding))
    left.sort(key=lambda row: (-row[0], row[1].name))
    found = []
    for _, each, ratios, rounding in left[:_LAYERS]:
        infos = [(i, work.stored(i + 1, each.name)) for i, ratio in ratios.items() if ratio]
        if any(info.parts for _, info in infos):
            continue
        rest = _matrix(work.opened[0], work.stored(0, each.name))
        norm = float(np.linalg.norm(rest))
        for i, info in infos:
            rest = rest - ratios[i] * _matrix(work.opened[i + 1], info).reshape(rest.shape)
        layer = rank_of(rest, rounding)
        found.append(
            {
                "name": each.name,
                "rank": layer.rank,
                "full": layer.full,
                "energy": layer.energy,
                "strength": layer.norm / norm if norm else 0.0,
                "low": layer.low,
            }
        )
    return found
