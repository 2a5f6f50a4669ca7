"""Files that no tool writes: every dtype in one, odd sizes and values, tensor data at odd bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numeric_tools import CODE, FLOATS, wild
from sdsurgery.dtypes import U8, DType

Tensors = Mapping[str, tuple[DType, tuple[int, ...], bytes]]


def write_file(path: Path, tensors: Tensors, *, padded: bool = True, gap: int = 0) -> Path:
    """A safetensors file made by hand. Not ``padded``: the data starts at an odd byte of the file."""
    entries, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(entries, separators=(",", ":")).encode()
    while (len(header) % 8 != 0) if padded else (len(header) % 8 != 1 + 2 * gap):
        header += b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def odd_files(folder: Path, counts: Sequence[int]) -> list[Path]:
    """Three files with these numbers of elements of every dtype (of another one in each file), with NaN, Inf and
    overflows, at odd byte offsets, and an integer tensor."""
    rng = np.random.default_rng(8)
    files = []
    for index in range(3):
        tensors: dict[str, tuple[DType, tuple[int, ...], bytes]] = {}
        for position, dtype in enumerate(FLOATS):
            for count in counts:
                kind = FLOATS[(position + index * count) % len(FLOATS)] if index else dtype
                tensors[f"{dtype}.{count}"] = (kind, (count,), wild(kind, count, rng).astype(CODE[kind]).tobytes())
        tensors["integers"] = (U8, (7,), bytes(range(7)))
        files.append(write_file(folder / f"{'abc'[index]}.safetensors", tensors, padded=False, gap=index))
    return files
