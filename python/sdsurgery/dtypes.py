"""The stored dtypes: one row each, in the order in which files are written (widest first).

``native`` is the code by which the native engine knows a dtype that it can read (``csrc/dtypes.h`` has the same list):
floats are computed with, integers only compared. A dtype without one is only ever copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)  # one row each, so that identity is equality
class DType:
    """A stored element type.

    ``name`` is the safetensors spelling, ``bits`` the size of one element, ``kind`` one of ``float``, ``int``,
    ``bool`` or ``opaque`` (bytes that are copied and never interpreted), ``option`` the word for ``--dtype``.
    """

    name: str
    bits: int
    kind: str
    native: int | None = None
    option: str | None = None
    computable: bool = field(init=False, compare=False, repr=False)  # whether a formula may be evaluated on it

    def __post_init__(self) -> None:
        object.__setattr__(self, "computable", self.kind == "float" and self.native is not None)

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for the sub-byte types."""
        return self.bits // 8

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        return named, (self.name,)  # so that a pickled one is the same object

    def nbytes(self, elements: int) -> int | None:
        """Bytes of ``elements`` elements, or None when they do not fill whole bytes."""
        bits = elements * self.bits
        return None if bits % 8 else bits // 8


_ROWS = (
    DType("C64", 64, "opaque"),
    DType("F64", 64, "float", 0),
    DType("I64", 64, "int", 6),
    DType("U64", 64, "int", 7),
    DType("F32", 32, "float", 1, "fp32"),
    DType("I32", 32, "int", 8),
    DType("U32", 32, "int", 9),
    DType("BF16", 16, "float", 3, "bf16"),
    DType("F16", 16, "float", 2, "fp16"),
    DType("I16", 16, "int", 10),
    DType("U16", 16, "int", 11),
    DType("F8_E4M3", 8, "float", 4, "fp8_e4m3"),
    DType("F8_E5M2", 8, "float", 5, "fp8_e5m2"),
    DType("F8_E4M3FNUZ", 8, "opaque"),
    DType("F8_E5M2FNUZ", 8, "opaque"),
    DType("F8_E8M0", 8, "opaque"),
    DType("I8", 8, "int", 12),
    DType("U8", 8, "int", 13),
    DType("BOOL", 8, "bool", 13),
    DType("F6_E3M2", 6, "opaque"),
    DType("F6_E2M3", 6, "opaque"),
    DType("F4", 4, "opaque"),
)

BY_NAME: dict[str, DType] = {row.name: row for row in _ROWS}
BY_OPTION: dict[str, DType] = {row.option: row for row in _ROWS if row.option}


def named(name: str) -> DType:
    """The dtype of that safetensors spelling."""
    return BY_NAME[name]


F64, F32, F16, BF16 = (BY_NAME[name] for name in ("F64", "F32", "F16", "BF16"))
F8_E4M3, F8_E5M2 = BY_NAME["F8_E4M3"], BY_NAME["F8_E5M2"]
I64, I32, U8 = BY_NAME["I64"], BY_NAME["I32"], BY_NAME["U8"]

# What NumPy and torch call them.
NUMPY = {
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
TORCH = {
    **NUMPY, "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
