"""A model of the reference safetensors writer: how many bytes it makes of a list of tensors. Sizes only, no data.

The serialised header is compact JSON: metadata first, then one entry per tensor in the order of the data. The writer of
today sorts by falling alignment of the dtype, then by name, and pads the header to 8 bytes; releases of early 2023 did
not pad, and some sorted only by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
WRITE_ORDER = ("I64", "F32", "I32", "BF16", "F16")  # the reverse of the reference implementation's enumeration


class Stored(NamedTuple):
    """One tensor as a file stores it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = WIDTHS[self.dtype]
        for size in self.shape:
            count *= size
        return count


def file_size(tensors: Iterable[Stored], *, order: str, padding: int, metadata: dict[str, str] | None) -> int:
    """Bytes of the whole file. ``order`` is ``name`` or ``dtype``; ``padding`` 0 or what the header is padded to."""
    by_name = sorted(tensors, key=lambda tensor: tensor.name.encode())
    ordered = sorted(by_name, key=lambda tensor: WRITE_ORDER.index(tensor.dtype)) if order == "dtype" else by_name
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    if padding:
        length += -length % padding
    return 8 + length + offset
