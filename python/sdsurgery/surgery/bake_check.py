"""bake --check: what of the adapters is in the output, beside what a UI computes each time that it loads them.

A UI adds the effects to float32 copies of the weights and rounds once, as bake does (ComfyUI; others round more often).
So a right output is at most half a unit in the last place from the unrounded value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..adapters.apply import Change
from ..adapters.arrays import Array, values
from ..adapters.read import Adapter
from ..checkpoint import Checkpoint, TensorInfo, open_checkpoint
from ..dtypes import DType
from ..encodings import decode
from ..errors import number_of
from ..outline import Region, operand


class Checked(NamedTuple):
    """``ulps``: the largest difference of the output from the unrounded value, in units in the last place of the
    output's dtype there. ``error``: of the change that is in the output, ‖(W' − W) − Δ‖/‖Δ‖: what rounding took of it.
    """

    ulps: float
    error: float


def check(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], changes: Mapping[str, Sequence[Change]],
    out: str | os.PathLike[str],
) -> dict[str, Checked]:  # fmt: skip
    """Every changed tensor of the output, computed again one by one; ``adapters`` are inputs 1, 2, … of the changes."""
    found = {}
    with open_checkpoint(out) as written:
        decode(written)
        for name, own in changes.items():
            info = written.tensors[name]
            before = _all(checkpoint, checkpoint.tensors[name])
            exact = _changed(before, own, adapters)
            dtype, scale = _stored(written, info)
            found[name] = _compared(_all(written, info), exact, before, dtype, scale)
    return found


def _all(checkpoint: Checkpoint, info: TensorInfo) -> Array:
    return values(checkpoint, operand(0, info), info.elements).reshape(info.shape)


def _stored(written: Checkpoint, info: TensorInfo) -> tuple[DType, float]:
    """The dtype that the tensor lies in, and what its codes are multiplied by (scaled fp8, one number a tensor)."""
    if info.encoded is None or info.encoded.encoding is None:
        return info.dtype, 1.0
    scales = info.encoded.encoding.scales
    (scale,) = values(written, Region(0, scales.dtype, scales.offset, file=scales.source), 1)
    return info.encoded.stored[0].dtype, float(scale)


def _changed(weight: Array, changes: Sequence[Change], adapters: Sequence[Adapter]) -> Array:
    import numpy as np

    from ..definitions.effects import changed

    flat = weight.astype(np.float32).reshape(len(weight) if weight.ndim else 1, -1)
    for change in changes:
        source = adapters[change.factors[0][0].source - 1].checkpoint
        parts = [values(source, *factor) for factor in change.factors]
        factors = {part: parts[at].reshape(shape).astype(np.float32) for part, at, shape in change.module.factors}
        rows = slice(change.first, change.first + change.count)
        flat[rows] = changed(change.module, factors, flat[rows])
    return flat.reshape(weight.shape)


def _compared(found: Array, exact: Array, before: Array, dtype: DType, scale: float) -> Checked:
    import numpy as np

    finite = np.isfinite(found) & np.isfinite(exact)  # the bake has warned of the others
    found, exact, before = (each[finite].astype(np.float64) / scale for each in (found, exact, before))
    bits, least = dtype.format.mantissa_bits, dtype.format.least_exponent
    _, exponents = np.frexp(np.abs(exact))
    unit = np.exp2(np.maximum(exponents - 1, least).astype(np.float64) - bits)
    change = exact - before
    size = float(np.sqrt(np.sum(change**2)))
    error = float(np.sqrt(np.sum((found - exact) ** 2)))
    return Checked(float((np.abs(found - exact) / unit).max(initial=0)), error / size if size else 0.0)


def line(found: Mapping[str, Checked]) -> str:
    """The worst of all, for the report."""
    farthest = max(found, key=lambda name: found[name].ulps)
    weakest = max(found, key=lambda name: found[name].error)
    worst, rounding = found[farthest].ulps, 100 * found[weakest].error
    return (
        f"checked {number_of(len(found), 'tensor')}: at most {worst:.3g} units in the last place from what a UI "
        f"computes ({farthest}); rounding took at most {rounding:.3g} % of a change ({weakest})"
    )


def as_json(found: Mapping[str, Checked]) -> dict[str, Any]:
    """By tensor, in JSON types."""
    return {name: each._asdict() for name, each in found.items()}
