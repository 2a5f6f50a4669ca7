"""For the tests of arithmetic: the native kernels on stored codes, the method cases of the registry, and values that
find mistakes (ties, limits, NaN payloads) for every stored dtype."""

from __future__ import annotations

import functools
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sdsurgery import _native, functions
from sdsurgery.backends import cpu
from sdsurgery.definitions.conversions import widen
from sdsurgery.definitions.programs import Beside, beside_of, evaluate, evaluate_tensor
from sdsurgery.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType
from sdsurgery.methods import Flag, Method, Param, PerInput, Whole, registered
from sdsurgery.methods.parameters import is_required
from sdsurgery.plan import Job, Operand
from sdsurgery.program import Formula, Program
from sdsurgery.program.tracing import trace

FLOATS = (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)
# Dtypes of a method's inputs, repeated over them.
MIXTURES = [
    *((dtype,) for dtype in FLOATS),
    (F16, F32),
    (BF16, F16),
    (F8_E4M3, BF16, F8_E5M2),
    (F32, F64),
    (F16, F8_E4M3),
]
TARGETS = [name for name, runs in _native.cpu_targets() if runs]
CODE = {dtype: np.dtype(f"u{dtype.itemsize}") for dtype in FLOATS}
STORED = {F64: np.float64, F32: np.float32, F16: np.float16, BF16: np.uint16, F8_E4M3: np.uint8, F8_E5M2: np.uint8}
SIGN = {dtype: 1 << (dtype.bits - 1) for dtype in FLOATS}
# Codes from the definitions of the formats: Inf (or what stands for it) and the largest finite magnitude.
INF = {F64: 0x7FF << 52, F32: 0xFF << 23, F16: 0x7C00, BF16: 0x7F80, F8_E4M3: 0x7F, F8_E5M2: 0x7C}
LARGEST = {**{dtype: code - 1 for dtype, code in INF.items()}}
NAN = {F64: 0x7FF8 << 48, F32: 0x7FC00000, F16: 0x7E00, BF16: 0x7FC0, F8_E4M3: 0x7F, F8_E5M2: 0x7F}
GUARD = 64  # bytes beside the output that must stay as they were


def as_stored(codes: np.ndarray, dtype: DType) -> np.ndarray:
    """Codes as the array that the reference takes."""
    return codes.astype(CODE[dtype]).view(STORED[dtype])


def values_of(codes: np.ndarray, dtype: DType) -> np.ndarray:
    """What codes stand for, in float64."""
    with np.errstate(invalid="ignore"):
        return widen(as_stored(codes, dtype), dtype, True)


@dataclass
class Result:
    """Output codes, elements with a non-finite input, overflows."""

    codes: np.ndarray
    nonfinite: int
    overflow: int

    def differs(self, other: Result) -> str:
        """Empty when equal; else the first difference."""
        if (self.nonfinite, self.overflow) != (other.nonfinite, other.overflow):
            return f"counts {(self.nonfinite, self.overflow)}, expected {(other.nonfinite, other.overflow)}"
        where = np.flatnonzero(self.codes != other.codes)
        if where.size == 0:
            return ""
        at = where[0]
        return f"{where.size} codes, first at {at}: {self.codes[at]:#x}, expected {other.codes[at]:#x}"


def native(
    formula: Formula,
    inputs: Sequence[tuple[np.ndarray, DType]],
    out: DType,
    *,
    overflow: str = "default",
    wide: bool = False,
    target: str = "",
    threads: int = 1,
    shift: int = 0,
) -> Result:
    """The native kernels on codes. ``shift`` moves every input and the output off its alignment by that many bytes;
    bytes before and after the output are checked to be untouched."""
    count = inputs[0][0].size
    buffers = []
    for index, (codes, dtype) in enumerate(inputs):
        raw = codes.astype(CODE[dtype], copy=False).reshape(-1).view(np.uint8)
        buffer = np.empty(raw.size + 16, np.uint8)
        start = shift * (index + 1) % 16 if shift else 0
        buffer[start : start + raw.size] = raw
        buffers.append((buffer, start, dtype))
    room = np.full(count * out.itemsize + 2 * GUARD + 16, 0xA5, np.uint8)
    start = GUARD + shift
    counts = _native.apply(
        cpu.native_program(formula.program, wide),
        formula.numbers,
        [(buffer.ctypes.data + at, dtype.native) for buffer, at, dtype in buffers],
        room.ctypes.data + start,
        out.native,
        count,
        overflow=cpu.OVERFLOW[overflow],
        threads=threads,
        target=target,
        shape=inputs[0][0].shape,
    )
    end = start + count * out.itemsize
    assert (room[:start] == 0xA5).all() and (room[end:] == 0xA5).all(), "written outside the output"
    return Result(room[start:end].copy().view(CODE[out]), *counts)


def expected(
    formula: Formula,
    inputs: Sequence[tuple[np.ndarray, DType]],
    out: DType,
    *,
    overflow: str = "default",
    wide: bool = False,
) -> Result:
    """The reference on codes."""
    stored = [(as_stored(codes, dtype), dtype) for codes, dtype in inputs]
    with np.errstate(all="ignore"):
        if not formula.program.in_stages:
            values, nonfinite, overflows = evaluate_tensor(formula, stored, out, overflow, wide)
        else:
            whole = tuple((array.tobytes(), dtype) for array, dtype in stored)
            numbers = np.array(formula.numbers, np.float64).tobytes()  # no zero equals the other one
            wider = wide or any(dtype is F64 for _, dtype in inputs)
            beside = _beside(formula, numbers, whole, stored[0][0].shape, wider)
            flat = [(array.reshape(-1), dtype) for array, dtype in stored]
            values, nonfinite, overflows = evaluate(formula, flat, out, overflow, wide, beside=beside)
    return Result(values.view(CODE[out]), nonfinite, overflows)


@functools.lru_cache(maxsize=64)
def _beside(
    formula: Formula, numbers: bytes, inputs: tuple[tuple[bytes, DType], ...], shape: tuple[int, ...], wide: bool
) -> Beside:
    """The values of the stages, as ``evaluate_tensor`` finds them: whatever the output's dtype and policy are, so that
    results which differ in those alone share them."""
    assert np.array(formula.numbers, np.float64).tobytes() == numbers
    widened = [widen(np.frombuffer(data, STORED[dtype]), dtype, wide) for data, dtype in inputs]
    return beside_of(formula, widened, shape)


Coded = tuple[np.ndarray, DType]


def last_stage(formula: Formula, inputs: Sequence[Coded], wide: bool = False) -> cpu.LastStage:
    """What is left of a formula once its stages have read these tensors."""
    sources = [_native.Source.memory(codes.astype(CODE[dtype]).tobytes()) for codes, dtype in inputs]
    operands = tuple(Operand(number, dtype, 0) for number, (_, dtype) in enumerate(inputs))
    shape = inputs[0][0].shape
    job = Job(0, F32, 0, inputs[0][0].size, operands, 0, formula.numbers, shape)
    return cpu.last_stage(job, formula.program, sources, wide)


def without_stages(formula: Formula, inputs: Sequence[Coded], wide: bool = False) -> tuple[Formula, Sequence[Coded]]:
    """What the host leaves to a device, which evaluates elements: for most the formula and inputs themselves."""
    if not formula.program.in_stages:
        return formula, inputs
    left, count = last_stage(formula, inputs, wide), inputs[0][0].size
    kind = F64 if wide or any(dtype is F64 for _, dtype in inputs) else F32
    further = []
    for number in range(left.formula.program.generated):
        codes = np.empty(count, CODE[kind])
        left.generate(number, 0, codes.view(np.uint8).data, kind)
        further.append((codes, kind))
    return left.formula, [*inputs, *further]


# ---- the registry's cases


@dataclass(frozen=True)
class Case:
    """A method with parameters and a number of inputs."""

    method: Method = field(hash=False)
    count: int
    params: Mapping[str, Any] = field(hash=False)
    label: str = ""

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that have a value, as a caller writes them."""
        return {name: value for name, value in self.params.items() if value is not None}

    @functools.cached_property
    def formula(self) -> Formula:
        return trace(self.method, self.count, self.params)


def cases() -> Iterator[Case]:
    """Every registered method: default parameters, awkward ones, and lists for two to four inputs."""
    for name, registry_s in registered().items():
        # What it must know of whole models: some numbers.
        method = registry_s.across.unknown(registry_s) if registry_s.across else registry_s
        numbers = {key: param for key, param in method.params.items() if isinstance(param, Param)}
        lists = {key: param for key, param in method.params.items() if isinstance(param, PerInput)}
        flags = {key: not param.default for key, param in method.params.items() if isinstance(param, Flag)}
        needed = {key: _awkward(param) for key, param in numbers.items() if is_required(param)}
        # A hundred steps show no more than five, and the reference takes them one by one.
        needed |= {key: min(param.default, 5) for key, param in method.params.items() if isinstance(param, Whole)}
        odd = {key: _awkward(param) for key, param in numbers.items()}
        for given in ({}, {**odd, **flags}) if odd or flags else ({},):
            count = len(method.inputs)
            yield Case(method, count, method.bind(count, {**needed, **given}), name + ("-odd" if given else ""))
        least = len(method.inputs)
        for count in (least + 1, least + 2) if method.many else (2, 3, 4) if lists and method.variadic else ():
            several = {
                key: ([_awkward(param)] * (count - param.after) if param.within else _WEIGHTS[: count - param.after])
                for key, param in lists.items()
            }
            yield Case(method, count, method.bind(count, {**needed, **several}), f"{name}-{count}")


_WEIGHTS = [0.6180339887, -0.3, 1.1, 0.07, 0.9]


def _awkward(param: Param | PerInput) -> float:
    """A number within the parameter's range."""
    if not param.within:
        return (param.default or 0.0) * 0.37 - 0.211
    low, high = (float(end) for end in re.findall(r"[-+.\w]+", param.within))
    if isinstance(param, Param) and param.whole:
        return low + 1
    return low + 0.37 * (min(high, low + 1) - low)


# ---- values


def magnitudes(dtype: DType) -> np.ndarray:
    """The finite magnitudes of a small dtype in code order, as float64."""
    return values_of(np.arange(LARGEST[dtype] + 1), dtype)


@functools.cache
def ties(into: DType, of: DType) -> np.ndarray:
    """Codes of ``of`` at the midpoints between neighbouring codes of ``into`` and at both neighbours of each midpoint
    (as many as ``of`` can express), the overflow limit included, with both signs."""
    values = magnitudes(into)
    step = values[-1] - values[-2]
    halfway = (values + np.append(values[1:], values[-1] + step)) / 2
    kind = np.float64 if of is F64 else np.float32
    middle = halfway.astype(kind)
    every = np.concatenate([np.nextafter(middle, kind(0)), middle, np.nextafter(middle, kind(np.inf))])
    return np.concatenate([every, -every]).view(CODE[of])


def nans(dtype: DType) -> np.ndarray:
    """Codes of NaN: quiet, signalling, several payloads, both signs."""
    if dtype is F8_E4M3:
        positive = np.array([0x7F])
    else:
        low = np.array([1, 2, 3, LARGEST[dtype] & (NAN[dtype] ^ INF[dtype]) | 1, NAN[dtype] - INF[dtype]], np.uint64)
        positive = np.uint64(INF[dtype]) + low
    positive = positive.astype(np.uint64)
    return np.concatenate([positive, positive | np.uint64(SIGN[dtype])])


def specials(dtype: DType) -> np.ndarray:
    """±0, subnormals, limits of the normals, largest values, ±Inf and NaNs."""
    top, one = np.uint64(LARGEST[dtype]), np.uint64(1)
    normal = np.uint64({F64: 1 << 52, F32: 1 << 23, F16: 1 << 10, BF16: 1 << 7, F8_E4M3: 8, F8_E5M2: 4}[dtype])
    small = np.array([0, 1, 2, 3], np.uint64)
    near = np.array([normal - one, normal, normal + one, top - one, top, INF[dtype]], np.uint64)
    positive = np.concatenate([small, near])
    return np.concatenate([positive, positive | np.uint64(SIGN[dtype]), nans(dtype)])


def wild(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    """Codes of every sort: specials, ties between the codes of every output dtype, arbitrary bit patterns."""
    parts = [specials(dtype)]
    if dtype in (F32, F64):
        parts += [rng.choice(ties(into, dtype), 400) for into in FLOATS[2:]]
        limits = np.array(
            [3.4028234663852886e38, 3.4028235677973366e38, 3.40282357e38, 6.6e4, 65519.99, 65520, 448, 464]
        )
        limits = np.concatenate([limits, -limits, [464.00003, 57344, 61439.99, 61440, 61440.01, 1e-45, 1e-40]])
        with np.errstate(over="ignore"):
            parts.append(limits.astype(np.float32 if dtype is F32 else np.float64).view(CODE[dtype]))
    anything = (
        rng.integers(0, 1 << dtype.bits, 2000, np.uint64, endpoint=False)
        if dtype.bits < 64
        else rng.integers(0, (1 << 64) - 1, 2000, np.uint64, endpoint=True)
    )
    parts.append(anything)
    return rng.choice(np.concatenate([part.astype(CODE[dtype]) for part in parts]), count)


def plain(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    """Codes of ordinary weights, with zeros and subnormals among them: what the fast kernels are for."""
    values = rng.normal(0, 0.5, count) * np.exp2(rng.integers(-30, 3, count))
    values[rng.integers(0, count, count // 50 + 1)] = 0
    codes = expected(identity(), [(values.view(np.uint64), F64)], dtype).codes.copy()
    tiny = rng.integers(0, count, count // 20 + 1)
    codes[tiny] = rng.integers(0, 4, tiny.size)
    return codes


def mixed(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    """Ordinary weights with one special value now and then, so that both paths meet in one call."""
    codes = plain(dtype, count, rng)
    at = rng.integers(0, count, count // 6000 + 1)
    codes[at] = rng.choice(specials(dtype), at.size).astype(CODE[dtype])
    return codes


SORTS = {"wild": wild, "plain": plain, "mixed": mixed}
# A cast is the program without a step; no method has it.
CAST = Case(Method("cast", ("A",), {}, lambda a: a), 1, {}, "cast")
CASES = {case.label: case for case in (*cases(), CAST)}


def _all_of_two(a: Any, b: Any, half: float) -> Any:
    nearer = functions.where(abs(a) <= abs(b), a, b)
    kept = functions.where(functions.sign(a) * functions.sign(b) >= 0, nearer, half)
    return functions.sqrt(abs(kept)) * (a > b) - functions.clip(a + b, -half, 1.5) * (a != b)


def _all_of_three(a: Any, b: Any, c: Any) -> Any:
    low, high = functions.minimum(a, b), functions.maximum(functions.minimum(b, c), a)
    return functions.where(low < high, high, functions.sign(c)) * (a == c) - b * (a >= c) / 3


def _powers(a: Any, b: Any, exponent: float) -> Any:
    size = functions.pow(abs(a), 1 - exponent) * functions.pow(abs(b), exponent)
    return functions.copysign(size, b) - functions.pow(a, functions.floor(b))


# Bodies that no method has: every operation of program.py is in one of them.
OPERATIONS = {
    method.name: Case(method, len(method.inputs), method.bind(len(method.inputs), {}), method.name)
    for method in (
        Method("all-of-two", ("A", "B"), {"half": Param(0.5, "")}, _all_of_two),
        Method("all-of-three", ("A", "B", "C"), {}, _all_of_three),
        Method("smaller", ("A", "B"), {}, functions.minimum),
        Method("larger", ("A", "B"), {}, functions.maximum),
        Method("sign", ("A",), {}, functions.sign),
        Method("root", ("A",), {}, functions.sqrt),
        Method("powers", ("A", "B"), {"exponent": Param(0.25, "")}, _powers),
        Method("exponential", ("A",), {}, functions.exp),
        Method("logarithm", ("A",), {}, functions.log),
        Method("floor", ("A",), {}, functions.floor),
        Method("once", ("A", "B", "C"), {}, functions.fma),
    )
}


def every(
    mixtures: Sequence[tuple[DType, ...]] = MIXTURES, *, few: bool = False
) -> list[tuple[str, tuple[DType, ...]]]:
    """Cases with mixtures of input dtypes that they have inputs for, as ``spread``; ``ids=label`` names them."""
    return spread(mixtures, lambda case, mixture: len(mixture) <= case.count, cast=True, few=few)


def spread(
    choices: Sequence[Any], fits: Callable[[Case, Any], bool] = lambda case, choice: True, *, cast: bool = False,
    few: bool = False,
) -> list[Any]:  # fmt: skip
    """Every case with every choice (of dtypes, say) that fits, as pairs; with ``cast`` also the cast, which is no
    method.

    A case without a kernel of its own is evaluated by steps, which do not depend on the dtypes: one case of such a
    method gets one of the choices, each method another. ``few`` is for what does not depend on the formula either: of
    those only ``telling`` ones. With SDS_THOROUGH set all get all of them."""
    found = []
    seen = set()
    for number, (name, case) in enumerate(CASES.items()):
        if case is CAST and not cast:
            continue
        if not thorough(name) and (name not in telling() if few else case.method.name in seen):
            continue
        seen.add(case.method.name)
        fitting = [choice for choice in choices if fits(case, choice)]
        some = fitting if thorough(name) else [fitting[number % len(fitting)]]
        found += [(name, choice) for choice in some]
    return found


@functools.cache
def telling() -> frozenset[str]:
    """Cases that together use whatever any case uses: every operation, reduction, axis, generated operand, number of
    inputs, and each of them in a last stage and before it."""
    uses = {name: _uses(case.formula.program) for name, case in CASES.items()}
    left, chosen = frozenset().union(*uses.values()), set()
    while left:
        best = max(uses, key=lambda name: len(uses[name] & left))
        chosen.add(best)
        left -= uses[best]
    return frozenset(chosen)


def _uses(program: Program) -> frozenset[tuple[Any, ...]]:
    stages = range(len(program.stages))
    found = {("inputs", program.inputs), ("stages", len(program.stages)), ("functions", len(program.functions))}
    found |= {("step", op, False) for op, *_ in program.steps}
    found |= {("step", op, True) for at in stages for op, *_ in program.stages[at].steps}
    found |= {("reduction", op, along, at > 0) for at in stages for op, along, _ in program.stages[at].reductions}
    found |= {("scalar", op) for at in stages for op, _ in program.stages[at].scalars}
    found |= {("made", op, along) for op, along, _ in program.made}
    return frozenset(found)


def thorough(name: str) -> bool:
    """Whether a case is to be tested with everything: it is the first of those that share a kernel of their own (and a
    sum, or one of the others), or SDS_THOROUGH is set."""
    return bool(os.environ.get("SDS_THOROUGH")) or name in _first_with_kernel()


@functools.cache
def _first_with_kernel() -> frozenset[str]:
    programs = {name: case.formula.program for name, case in CASES.items()}
    first = {program: name for name, program in reversed(programs.items())}
    kernels = {name: program for program, name in first.items() if cpu.native_program(program, False).fused}
    sums = {
        name for name, program in kernels.items() if {op for op, *_ in program.steps} <= {"add", "sub", "mul", "div"}
    }
    return frozenset({*sums, *sorted(kernels.keys() - sums)[:1]})


def outputs(name: str) -> tuple[DType, ...]:
    """The dtypes that a case is rounded to: how is no matter of its steps, so most cases get one, each another."""
    return FLOATS if thorough(name) else (FLOATS[zlib.crc32(name.encode()) % len(FLOATS)],)


def label(item: object) -> str:
    return "+".join(dtype.name for dtype in item) if isinstance(item, tuple) else str(item)


def native_tensor(formula: Formula, arrays: list[np.ndarray], target: str = "", wide: bool = False) -> np.ndarray:
    """What the native kernels make of whole tensors of one dtype, float32 or float64."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    code = (F32 if out.dtype == np.float32 else F64).native
    _native.apply(
        cpu.native_program(formula.program, wide), formula.numbers, [(array.ctypes.data, code) for array in arrays],
        out.ctypes.data, code, out.size, target=target, shape=out.shape,
    )  # fmt: skip
    return out


def native_codes(
    formula: Formula, tensors: Sequence[np.ndarray], dtype: DType, target: str = "", wide: bool = False
) -> tuple[np.ndarray, list[int]]:
    """The codes and the counts that the native kernels make of whole tensors stored as ``dtype``."""
    out = np.empty(tensors[0].shape, CODE[dtype])
    counts = _native.apply(
        cpu.native_program(formula.program, wide), formula.numbers,
        [(codes.ctypes.data, dtype.native) for codes in tensors], out.ctypes.data, dtype.native, out.size,
        target=target, shape=out.shape,
    )  # fmt: skip
    return out, list(counts)


def identity() -> Formula:
    return CAST.formula
