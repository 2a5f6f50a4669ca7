"""The stored dtypes: one row each, in the order in which files are written (widest first).

``native`` is the code by which the native engine knows a dtype that it can read (``csrc/dtypes.h`` has the same list):
floats are computed with, integers only compared. A dtype without one is only ever copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class FloatFormat(NamedTuple):
    """A binary floating-point format: the sign's bit, then the exponent's, then the mantissa's.

    Without an Inf the highest exponent holds numbers too, and only its last code is a NaN (OCP's E4M3).
    """

    exponent_bits: int
    mantissa_bits: int
    has_inf: bool = True

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def least_exponent(self) -> int:
        """Of normal numbers; the smallest subnormal is 2^(least_exponent − mantissa_bits)."""
        return 1 - self.bias

    @property
    def inf_code(self) -> int:
        """The code of Inf, or of the NaN that stands for it."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits if self.has_inf else self.nan_code

    @property
    def nan_code(self) -> int:
        """The code of the canonical NaN: positive; quiet with no payload, and all ones in 8 bits, as torch has it."""
        ones = (1 << self.mantissa_bits) - 1
        in_eight_bits = self.exponent_bits + self.mantissa_bits == 7
        mantissa = ones if in_eight_bits else 1 << (self.mantissa_bits - 1)
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits | mantissa

    @property
    def largest(self) -> float:
        """The largest finite value."""
        exponent = self.bias if self.has_inf else self.bias + 1
        return (2.0 - 2.0**-self.mantissa_bits * (1 if self.has_inf else 2)) * 2.0**exponent


_NONE = FloatFormat(0, 0)


@dataclass(frozen=True, eq=False)  # one row each, so that identity is equality
class DType:
    """A stored element type.

    ``name`` is the safetensors spelling, ``bits`` the size of one element, ``kind`` one of ``float``, ``int``,
    ``bool`` or ``opaque`` (bytes that are copied and never interpreted), ``option`` the word for ``--dtype``,
    ``torch`` torch's name (NumPy has the same for what it knows), ``format`` that of a float.
    """

    name: str
    bits: int
    kind: str
    native: int | None = None
    option: str | None = None
    torch: str = ""
    format: FloatFormat = _NONE
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
    DType("C64", 64, "opaque", torch="complex64"),
    DType("F64", 64, "float", 0, torch="float64", format=FloatFormat(11, 52)),
    DType("I64", 64, "int", 6, torch="int64"),
    DType("U64", 64, "int", 7, torch="uint64"),
    DType("F32", 32, "float", 1, "fp32", torch="float32", format=FloatFormat(8, 23)),
    DType("I32", 32, "int", 8, torch="int32"),
    DType("U32", 32, "int", 9, torch="uint32"),
    DType("BF16", 16, "float", 3, "bf16", torch="bfloat16", format=FloatFormat(8, 7)),
    DType("F16", 16, "float", 2, "fp16", torch="float16", format=FloatFormat(5, 10)),
    DType("I16", 16, "int", 10, torch="int16"),
    DType("U16", 16, "int", 11, torch="uint16"),
    DType("F8_E4M3", 8, "float", 4, "fp8_e4m3", torch="float8_e4m3fn", format=FloatFormat(4, 3, has_inf=False)),
    DType("F8_E5M2", 8, "float", 5, "fp8_e5m2", torch="float8_e5m2", format=FloatFormat(5, 2)),
    DType("F8_E4M3FNUZ", 8, "opaque", torch="float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, "opaque", torch="float8_e5m2fnuz"),
    DType("F8_E8M0", 8, "opaque", torch="float8_e8m0fnu"),
    DType("I8", 8, "int", 12, torch="int8"),
    DType("U8", 8, "int", 13, torch="uint8"),
    DType("BOOL", 8, "bool", 13, torch="bool"),
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

COMPUTABLE = tuple(row for row in _ROWS if row.computable)
"""What formulas are evaluated on."""

TORCH = {row.name: row.torch for row in _ROWS if row.torch}
"""What torch calls them, and the package ml_dtypes."""
NUMPY = {name: word for name, word in TORCH.items() if not word.startswith(("bfloat", "float8"))}
"""What NumPy calls them."""
