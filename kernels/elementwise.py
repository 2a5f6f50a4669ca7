"""The Triton kernel: load → formula → round → store, for any formula and any float dtypes.

One generic kernel. A method's Python body, traced (``sdsurgery.program``), is handed over as a compile-time tuple of
steps; compiling the kernel for it unrolls them into registers. Nothing here names a method.

Numeric rule: as on the CPU (docs/numerics.md). Every operation is rounded by itself: compiled with
``enable_fp_fusion=False``, division is ``div_rn``. Elements travel as integer codes, so that every device takes every
dtype; bf16 and fp8 are rounded by their bits, float64 goes to narrow dtypes by way of round-to-odd. A stored NaN is
the canonical one.

With ``TRITON_INTERPRET=1`` in the environment before the import, the same lines run on the processor, on CPU tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from sdsurgery.dtypes import DType
from sdsurgery.program import CONSTANT, INPUT, OPERATIONS, TEMP, Formula, Program

from .functions import magnitude_bits, narrow_exp, narrow_floor, narrow_log, narrow_pow

# Codes of the dtypes (dtypes.py, `native`) and of the operations, as the kernel's compile-time numbers.
F64, F32, F16, BF16, E4M3, E5M2 = (tl.constexpr(code) for code in range(6))
ADD, SUB, MUL, DIV = (tl.constexpr(OPERATIONS[name]) for name in ("add", "sub", "mul", "div"))
MINIMUM, MAXIMUM, NEG, ABS = (tl.constexpr(OPERATIONS[name]) for name in ("minimum", "maximum", "neg", "abs"))
LT, LE, GT, GE, EQ, NE = (tl.constexpr(OPERATIONS[name]) for name in ("lt", "le", "gt", "ge", "eq", "ne"))
SQRT, SIGN, WHERE, FMA = (tl.constexpr(OPERATIONS[name]) for name in ("sqrt", "sign", "where", "fma"))
COPYSIGN, FLOOR = (tl.constexpr(OPERATIONS[name]) for name in ("copysign", "floor"))
EXP, LOG, POW = (tl.constexpr(OPERATIONS[name]) for name in ("exp", "log", "pow"))
FROM_INPUT, FROM_CONSTANT = tl.constexpr(INPUT), tl.constexpr(CONSTANT)
KNOWN = frozenset(OPERATIONS)
_NARROW = frozenset(("exp", "log", "pow"))  # in float32 arithmetic only
POINTERS = ("*i64", "*i32", "*i16", "*i16", "*i8", "*i8")  # by dtype code
_MOST_INPUTS = 32

# Per dtype code: the canonical NaN, Inf (for E4M3 what stands for it), the largest finite code, and the bits of the
# smallest magnitude, in float32 and in float64 arithmetic, that does not fit (csrc/dtypes.h, careful_from).
_NAN = (0x7FF8 << 48, 0x7FC00000, 0x7E00, 0x7FC0, 0x7F, 0x7F)
_INF = (0x7FF << 52, 0x7F800000, 0x7C00, 0x7F80, 0x7F, 0x7C)
_LARGEST = tuple(code - 1 for code in _INF)
_CAREFUL = (0x7F800000, 0x7F800000, 0x477FF000, 0x7F7F8000, 0x43E80001, 0x47700000)
_CAREFUL_WIDE = tuple(
    int.from_bytes(struct.pack("<d", value), "little")
    for value in (float("inf"), 2.0**128 - 2.0**103, 65520.0, 2.0**128 - 2.0**119, 464.00000000000006, 61440.0)
)


# ---- elements


@triton.jit
def _widen(raw, CODE: tl.constexpr, WIDE: tl.constexpr):
    """Stored codes as float32, or float64."""
    if CODE == F64:
        x = raw.to(tl.float64, bitcast=True)
    elif CODE == F32:
        x = raw.to(tl.float32, bitcast=True)
    elif CODE == F16:
        x = raw.to(tl.float16, bitcast=True).to(tl.float32)
    elif CODE == BF16:
        x = (raw.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif CODE == E5M2:  # the upper half of an F16
        x = (raw.to(tl.int16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        code = raw.to(tl.int32)
        magnitude = code & 0x7F
        scaled = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120: exact
        bits = tl.where(magnitude == 0x7F, 0x7FC00000, scaled.to(tl.int32, bitcast=True))
        x = (bits | ((code & 0x80) << 24)).to(tl.float32, bitcast=True)
    if WIDE:
        return x.to(tl.float64)
    else:
        return x


@triton.jit
def _infinity(WIDE: tl.constexpr):
    return 0x7FF0000000000000 if WIDE else 0x7F800000


@triton.jit
def _small(magnitude, EXPONENT: tl.constexpr, MANTISSA: tl.constexpr):
    """A float32 magnitude's bits as a smaller format's, to nearest even (encode_magnitude of csrc/dtypes.h)."""
    bias: tl.constexpr = (1 << (EXPONENT - 1)) - 1
    shift: tl.constexpr = 23 - MANTISSA
    normal = ((magnitude + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1)) >> shift) - ((127 - bias) << MANTISSA)
    if bias == 127:
        return normal
    else:
        # Below the normals the quantum is fixed: adding a number whose last bit has that weight rounds there.
        anchor: tl.constexpr = (127 + 23 + 1 - bias - MANTISSA) << 23
        anchors = tl.full(magnitude.shape, anchor, tl.int32)
        total = magnitude.to(tl.float32, bitcast=True) + anchors.to(tl.float32, bitcast=True)
        return tl.where(magnitude >= ((127 - bias + 1) << 23), normal, total.to(tl.int32, bitcast=True) - anchor)


@triton.jit
def _narrow_to_odd(x):
    """float64 to float32; what is lost leaves its trace in the last bit (csrc/dtypes.h)."""
    nearest = x.to(tl.float32)
    back = nearest.to(tl.float64)
    bits = nearest.to(tl.int32, bitcast=True)
    step = tl.where(magnitude_bits(back, True) > magnitude_bits(x, True), -1, 1)
    return tl.where((back == x) | ((bits & 1) != 0), bits, bits + step).to(tl.float32, bitcast=True)


@triton.jit
def _encode(y, CODE: tl.constexpr, WIDE: tl.constexpr):
    """The code of each result, right for those that are finite and fit."""
    if CODE == F64:
        return y.to(tl.float64).to(tl.int64, bitcast=True)
    elif CODE == F32:
        return y.to(tl.float32).to(tl.int32, bitcast=True)
    else:
        if WIDE:
            x = _narrow_to_odd(y)
        else:
            x = y
        if CODE == F16:
            return x.to(tl.float16).to(tl.int16, bitcast=True)
        else:
            bits = x.to(tl.int32, bitcast=True)
            magnitude = bits & 0x7FFFFFFF
            if CODE == BF16:
                return (_small(magnitude, 8, 7) | ((bits >> 16) & 0x8000)).to(tl.int16)
            elif CODE == E4M3:
                return (_small(magnitude, 4, 3) | ((bits >> 24) & 0x80)).to(tl.int8)
            else:
                return (_small(magnitude, 5, 2) | ((bits >> 24) & 0x80)).to(tl.int8)


# ---- the formula


@triton.jit
def _pick(inputs, constants, temps, KIND: tl.constexpr, INDEX: tl.constexpr):
    if KIND == FROM_INPUT:
        return inputs[INDEX]
    elif KIND == FROM_CONSTANT:
        return constants[INDEX]
    else:
        return temps[INDEX]


@triton.jit
def _flag(truth, WIDE: tl.constexpr):
    """1 where it is true, else 0."""
    if WIDE:
        return truth.to(tl.float64)
    else:
        return truth.to(tl.float32)


@triton.jit
def _operate(a, b, c, OP: tl.constexpr, WIDE: tl.constexpr):
    if OP == ADD:
        return a + b
    elif OP == SUB:
        return a - b
    elif OP == MUL:
        return a * b
    elif OP == DIV:
        if WIDE:
            return a / b
        else:
            return tl.div_rn(a, b)
    elif OP == NEG:  # by the bit: 0 - a would lose the sign of zero
        if WIDE:
            return (a.to(tl.int64, bitcast=True) ^ -0x8000000000000000).to(tl.float64, bitcast=True)
        else:
            return (a.to(tl.int32, bitcast=True) ^ -0x80000000).to(tl.float32, bitcast=True)
    elif OP == MINIMUM:
        return tl.where((a < b) | (a != a), a, b)
    elif OP == MAXIMUM:
        return tl.where((a > b) | (a != a), a, b)
    elif OP == LT:
        return _flag(a < b, WIDE)
    elif OP == LE:
        return _flag(a <= b, WIDE)
    elif OP == GT:
        return _flag(a > b, WIDE)
    elif OP == GE:
        return _flag(a >= b, WIDE)
    elif OP == EQ:
        return _flag(a == b, WIDE)
    elif OP == NE:
        return _flag(a != b, WIDE)
    elif OP == SQRT:
        if WIDE:
            return tl.sqrt(a)
        else:
            return tl.sqrt_rn(a)
    elif OP == SIGN:
        return tl.where(a == a, _flag(a > 0, WIDE) - _flag(a < 0, WIDE), a)
    elif OP == WHERE:
        return tl.where(a != 0, b, c)
    elif OP == FLOOR:
        return tl.floor(a) if WIDE else narrow_floor(a)
    elif OP == COPYSIGN:
        if WIDE:
            sign = b.to(tl.int64, bitcast=True) & -0x8000000000000000
            return (magnitude_bits(a, WIDE) | sign).to(tl.float64, bitcast=True)
        else:
            return (magnitude_bits(a, WIDE) | (b.to(tl.int32, bitcast=True) & -0x80000000)).to(tl.float32, bitcast=True)
    elif OP == EXP:
        return narrow_exp(a)
    elif OP == LOG:
        return narrow_log(a)
    elif OP == POW:
        return narrow_pow(a, b)
    elif OP == FMA:
        return tl.fma(a, b, c)
    else:
        if WIDE:
            return magnitude_bits(a, WIDE).to(tl.float64, bitcast=True)
        else:
            return magnitude_bits(a, WIDE).to(tl.float32, bitcast=True)


@triton.jit
def _formula(inputs, constants, STEPS: tl.constexpr, RESULT: tl.constexpr, WIDE: tl.constexpr):
    """STEPS are (operation, three times kind and index); step i makes temp i."""
    temps = ()
    for i in tl.static_range(len(STEPS)):
        a = _pick(inputs, constants, temps, STEPS[i][1], STEPS[i][2])
        b = _pick(inputs, constants, temps, STEPS[i][3], STEPS[i][4])
        c = _pick(inputs, constants, temps, STEPS[i][5], STEPS[i][6])
        temps = temps + (_operate(a, b, c, STEPS[i][0], WIDE),)
    return _pick(inputs, constants, temps, RESULT[0], RESULT[1])


# ---- the loop


@triton.jit
def _block(
    out, inputs, constants, counts, at, mask,
    DTYPES: tl.constexpr, OUT: tl.constexpr, STEPS: tl.constexpr, RESULT: tl.constexpr, WIDE: tl.constexpr,
    LIMITS: tl.constexpr, SATURATE: tl.constexpr, COUNT: tl.constexpr, OWN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block's elements. The first OWN inputs are those in which a NaN counts. LIMITS are the output's NaN, Inf,
    largest code, sign bit, and the magnitude from which a result does not fit."""
    values = ()
    for k in tl.static_range(len(DTYPES)):
        if MASKED:
            raw = tl.load(inputs[k] + at, mask=mask, other=0)
        else:
            raw = tl.load(inputs[k] + at)
        values = values + (_widen(raw, DTYPES[k], WIDE),)
    y = _formula(values, constants, STEPS, RESULT, WIDE)
    code = _encode(y, OUT, WIDE)
    magnitude = magnitude_bits(y, WIDE)
    nan = magnitude > _infinity(WIDE)
    over = (magnitude >= LIMITS[4]) & (magnitude <= _infinity(WIDE))
    sign = tl.where(_negative(y, WIDE), LIMITS[3], 0)
    special = LIMITS[1] | sign
    if OUT == E4M3:  # which has no Inf
        special = tl.full(magnitude.shape, LIMITS[1], tl.int32)
    if COUNT or SATURATE:
        finite = magnitude_bits(values[0], WIDE) < _infinity(WIDE)
        for k in tl.static_range(1, OWN):
            finite = finite & (magnitude_bits(values[k], WIDE) < _infinity(WIDE))
        made = over & (finite | (magnitude < _infinity(WIDE)))  # not an Inf that was carried through
        if SATURATE:
            special = tl.where(made, LIMITS[2] | sign, special)
        if COUNT:
            odd = tl.where(finite, 0, 1)
            lost = tl.where(made | (nan & finite), 1, 0)
            if MASKED:
                odd = tl.where(mask, odd, 0)
                lost = tl.where(mask, lost, 0)
            odd_sum = tl.sum(odd, 0)
            lost_sum = tl.sum(lost, 0)
            if odd_sum + lost_sum > 0:
                tl.atomic_add(counts, odd_sum.to(tl.int64))
                tl.atomic_add(counts + 1, lost_sum.to(tl.int64))
    code = tl.where(over, special.to(code.dtype), code)
    code = tl.where(nan, tl.full(magnitude.shape, LIMITS[0], code.dtype), code)
    if MASKED:
        tl.store(out + at, code, mask=mask)
    else:
        tl.store(out + at, code)


@triton.jit
def _negative(y, WIDE: tl.constexpr):
    if WIDE:
        return y.to(tl.int64, bitcast=True) < 0
    else:
        return y.to(tl.int32, bitcast=True) < 0


@triton.jit(do_not_specialize=["count"])
def elementwise(
    out, inputs, constants, counts, count,
    DTYPES: tl.constexpr, OUT: tl.constexpr, STEPS: tl.constexpr, RESULT: tl.constexpr, WIDE: tl.constexpr,
    LIMITS: tl.constexpr, SATURATE: tl.constexpr, COUNT: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``count`` elements. ``inputs`` and ``out`` point to codes (integers of the dtype's size); ``constants`` are
    float32, or the bits of float64 as integers when WIDE; ``counts`` receives non-finite and overflow counts."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    numbers = ()
    for k in tl.static_range(len(constants)):
        if WIDE:
            numbers = numbers + (tl.full((1,), constants[k], tl.int64).to(tl.float64, bitcast=True),)
        else:
            numbers = numbers + (tl.full((1,), constants[k], tl.float32),)
    # The last block by itself: the others load without a mask, 16 bytes at a time.
    if start + BLOCK <= count:
        _block(
            out, inputs, numbers, counts, at, at, DTYPES, OUT, STEPS, RESULT, WIDE, LIMITS, SATURATE, COUNT, OWN, False
        )  # fmt: skip
    else:
        _block(
            out, inputs, numbers, counts, at, at < count, DTYPES, OUT, STEPS, RESULT, WIDE, LIMITS, SATURATE, COUNT,
            OWN, True,
        )  # fmt: skip


# ---- the host's side


def unsupported(program: Program, wide: bool = False) -> str | None:
    """Why the kernel cannot evaluate it, in float64 arithmetic if ``wide``; or None."""
    narrow = sorted({op for op, *_ in program.steps} & _NARROW) if wide else ()
    if narrow:
        return f"the Triton kernel has no {narrow[0]} in float64 arithmetic"
    unknown = sorted({op for op, *_ in program.steps} - KNOWN)
    if unknown:
        return f"the Triton kernel lacks the operation {unknown[0]}"
    if not 1 <= program.inputs <= _MOST_INPUTS:
        return f"the Triton kernel takes 1 to {_MOST_INPUTS} inputs"
    return None


def numbers_of(formula: Formula, wide: bool) -> tuple[Any, ...]:
    """The constants as the kernel takes them: rounded once to float32, or float64 as the integer of its bits."""
    if wide:
        return tuple(struct.unpack("<q", struct.pack("<d", value))[0] for value in formula.numbers)
    import numpy as np

    with np.errstate(over="ignore"):
        return tuple(float(np.float32(value)) for value in formula.numbers)


def constants_of(
    formula: Formula, dtypes: Sequence[DType], out: DType, *, overflow: str, wide: bool, count: bool
) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    place: dict[int, int] = {}  # of each slot, the step that wrote it last: a temp here is written once

    def at(ref: tuple[int, int]) -> tuple[int, int]:
        return (TEMP, place[ref[1]]) if ref[0] == TEMP else ref

    steps = []
    for number, (op, args, to) in enumerate(formula.program.steps):
        a, b, c = (at(args[min(k, len(args) - 1)]) for k in range(3))
        steps.append((OPERATIONS[op], *a, *b, *c))
        place[to] = number
    code = out.native or 0
    careful = (_CAREFUL_WIDE if wide else _CAREFUL)[code]
    sign = -1 << (out.bits - 1)
    saturate = overflow == "saturate" or (overflow in ("default", "error") and code in (4, 5))
    sizes = [dtype.itemsize for dtype in (*dtypes, out)]
    return {
        "DTYPES": tuple(dtype.native for dtype in dtypes),
        "OUT": code,
        "STEPS": tuple(steps),
        "RESULT": at(formula.program.result),
        "WIDE": wide,
        "LIMITS": (_NAN[code], _INF[code], _LARGEST[code], sign, careful),
        "SATURATE": saturate,
        "COUNT": count,
        "OWN": formula.program.inputs - formula.program.generated,
        "BLOCK": 2048 if max(sizes) <= 2 else 1024,  # 16 to 64 bytes of an operand a thread
    }


def launch(
    formula: Formula, inputs: Sequence[tuple[Any, DType]], out: Any, dtype: DType, *,
    overflow: str = "default", wide: bool = False, counts: Any = None,
) -> None:  # fmt: skip
    """Enqueue the formula on torch tensors of integer codes (``codes_of``), all of one size, on the current stream.

    ``counts``: an int64 tensor of two elements to which non-finite inputs and overflows are added, or None.
    """
    wide = wide or any(kind.native == 0 for _, kind in inputs)
    settings = constants_of(
        formula, [kind for _, kind in inputs], dtype, overflow=overflow, wide=wide, count=counts is not None
    )
    size = out.numel()
    if size == 0:
        return
    elementwise[(triton.cdiv(size, settings["BLOCK"]),)](
        out,
        tuple(item for item, _ in inputs),
        numbers_of(formula, wide),
        out if counts is None else counts,
        size,
        **settings,
        enable_fp_fusion=False,
    )


def codes_of(tensor: Any, dtype: DType) -> Any:
    """A torch tensor's memory as integers of the dtype's size."""
    import torch

    return tensor.view(getattr(torch, f"int{dtype.bits}"))
