"""Components in the names and shapes of diffusers."""

from __future__ import annotations

from pathlib import Path

from cli_support import Raw, read_raw, transposed
from sdsurgery.layouts import get
from sdsurgery.layouts.diffusers import mapping


def as_diffusers(path: Path, layout: str, component: str) -> dict[str, Raw]:
    """The component in diffusers' names: fused attention weights split by rows, 1×1 convolutions as matrices."""
    found, tensors = {}, read_raw(path)[0]
    for row in mapping(get(layout)):
        if row.component != component or row.key is None or row.ldm_key not in tensors:
            continue
        dtype, shape, data = tensors[row.ldm_key]
        shape = list(shape)
        if row.transform.startswith("split_qkv"):
            third = int(row.transform[-1])
            size = len(data) // 3
            shape, data = [shape[0] // 3, *shape[1:]], data[third * size : (third + 1) * size]
        if row.transform == "squeeze_conv1x1":
            shape = shape[:2]
        found[row.key] = (dtype, shape, data)
        if row.transform == "transpose":
            found[row.key] = transposed(tensors[row.ldm_key])
    return found
