"""Tracing: a method's body becomes steps that give the same bits; one function adds a method everywhere."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numeric_tools import TARGETS, expected, native, plain, wild
from sdsurgery.backends import cpu
from sdsurgery.definitions.programs import run_steps
from sdsurgery.dtypes import BF16, F16, F32, F64, DType
from sdsurgery.errors import UsageError
from sdsurgery.functions import maximum, minimum, sqrt, where
from sdsurgery.interop import calls
from sdsurgery.methods import Method, Param, Whole, get, method, registered
from sdsurgery.program import CONSTANT, INPUT, TEMP, Formula
from sdsurgery.program.tracing import body_of, trace


def traced(body: Callable[..., Any], count: int = 2, **params: Any) -> Formula:
    return trace(Method("test", tuple("ABCDEFGH"[:count]), {}, body), count, params)


# ---- tracing


def test_a_body_is_traced_once_and_its_numbers_are_filled_in() -> None:
    calls = []

    def body(a: Any, b: Any, alpha: float, beta: float) -> Any:
        calls.append(alpha)
        return a * (1 - alpha) + b * sqrt(abs(beta) / 2) + minimum(alpha, beta)

    traced_body = body_of(Method("test", ("A", "B"), {}, body), 2, {"alpha": 1.0, "beta": 2.0})
    for alpha, beta in ((0.25, 8.0), (0.1, -2.0)):
        formula = traced_body.formula({"alpha": alpha, "beta": beta})
        assert formula.program is traced_body.program
        assert formula.numbers == (1 - alpha, math.sqrt(abs(beta) / 2), min(alpha, beta))
    assert len(calls) == 1


def test_a_body_that_branches_on_a_parameter_is_traced_for_each_number() -> None:
    def body(a: Any, b: Any, alpha: float) -> Any:
        return a * math.sqrt(alpha) if alpha > 0.5 else b

    traced_body = body_of(Method("test", ("A", "B"), {}, body), 2, {"alpha": 1.0})
    assert traced_body.formula({"alpha": 0.64}).numbers == (0.8,)
    assert traced_body.formula({"alpha": 0.1}).program.result == (INPUT, 1)


def test_a_body_that_counts_its_steps_is_traced_once_for_all_ratios() -> None:
    traced = 0

    def body(a: Any, b: Any, *, alpha: float, steps: float) -> Any:
        nonlocal traced
        traced += 1
        for _ in range(int(steps)):
            a = a + alpha * (b - a)
        return a

    params = {"alpha": Param(0.5, "share"), "steps": Whole(2, "steps")}
    found = body_of(Method("test", ("A", "B"), params, body), 2, {"alpha": 0.5, "steps": 2.0})
    before = traced
    formulas = [found.formula({"alpha": alpha, "steps": 2.0}) for alpha in (0.25, 0.75)]
    assert traced == before
    assert [set(formula.numbers) for formula in formulas] == [{0.25}, {0.75}]
    assert len(formulas[0].program.steps) == 6
    assert len(found.formula({"alpha": 0.5, "steps": 3.0}).program.steps) == 9


def test_a_parameter_that_every_step_of_an_iteration_uses_is_one_constant() -> None:
    method = get("geometric-median")
    counts = [trace(method, 20, method.bind(20, {"maxiter": steps})).program.constants for steps in (2, 100)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("body", "alpha", "words"),
    [
        (lambda a, alpha: a / (1 / alpha), 0.0, "division by zero"),
        (lambda a, alpha: a / (1 / alpha) if alpha < 2 else a, 0.0, "division by zero"),  # traced for each number
        (lambda a, alpha: a * sqrt(alpha), -1.0, "math domain error|expected a nonnegative"),
        (lambda a, alpha: a * alpha**0.5, -1.0, "not a real number"),
        (lambda a, alpha: a * alpha**9, 1e200, "Result too large|out of range"),
    ],
)
def test_numbers_without_a_value_are_one_line(body: Callable[..., Any], alpha: float, words: str) -> None:
    method = Method("test", ("A",), {}, body)
    match = rf"test cannot be computed with alpha {re.escape(f'{alpha:g}')}: .*({words})"
    with pytest.raises(UsageError, match=match) as caught:
        body_of(method, 1, {"alpha": 1.0}).formula({"alpha": alpha})
    assert "\n" not in str(caught.value)


def test_choices_between_parameters_are_constants() -> None:
    def body(a: Any, alpha: float, beta: float) -> Any:
        return a * where(alpha, beta, 2.0) + maximum(alpha, beta) - where(1.0, alpha, beta)

    traced_body = body_of(Method("test", ("A",), {}, body), 1, {"alpha": 1.0, "beta": 1.0})
    assert traced_body.program is not None
    assert traced_body.formula({"alpha": 0.0, "beta": 3.0}).numbers == (2.0, 3.0, 0.0)
    assert traced_body.formula({"alpha": 0.5, "beta": -3.0}).numbers == (-3.0, 0.5, 0.5)


@pytest.mark.parametrize("smaller", [minimum, maximum])
def test_a_nan_among_plain_numbers_is_carried(smaller: Callable[..., float]) -> None:
    assert math.isnan(smaller(math.nan, 1.0)) and math.isnan(smaller(1.0, math.nan))


def test_a_program_and_its_numbers_survive_pickling() -> None:
    formula = trace(get("add-diff"), 3, {"alpha": 0.1})
    assert pickle.loads(pickle.dumps(formula)) == formula


def test_fused_kernels_are_recognised_by_the_shape_only() -> None:
    one, other = (traced(lambda a, b, c=c: c * a + (2 - c) * b) for c in (0.5, 7.0))
    swapped = traced(lambda a, b: 0.5 * b + 0.5 * a)
    programs = [cpu.native_program(formula.program, False) for formula in (one, other, swapped)]
    assert programs[0].id == programs[1].id and [program.fused for program in programs] == [True, True, False]


def test_steps_are_in_the_order_of_evaluation_and_constants_are_float64() -> None:
    formula = trace(get("add-diff"), 3, {"alpha": 0.1})
    assert formula.numbers == (0.1,)
    assert formula.program.steps == (
        ("sub", ((INPUT, 1), (INPUT, 2)), 0),
        ("mul", ((CONSTANT, 0), (TEMP, 0)), 1),
        ("add", ((INPUT, 0), (TEMP, 1)), 0),
    )
    assert formula.program.result == (TEMP, 0)


def test_arithmetic_on_parameters_alone_happens_in_float64() -> None:
    formula = trace(get("weighted-sum"), 2, {"alpha": 0.9999, "weights": None})
    assert formula.numbers == (1 - 0.9999, 0.9999)
    assert np.float32(1 - 0.9999) != np.float32(1) - np.float32(0.9999), "the value cannot distinguish them"


def test_a_program_without_steps_is_its_input() -> None:
    formula = traced(lambda a, b: b)
    assert (formula.program.steps, formula.program.result) == ((), (INPUT, 1))


def test_temps_are_used_again() -> None:
    def long_sum(a: Any, b: Any) -> Any:
        total = a * b
        for _ in range(300):
            total = total + a * b
        return total

    temps = {step[2] for step in traced(long_sum).program.steps}
    assert len(temps) <= 3


def test_a_temp_that_is_still_needed_is_not_overwritten() -> None:
    def body(a: Any, b: Any) -> Any:
        d = a - b
        e = d * d
        return (e + d) * (e - d) + d

    formula, (x, y) = traced(body), np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    assert np.array_equal(run_steps(formula, [x, y]), body(x, y))
    assert len(formula.program.steps) == 6, "a shared value is computed once"


def test_formulas_of_one_shape_share_a_program_and_keep_their_own_numbers() -> None:
    plus, minus = (traced(lambda a, b, c=c: a + c * b) for c in (0.0, -0.0))
    assert plus.program == minus.program and hash(plus.program) == hash(minus.program)
    assert [number.hex() for number in (*plus.numbers, *minus.numbers)] == [(0.0).hex(), (-0.0).hex()]


def test_a_value_used_twice_at_every_step_stays_a_small_program() -> None:
    def doubled(a: Any, b: Any) -> Any:
        for _ in range(200):
            a = a * b + a
        return a

    formula = traced(doubled)
    assert len(formula.program.steps) == 400
    x = np.array([0.5, -2, 0], np.float32)
    given = [(x.view(np.uint32), F32)] * 2
    assert not native(formula, given, F32).differs(expected(formula, given, F32))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda a, b: a if a else b, "cannot branch"),
        (lambda a, b: a + (b and 1), "cannot branch"),
        (lambda a, b: a + "1", "not with str"),
        (lambda a, b: a * True, "not with bool"),
        (lambda a, b: None * a, "not with NoneType"),
        (lambda a, b: a + np.ones(3), "ndarray"),
        (lambda a, b: a * 1j, "not with complex"),
        (lambda a, b: 1.5, "must return a combination of its inputs, not float"),
        (lambda a, b: None, "must return a combination of its inputs, not NoneType"),
        (lambda a, b: a**b, r"unsupported operand.*: a tensor and a tensor; a method's body may use"),
        (lambda a, b: a @ b, r"unsupported operand.*: a tensor and a tensor; a method's body may use"),
        (lambda a, b: a.mean(), "uses '.mean' of a tensor"),
        (lambda a, b: a[0], "a tensor is not subscriptable; a method's body may use"),
        (lambda a, b: np.sin(a), "a tensor which has no callable sin method; a method's body may use"),
        (lambda a, b: math.sin(a), "not a tensor; a method's body may use"),
    ],
)
def test_what_cannot_be_traced_is_a_type_error_that_says_so(body: Callable[..., Any], words: str) -> None:
    with pytest.raises(TypeError, match=words) as error:
        traced(body)
    assert "Symbol" not in str(error.value)


# ---- expressions


def left(a: Any, b: Any) -> Any:
    for number in range(100):
        a = (a + b) * 0.99 - number * 1e-3
    return a


def right(a: Any, b: Any) -> Any:
    total = a
    for _ in range(40):
        total = a * 0.5 - (b - total * 0.25)
    return total


def balanced(a: Any, b: Any) -> Any:
    level = [a * (0.5 + n) - b / (1.5 + n) for n in range(32)]
    while len(level) > 1:
        level = [x * 0.7 + y for x, y in zip(level[::2], level[1::2], strict=True)]
    return level[0]


EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "division": lambda a, b: a / b,
    "division by a number": lambda a, b: a / 3 + 3 / b,
    "negation": lambda a, b: -a - -(b * -1),
    "absolute value": lambda a, b: abs(a) - abs(-b),
    "zeros of both signs": lambda a, b: (-a + a) + -abs(b * 0),
    "numbers on the left": lambda a, b: 1 - a + (2.5 - b) * 0.1,
    "same input twice": lambda a, b: a * a - a / a + b,
    "integer numbers": lambda a, b: 3 * a - 16777217 * b,
    "left-nested": left,
    "right-nested": right,
    "balanced": balanced,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_any_expression_gives_the_bits_of_its_body_on_numpy(name: str, target: str) -> None:
    body, rng = EXPRESSIONS[name], np.random.default_rng(11)
    formula = traced(body)
    for values in (plain, wild):
        for dtypes, out in (((F32, F32), F32), ((F16, BF16), F16), ((F64, F32), F64), ((F16, F16), F32)):
            given = [(values(dtype, 1100, rng), dtype) for dtype in dtypes]
            got = native(formula, given, out, target=target)
            difference = got.differs(expected(formula, given, out))
            assert not difference, f"{values.__name__} {dtypes} to {out}: {difference}"
            if out in (F32, F64) and out in dtypes:
                check_against_body(body, given, out, got.codes)


def check_against_body(body: Callable[..., Any], given: list[Any], out: DType, codes: np.ndarray) -> None:
    kind = np.float64 if out is F64 else np.float32
    with np.errstate(all="ignore"):
        arrays = [array.view(np.float64 if dtype is F64 else np.float32).astype(kind) for array, dtype in given]
        result = body(*arrays)
    assert result.dtype == kind
    nan = np.isnan(result)
    assert np.array_equal(np.isnan(codes.view(kind)), nan)
    assert np.array_equal(codes[~nan], result[~nan].view(codes.dtype))


def test_a_formula_that_needs_too_much_is_refused_by_the_engine_with_one_line() -> None:
    def deep(a: Any, b: Any) -> Any:  # every left part waits for its right part
        parts = [a * (n + 0.5) for n in range(1100)]
        total = parts.pop()
        while parts:
            total = parts.pop() - total
        return total

    for formula in (traced(deep), traced(lambda a, b: sum((a * float(n) for n in range(2100)), b))):
        with pytest.raises(Exception, match=r"too many intermediate|at most 2048") as caught:
            cpu.native_program(formula.program, False)
        assert "\n" not in str(caught.value)


def test_1024_inputs_run_and_1025_are_refused_with_one_line() -> None:
    arrays = [np.full(3, n, np.float32) for n in range(1025)]
    result = calls.apply("weighted-sum", *arrays[:1024], weights=[1.0] * 1024)
    assert result.tolist() == [sum(range(1024))] * 3
    with pytest.raises(UsageError, match="at most 1024 inputs") as caught:
        calls.apply("weighted-sum", *arrays, weights=[1.0] * 1025)
    assert "\n" not in str(caught.value)


# ---- one function adds a method


def blend(a: Any, b: Any, c: Any, strength: float, floor: float) -> Any:
    """A blend that only this test knows."""
    return (a * (1 - strength) + abs(b - c) * strength) / (2 + floor) - -a


def register() -> None:
    method(
        "test-blend",
        inputs="A B C",
        strength=Param(0.25, "how much of the test"),
        floor=Param(1.5, "from where the test counts"),
    )(blend)


def command(*args: str) -> str:
    """Standard output of the command line, in a process that registers the method of this test first."""
    code = (
        "import sys, test_program; from sdsurgery import cli; test_program.register(); sys.exit(cli.run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_function_adds_a_method_to_the_command_line() -> None:
    text = command("merge", "--method", "test-blend", "--help")
    assert "--strength" in text and "--floor" in text and "how much of the test" in text
    text = command("methods")
    assert "test-blend" in text and "A blend that only this test knows." in text


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_function_adds_a_method_that_runs_natively_as_its_body(kind: type) -> None:
    register()
    rng = np.random.default_rng(2)
    arrays = list(rng.normal(size=(3, 1000)).astype(kind))
    for params in ({}, {"strength": 0.7}, {"strength": -0.1, "floor": 1e-3}):
        bound = get("test-blend").bind(3, params)
        result = calls.apply("test-blend", *arrays, **params)
        assert np.array_equal(result, blend(*arrays, **bound))


def test_one_function_adds_a_method_to_file_merges(tmp_path: Path) -> None:
    import safetensors.numpy as numpy_files

    rng = np.random.default_rng(4)
    arrays = list(rng.normal(size=(3, 7, 9)).astype(np.float32))
    files = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    for file, array in zip(files, arrays, strict=True):
        numpy_files.save_file({"w": array}, file)
    out = str(tmp_path / "out.safetensors")
    command("merge", "--method", "test-blend", *files, "--strength", "0.3", "-q", "-o", out)
    assert np.array_equal(numpy_files.load_file(out)["w"], blend(*arrays, strength=0.3, floor=1.5))


def test_the_registry_forgot_the_test_method() -> None:
    assert "test-blend" not in registered()


@pytest.mark.usefixtures("registry")
def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="there is a method add-diff already"):
        method("add-diff", inputs="A")(lambda a: a)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"alpha": 0.5}, TypeError, r"alpha is 0.5; a parameter is a Param.*, as in Param\(0.5, "),
        ({"base": "C"}, ValueError, "the method slip has no input C"),
        ({"differences": "B D"}, ValueError, "the method slip has no input D"),
    ],
)
def test_a_slip_in_a_methods_declaration_is_named(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        method("slip", inputs="A B", **given)(lambda a, b, **_: a)
    assert "slip" not in registered()


def test_a_method_registered_before_the_others_are_loaded_hides_none() -> None:
    code = (
        "from sdsurgery.methods import method, registered\n"
        "method('early', inputs='A B')(lambda a, b: a + b)\n"
        "assert {'early', 'add-diff', 'weighted-sum'} <= set(registered()), list(registered())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "count", "params", "words"),
    [
        ("add-diff", 3, {"alhpa": 1}, "did you mean"),
        ("add-diff", 3, {"alpha": float("nan")}, "must be finite"),
        ("add-diff", 3, {"alpha": "x"}, "must be a number"),
        ("add-diff", 2, {}, "takes 3 inputs"),
        ("weighted-sum", 3, {}, "takes 2 inputs"),
        ("weighted-sum", 3, {"weights": [1, 2]}, "weights has 2 numbers for 3 inputs"),
        ("weighted-sum", 2, {"weights": [1, 2], "alpha": 0.5}, "give alpha or weights, not both"),
        ("weighted-sum", 2, {"weights": 0.5}, "list of numbers"),
        ("weighted-sum", 2, {"weights": []}, "empty"),
        ("weighted-sum", 2, {"weights": [1, float("inf")]}, "must be finite"),
    ],
)
def test_wrong_parameters_are_refused_with_one_line(name: str, count: int, params: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        get(name).bind(count, params)
    assert "\n" not in str(caught.value)
