"""How weights lie in codes and scales, as numbers: what a reader finds and what the engine decodes by.

``csrc/encoding.h`` states the rule, ``definitions/decoding.py`` is the same in NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..dtypes import DType
from .view import View

if TYPE_CHECKING:
    from ..checkpoint import TensorInfo

CODINGS = ("e4m3", "e5m2", "i8", "nf4", "fp4", "e2m1", "i4")
"""Kinds of codes, by the native engine's numbers for them. The last four put two codes into a byte."""

PACKED = frozenset(("nf4", "fp4", "e2m1", "i4"))


class Companion(NamedTuple):
    """``count`` numbers beside the codes, from byte ``offset`` on: of the checkpoint's file number ``source``, in a
    Plan of its source; of a ``view`` its elements. A U8 companion of scales is looked up in a map."""

    source: int
    dtype: DType
    offset: int
    count: int  # type: ignore[assignment]
    view: View | None = None


class Encoding(NamedTuple):
    """A matrix of ``rows`` × ``columns`` weights. Blocks of ``block`` (rows, columns) share a scale.

    Stored rows have ``stored_columns`` codes. ``tiled`` scales lie in tiles of 128 × 4. A scale is
    ``stored[i] · times[i / per] + plus``, where the stored number of a U8 companion is the one of ``map`` at that
    place. ``factor`` multiplies the product of value and scale. Groups of ``group`` columns, ``inner`` elements apart,
    were rotated (1: not). ``by_column`` multiplies each column. ``start`` elements are left out in front.
    """

    coding: str
    rows: int
    columns: int
    stored_columns: int
    block: tuple[int, int]
    scales: Companion
    low_first: bool = False
    tiled: bool = False
    map: Companion | None = None
    times: Companion | None = None
    per: int = 1
    plus: float = 0.0
    factor: float = 1.0
    group: int = 1
    inner: int = 1
    by_column: Companion | None = None
    start: int = 0

    def at(self, element: int) -> Encoding:
        """The same without its first elements."""
        return self._replace(start=self.start + element)

    def companions(self) -> tuple[Companion, ...]:
        return tuple(part for part in (self.scales, self.map, self.times, self.by_column) if part is not None)

    def shifted(self, first: int) -> Encoding:
        """The same with ``first`` added to the number of every companion's source."""
        moved = {
            field: part._replace(source=part.source + first)
            for field in ("scales", "map", "times", "by_column")
            if (part := getattr(self, field)) is not None
        }
        return self._replace(**moved)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the codes."""
        return self.rows * ((self.stored_columns + 1) // 2 if self.coding in PACKED else self.stored_columns)


class Encoded(NamedTuple):
    """What is known of an encoded weight: the name of its ``layer``, its ``format`` in the words of messages, the
    file's tensors that it is ``stored`` in (the codes first), and how to decode them, or why that cannot be done."""

    layer: str
    format: str
    stored: tuple[TensorInfo, ...]
    encoding: Encoding | None
    reason: str = ""
