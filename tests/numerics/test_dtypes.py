"""The stored dtypes: every code of the small ones through every cast, and the rounding of float32 and float64 at every
tie, against the reference, against torch, and against what the tie's construction says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numeric_tools import (
    CODE,
    FLOATS,
    INF,
    LARGEST,
    NAN,
    SIGN,
    TARGETS,
    Result,
    expected,
    identity,
    magnitudes,
    nans,
    native,
    specials,
    values_of,
)  # fmt: skip
from sdsurgery.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType

SMALL = (F16, BF16, F8_E4M3, F8_E5M2)
POLICIES = ("default", "inf", "saturate")


def every_code(dtype: DType) -> np.ndarray:
    return np.arange(1 << dtype.bits).astype(CODE[dtype])


@functools.cache
def arrangements(dtype: DType) -> dict[str, np.ndarray]:
    """All codes in order; shuffled, so that odd values are everywhere (the careful path); only the finite ones."""
    codes = every_code(dtype)
    shuffled = np.random.default_rng(1).permutation(codes)
    return {"all": codes, "shuffled": shuffled, "finite": codes[np.isfinite(values_of(codes, dtype))]}


@functools.cache
def fitting(dtype: DType, out: DType) -> np.ndarray:
    """The codes that are finite and fit the output: all of them take the fast path."""
    values = values_of(every_code(dtype), dtype)
    with np.errstate(invalid="ignore"):
        return every_code(dtype)[np.abs(values) <= magnitudes_top(out)]


def magnitudes_top(dtype: DType) -> float:
    return float(values_of(np.array([LARGEST[dtype]], np.uint64), dtype)[0])


@functools.cache
def wanted(dtype: DType, out: DType, which: str, overflow: str, wide: bool) -> Result:
    codes = fitting(dtype, out) if which == "fitting" else arrangements(dtype)[which]
    return expected(identity(), [(codes, dtype)], out, overflow=overflow, wide=wide)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_code_is_cast_as_the_reference_casts_it(dtype: DType, out: DType, target: str) -> None:
    for which in ("all", "shuffled", "finite", "fitting"):
        codes = fitting(dtype, out) if which == "fitting" else arrangements(dtype)[which]
        for overflow in POLICIES if which != "fitting" else POLICIES[:1]:
            for wide in (False, True):
                got = native(identity(), [(codes, dtype)], out, overflow=overflow, wide=wide, target=target, shift=1)
                difference = got.differs(wanted(dtype, out, which, overflow, wide))
                assert not difference, f"{which}, {overflow}, wide={wide}: {difference}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_number_survives_a_wider_dtype_and_back(dtype: DType, target: str) -> None:
    codes = every_code(dtype)
    canonical = np.where(np.isnan(values_of(codes, dtype)), NAN[dtype], codes).astype(CODE[dtype])
    for out in (F64, F32):
        there = native(identity(), [(codes, dtype)], out, target=target).codes
        back = native(identity(), [(there, out)], dtype, target=target).codes
        assert np.array_equal(back, canonical)


# ---- torch

TORCH = {
    F64: "float64",
    F32: "float32",
    F16: "float16",
    BF16: "bfloat16",
    F8_E4M3: "float8_e4m3fn",
    F8_E5M2: "float8_e5m2",
}


def torch_cast(codes: np.ndarray, dtype: DType, out: DType) -> np.ndarray:
    import torch

    given = torch.from_numpy(codes.view(np.uint8).copy()).view(getattr(torch, TORCH[dtype]))
    cast = given.to(getattr(torch, TORCH[out])).view(torch.uint8).numpy().view(CODE[out])
    return np.where(np.isnan(values_of(cast, out)), NAN[out], cast).astype(CODE[out])


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_code_is_cast_as_torch_casts_it(dtype: DType, out: DType) -> None:
    """torch gives Inf for what is too large, our overflow="inf", and NaNs that are not canonical. What it does with
    numbers too large for F8_E4M3 depends on its version, so those are left out."""
    codes = every_code(dtype)
    if out is F8_E4M3:
        codes = codes[~(np.abs(values_of(codes, dtype)) > 464)]
    ours = native(identity(), [(codes, dtype)], out, overflow="inf").codes
    assert np.array_equal(ours, torch_cast(codes, dtype, out))


# ---- ties


@functools.cache
def tie_table(out: DType, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """(values, codes they have to become) at the midpoint of each pair of neighbouring codes and on both sides of it.

    The codes come from the construction: the even neighbour at the midpoint, the nearer one beside it."""
    values = magnitudes(out)
    kind = np.float64 if wide else np.float32
    middle = ((values[:-1] + values[1:]) / 2).astype(kind)
    assert np.array_equal(middle * np.float64(2), values[:-1] + values[1:]), (
        "a midpoint that the input dtype cannot express"
    )
    low = np.arange(values.size - 1)
    numbers = np.concatenate([np.nextafter(middle, kind(0)), middle, np.nextafter(middle, kind(np.inf))])
    codes = np.concatenate([low, low + (low & 1), low + 1])
    return (
        np.concatenate([numbers, -numbers]),
        np.concatenate([codes, codes | SIGN[out]]).astype(CODE[out]),
    )


@pytest.mark.parametrize("target", [*TARGETS, "reference"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("out", SMALL, ids=str)
def test_every_tie_goes_to_the_even_code_and_its_neighbours_to_the_nearer(
    out: DType, dtype: DType, target: str
) -> None:
    numbers, codes = tie_table(out, dtype is F64)
    given = numbers.view(CODE[dtype])
    odd = np.append(given, specials(dtype).astype(CODE[dtype]))
    for inputs in (given, np.concatenate([odd[-8:], odd])):  # the second holds NaN and Inf: the careful path
        if target == "reference":
            got = expected(identity(), [(inputs, dtype)], out)
        else:
            got = native(identity(), [(inputs, dtype)], out, target=target)
        first = 0 if inputs is given else 8
        assert np.array_equal(got.codes[first : first + codes.size], codes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", SMALL, ids=str)
def test_float64_is_rounded_once_where_rounding_through_float32_would_differ(out: DType, target: str) -> None:
    numbers, codes = tie_table(out, True)
    with np.errstate(over="ignore"):
        twice = native(identity(), [(numbers.astype(np.float32).view(np.uint32), F32)], out, target=target).codes
    assert not np.array_equal(twice, codes), "the values cannot distinguish them"
    assert np.array_equal(native(identity(), [(numbers.view(np.uint64), F64)], out, target=target).codes, codes)


@pytest.mark.parametrize("target", [*TARGETS, "reference"])
def test_float64_to_float32_at_ties_of_random_and_subnormal_codes(target: str) -> None:
    rng = np.random.default_rng(3)
    low = np.concatenate([rng.integers(0, LARGEST[F32], 20000), np.arange(3000), LARGEST[F32] - 1 - np.arange(3000)])
    low = np.concatenate([low, (1 << 23) - 1500 + np.arange(3000)]).astype(np.int64)
    below, above = (values_of(codes, F32) for codes in (low, low + 1))
    middle = (below + above) / 2
    numbers = np.concatenate([np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf)])
    codes = np.concatenate([low, low + (low & 1), low + 1])
    numbers, codes = np.concatenate([numbers, -numbers]), np.concatenate([codes, codes | SIGN[F32]]).astype(np.uint32)
    inputs = [(numbers.view(np.uint64), F64)]
    got = expected(identity(), inputs, F32) if target == "reference" else native(identity(), inputs, F32, target=target)
    assert np.array_equal(got.codes, codes)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_float32_ties_are_rounded_as_torch_rounds_them(dtype: DType) -> None:
    numbers, codes = tie_table(dtype, False)
    assert np.array_equal(torch_cast(numbers.view(np.uint32), F32, dtype), codes)


# ---- limits, policies, NaN

OVERFLOWS = {
    "default": {F8_E4M3: "largest", F8_E5M2: "largest"},
    "inf": {},
    "saturate": dict.fromkeys(FLOATS, "largest"),
}


@pytest.mark.parametrize("target", [*TARGETS, "reference"])
@pytest.mark.parametrize("overflow", POLICIES)
@pytest.mark.parametrize(
    ("out", "wide"), [(F32, True), *((out, wide) for out in SMALL for wide in (False, True))]
)  # no float32 lies between the largest one and Inf
def test_the_limit_of_each_dtype_lies_halfway_past_its_largest_value(
    out: DType, wide: bool, overflow: str, target: str
) -> None:
    kind, dtype = (np.float64, F64) if wide else (np.float32, F32)
    top, before = values_of(np.array([LARGEST[out], LARGEST[out] - 1], np.uint64), out)
    limit = kind(top + (top - before) / 2)
    inside, outside = np.nextafter(limit, kind(0)), np.nextafter(limit, kind(np.inf))
    past = INF[out] if OVERFLOWS[overflow].get(out) is None else LARGEST[out]
    at_limit = LARGEST[out] if out is F8_E4M3 else past  # 448 is the even neighbour of the tie; elsewhere Inf is
    numbers = np.array([top, inside, limit, outside, -outside], kind)
    negative = past | SIGN[out] if out is not F8_E4M3 or past != NAN[out] else past
    codes = np.array([LARGEST[out], LARGEST[out], at_limit, past, negative]).astype(CODE[out])
    inputs = [(numbers.view(CODE[dtype]), dtype)]
    if target == "reference":
        got = expected(identity(), inputs, out, overflow=overflow)
    else:
        got = native(identity(), inputs, out, overflow=overflow, target=target)
    assert [hex(code) for code in got.codes] == [hex(code) for code in codes]
    assert (got.nonfinite, got.overflow) == (0, 2 if out is F8_E4M3 else 3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_nan_is_stored_as_the_canonical_one_and_an_inf_is_carried_through(
    dtype: DType, out: DType, target: str
) -> None:
    for overflow in POLICIES:  # no policy makes a number of an Inf that came in
        codes = nans(dtype).astype(CODE[dtype])
        got = native(identity(), [(codes, dtype)], out, overflow=overflow, target=target)
        assert (got.codes == NAN[out]).all() and (got.nonfinite, got.overflow) == (codes.size, 0)
        if dtype is F8_E4M3:
            continue
        codes = np.array([INF[dtype], INF[dtype] | SIGN[dtype]], CODE[dtype])
        got = native(identity(), [(codes, dtype)], out, overflow=overflow, target=target)
        minus = NAN[out] if out is F8_E4M3 else INF[out] | SIGN[out]
        assert list(got.codes) == [INF[out], minus] and (got.nonfinite, got.overflow) == (2, 0)
