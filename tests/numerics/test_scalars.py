"""The scalar functions (csrc/scalars.h) give the bits of definitions/scalars.py everywhere."""

import math
import random
import struct

import pytest
from sdsurgery import _native
from sdsurgery.definitions import scalars

INF, NAN = math.inf, math.nan
UNARY = ["sqrt", "sin", "cos", "acos", "exp", "log"]
LEAST, LARGEST = 5e-324, 1.7976931348623157e308
SPECIAL = [0.0, 5e-324, 2.2250738585072014e-308, 1e-300, 2.0**-54, 2.0**-27, 0.5, 1.0, 1.5, 2.0, 3.0, 2.0**53, 1e308]
SPECIAL = [sign * x for x in [*SPECIAL, INF, LARGEST, math.pi, math.pi / 2] for sign in (1, -1)] + [NAN]


def bits(x: float) -> str:
    return f"{struct.unpack('<Q', struct.pack('<d', x))[0]:016x}"


def from_bits(code: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", code))[0]


def check(name: str, *arguments: float) -> None:
    native, reference = bits(_native.scalar(name, *arguments)), bits(getattr(scalars, name)(*arguments))
    assert native == reference, (name, [x.hex() for x in arguments])


def around(x: float, steps: int = 3) -> list[float]:
    code = struct.unpack("<Q", struct.pack("<d", x))[0]
    return [from_bits(code + step) for step in range(-steps, steps + 1)]


@pytest.mark.parametrize("name", UNARY)
def test_special_values(name):
    for x in SPECIAL:
        check(name, x)
    nan_with_payload = from_bits(0xFFF4000000000123)
    assert bits(_native.scalar(name, nan_with_payload)) == "7ff8000000000000"
    assert bits(getattr(scalars, name)(nan_with_payload)) == "7ff8000000000000"


def test_special_powers():
    for x in SPECIAL:
        for y in SPECIAL:
            check("pow", x, y)


@pytest.mark.parametrize(
    ("x", "y", "power"),
    [
        (-0.0, -3.0, -INF), (-0.0, -2.0, INF), (-0.0, 3.0, -0.0), (-0.0, 2.5, 0.0), (-0.0, -INF, INF),
        (-1.0, INF, 1.0), (-1.0, 3.0, -1.0), (1.0, NAN, 1.0), (NAN, 0.0, 1.0), (0.5, -INF, INF), (2.0, -INF, 0.0),
        (-INF, 3.0, -INF), (-INF, -3.0, -0.0), (-INF, 2.0, INF), (-INF, -0.5, 0.0), (INF, -1.0, 0.0),
        (-8.0, 1.0, -8.0), (-2.0, 1023.0, -(2.0**1023)), (-2.0, 1025.0, -INF), (-2.0, -1075.0, -0.0),
        (2.0, -1074.0, LEAST), (2.0, -1075.0, 0.0), (-LARGEST, 1.0, -LARGEST), (4.0, 0.5, 2.0),
    ],
)  # fmt: skip
def test_powers_of_c99(x, y, power):
    assert bits(_native.scalar("pow", x, y)) == bits(power) == bits(scalars.pow(x, y))
    assert bits(_native.scalar("pow", -2.0, 0.5)) == "7ff8000000000000" == bits(scalars.pow(-2.0, 0.5))


MORE = pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])


@MORE
@pytest.mark.parametrize("name", UNARY)
def test_random_arguments(name, times):
    draw = random.Random(f"scalars {name}")
    for _ in range(800 * times):
        check(name, from_bits(draw.getrandbits(64)))  # every exponent
    for _ in range(800 * times):
        x = draw.uniform(-1, 1) if name == "acos" else draw.uniform(-750, 750)
        check(name, abs(x) if name in {"log", "sqrt"} else x)
    for _ in range(300 * times):
        check(name, 1 - draw.random() * 2.0 ** -draw.randrange(53))
        check(name, draw.choice([-1, 1]) * draw.random() * 2.0 ** -draw.randrange(60))


@MORE
def test_random_powers(times):
    draw = random.Random("scalars pow")
    for _ in range(500 * times):
        check("pow", from_bits(draw.getrandbits(64)), from_bits(draw.getrandbits(64)))
    for _ in range(1000 * times):
        x = abs(from_bits(draw.getrandbits(63))) or 1.0
        if math.isfinite(x) and x != 1:
            check("pow", x, draw.uniform(-1080, 1030) / math.log2(x))  # every exponent of the result
    for _ in range(400 * times):
        check(
            "pow", 1 + draw.uniform(-1, 1) * 2.0 ** -draw.randrange(50), draw.uniform(-1, 1) * 2.0 ** draw.randrange(60)
        )


def test_powers_that_end_in_a_middle_are_rounded_to_even():
    draw = random.Random("middles")
    for _ in range(1500):
        x = float(draw.randrange(2**26, 2**27) | 1)  # its square has 53 or 54 bits
        exact = int(x) ** 2
        assert _native.scalar("pow", x, 2.0) == float(exact)
        assert _native.scalar("pow", x * 2.0**-537, 2.0) == exact / 2**1074  # subnormal, or close to it
    for x in (3.0, 5.0, 7.0, 9.0, 15.0):
        for y in range(2, 35):
            assert _native.scalar("pow", x, float(y)) == float(int(x) ** y)
    check("pow", 94906267.0, 2.0)
    check("pow", 3.0 * 2.0**-538, 2.0)


@MORE
def test_near_multiples_of_half_pi(times):
    draw = random.Random("quarter turns")
    import mpmath

    context = mpmath.MPContext()
    context.prec = 1200
    for _ in range(150 * times):
        k = draw.randrange(1, 2 ** draw.randrange(1, 1020))
        for x in around(float(context.mpf(k) * context.pi / 2), 1):
            check("sin", x)
            check("cos", -x)
    # The float64 that is closest to a multiple of π/2 (Kahan; Muller, "Elementary functions").
    for x in around(6381956970095103 * 2.0**797) + around(2.0**1023):
        check("sin", x)
        check("cos", x)


def test_hard_cases():
    """Results within 2^-55 to 2^-89 of a last place of a middle, or of a float64, and their neighbours.

    Most are from Lefèvre & Muller (2001) and the tables that followed; all were measured with mpmath at 400 bits.
    """
    hard = {
        "exp": ["0x1.accfbe46b4ef0p-1", "0x1.83d4bcdebb3f4p+2", "-0x1.0p-54"],
        "log": ["0x1.62a88613629b6p+678"],
        "sin": ["0x1.e0000000001c2p-20", "0x1.598bae9e632f6p-7"],
        "cos": ["0x1.8000000000009p-23", "0x1.06b505550e6b2p-9"],
        "acos": ["0x1.fd737be914578p-11"],
    }
    for name, arguments in hard.items():
        for argument in arguments:
            for x in around(float.fromhex(argument)):
                check(name, x)
    for x in [*around(1.0), LEAST, 2 * LEAST, 2.0**-1022 - LEAST]:
        check("log", x)
    for edge in (709.782712893384, -745.1332191019411, -708.3964185322641, -744.4400719213812):
        for x in around(edge):
            check("exp", x)


RANGES = {"sin": (-50, 50), "cos": (-50, 50), "acos": (-1, 1), "exp": (-700, 700), "log": (0, 50)}


@pytest.mark.parametrize("name", RANGES)
def test_within_one_place_of_the_c_library(name):
    draw = random.Random(name)
    for _ in range(5000):
        x = draw.uniform(*RANGES[name])
        expected = getattr(math, name)(x)
        assert abs(_native.scalar(name, x) - expected) <= math.ulp(expected)


def test_unknown_function():
    with pytest.raises(_native.Error):
        _native.scalar("tan", 1.0)
