"""Formulas written as text, methods from a file, variants and the kinds of parameters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from sdsurgery.functions import norm
from sdsurgery.methods.registry import Across, get


def arrays(count: int = 3, shape: tuple[int, ...] = (12, 20)) -> list[np.ndarray]:
    return list(np.random.default_rng(3).normal(size=(count, *shape)).astype(np.float32))


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> list[str]:
    from safetensors.numpy import save_file

    paths = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    for path, array in zip(paths, arrays(), strict=True):
        save_file({"x.weight": array}, path)
    return paths


SAME = {
    "A + k*(B - C)": lambda a, b, c, k: a + k * (b - c),
    "A - -B*2 + +C": lambda a, b, c, k: a - -b * np.float32(2) + c,
    "A^2 + 2*k^2*B - C": lambda a, b, c, k: np.power(a, 2) + np.float32(2.0 * (0.7 * 0.7)) * b - c,
    "A + k * where(abs(B-C) > 0.5, B-C, 0)": lambda a, b, c, k: a + k * np.where(abs(b - c) > 0.5, b - c, 0),
    "(A > B)*A + (A <= B)*B - (A > C) * (B != C)": lambda a, b, c, k: np.maximum(a, b) - (a > c) * (b != c),
    "A − k·B÷2×C": lambda a, b, c, k: a - k * b / np.float32(2) * c,
    "½*A² – max(A, B, C)⋅min(A, B)": lambda a, b, c, k: (
        np.float32(0.5) * np.power(a, 2) - np.maximum(np.maximum(a, b), c) * np.minimum(a, b)
    ),
    "(A ≥ B)*A + median(A, B, C)": lambda a, b, c, k: (a >= b) * a + np.median([a, b, c], axis=0),
    "A*C/B*C": lambda a, b, c, k: a * c / b * c,
    "minimum(A, maximum(B, C)) - mean(A, axis=-1)": lambda a, b, c, k: (
        np.minimum(a, np.maximum(b, c)) - a.astype(float).mean(-1, keepdims=True).astype(np.float32)
    ),
}


@pytest.mark.parametrize("text", SAME)
def test_a_formula_gives_what_the_same_expression_gives_in_numpy(text: str) -> None:
    a, b, c = arrays()
    formula = sds.formula(text)
    given: dict[str, Any] = {"k": 0.7} if "k" in get(formula).params else {}
    count = len(get(formula).inputs)
    got = sds.apply(formula, *(a, b, c)[:count], **given)
    wanted = SAME[text](a, b, c, np.float32(0.7))  # type: ignore[no-untyped-call]
    assert np.allclose(got, wanted, rtol=2e-7, atol=1e-7)
    body = np.asarray(get(formula).body(*(a, b, c)[:count], **given))
    assert np.array_equal(got, body)


def test_a_formula_is_the_built_in_method_bit_for_bit() -> None:
    a, b, c = arrays()
    assert np.array_equal(sds.apply(sds.formula("A + 0.7*(B - C)"), a, b, c), sds.apply("add-diff", a, b, c, alpha=0.7))
    many = sds.formula("+".join(["A", "B"] * 1000))  # no limit by the depth of Python's stack
    assert sds.apply(many, a, b).shape == a.shape


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1/0*A", "character 2: '/' has no value"),
        ("A + sqrt(-1)", "character 5: 'sqrt' has no value"),
        ("maximum(A, B, C)", "character 1: maximum: the maximum takes two tensors"),
        ("norm(A)", "character 1: the formula gives one number"),
    ],
)
def test_what_has_no_value_is_refused_where_it_is_evaluated(text: str, words: str) -> None:
    with pytest.raises(sds.UsageError, match=re.escape(words)):
        sds.apply(sds.formula(text), *arrays(len(get(sds.formula(text)).inputs)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A + sqr(B)", "character 5: there is no function 'sqr'; did you mean 'sqrt'"),
        ("A + (B", "')' is missing at its end"),
        ("max(A, B", "')' is missing at its end"),
        ("A + 3 B", "character 7: an operator is expected before 'B'"),
        ("3*k", "the formula has no input"),
        ("A $ B", "character 3: '$' has no meaning"),
        ("A < B < C", "character 7: one comparison cannot follow another"),
        ("A = B", "equal is =="),
        ("A0 + B", "character 1: the input 'A0' is written A"),
        ("A + threads*B", "character 5: a number cannot be called 'threads', which is an option of merge"),
        ("A*map", "character 3: a number cannot be called 'map'"),
        ("A + 1e400*B", "character 5: 1e400 is too large"),
        ("max()", "character 1: max takes a, …; 0 given"),
        ("A + B*" * 800 + "?", "character 4801: a value is expected, not '?': …"),
        ("A + sqrt(A, B)", "character 5: sqrt takes x; 2 given"),
        ("A + sqrt()", "character 5: sqrt takes x; 0 given"),
        ("sqrt + A", "character 1: 'sqrt' is a function"),
        ("A *", "a value is missing at its end"),
        ("A + __import__('os')", "there is no function '__import__'"),
        ("A.shape", "character 2: '.' has no meaning"),
        ("A + lambda: 1", "character 11: ':' has no meaning"),
        ("-" * 101 + "A", "character 101: more than 100 brackets and signs within each other"),
        ("(" * 101 + "A" + ")" * 101, "more than 100 brackets and signs within each other"),
        ("A" * 10001, "longer than 10000 characters"),
        ("", "a value is missing at its end"),
    ],
)
def test_what_is_no_formula_is_refused_at_its_character(text: str, words: str) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.formula(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mean(A)", "gives one number, not a tensor"),
        ("A + acos(A)", "character 5: acos: "),
        ("A + mean(A, axis=5)", "character 5: mean: "),
        ("A + mean(3)", "character 5: mean: "),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_its_character(text: str, words: str) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.apply(sds.formula(text), *arrays(1))
    assert words in str(caught.value)


def test_the_numbers_of_a_formula_are_set_swept_and_differ_by_rule(files: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "o.safetensors"
    words = ["merge", "--formula", "A + k*(B - C)", *files, "-o", str(out), "--quiet"]
    done(command(*words, "--set", "k=0.7"))
    a, b, c = arrays()
    assert np.array_equal(load_file(out)["x.weight"], a + np.float32(0.7) * (b - c))
    (tmp_path / "rules.txt").write_text("x = 0.25\n")
    done(command(*words, "--set", "k=0.7", "--rules", str(tmp_path / "rules.txt"), "--force"))
    assert np.array_equal(load_file(out)["x.weight"], a + np.float32(0.25) * (b - c))
    done(command(*words[:-3], "-o", str(tmp_path / "o-{k}.safetensors"), "--set", "k=0.1,0.2"))
    assert sorted(path.name for path in tmp_path.glob("o-*")) == ["o-0.1.safetensors", "o-0.2.safetensors"]
    refused(command(*words, "--force"), 2, "needs a number for k")
    refused(command(*words, "--set", "z=1", "--force"), 2, "has no parameter 'z'")
    refused(command(*words, "--set", "k", "--force"), 2, "'k' is not NAME=NUMBER")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--formula A+k*B --set k=1 --set k=2", "k is given twice"),
        (
            "--formula A+alpha*B --alpha 0.5",
            "no option '--alpha': a number of the formula is given as --set alpha=NUMBER",
        ),
        ("--formula A+k*B --set k=1 --variant lerp", "--variant goes with --method"),
        ("--formula quantile(A,2)*B", "character 1: quantile: quantile takes a share from 0 to 1, not 2"),
        ("--formula A", "takes 1 input (A), 2 given"),
        ("--method weighted-sum --alpha 0.5 --set alpha=0.4", "alpha is given twice"),
        ("--method weighted-sum --adjust a,b,c,d,e,f,g,h", "argument --adjust: 'a,b,c,d,e,f,g,h' is not a list"),
        ("--method weighted-sum --adjust=", "argument --adjust: '' is not a list"),
        ("--method slerp --bounds=", "clamp needs two or more inputs"),
        ("--method slerp --stiffness 0.5", "no option '--stiffness': it goes with --clamp or --bounds"),
        ("--formula A+B --stiffness 0.5", "no option '--stiffness': it goes with --clamp or --bounds"),
        ("--method slerp --d1 0.5", "no option '--d1': it is a number of --method adjust; --adjust D1,…,D8"),
        ("--method weighted-sum --beta 0.5", "no option '--beta': weighted-sum has --alpha and --weights"),
        ("--method mean --max-iter=3", "no option '--max-iter=3': mean has no number"),
        ("--method slerp --alhpa 0.5", "no option '--alhpa'; did you mean '--alpha'?"),
        ("--formula A+k*B --k 0.5", "a number of the formula is given as --set k=NUMBER"),
        ("--formula A+k*B --set k=1 --alpha 0.5", "no option '--alpha': the formula has k"),
        ("--method slerp --clamp --stiffness 2", "stiffness must be in [0, 1]"),
        ("--method model-stock", "takes 3 or more inputs (A B C …), 2 given"),
        ("--method weighted-sum --curve inverse-smoothstep --alpha 1.5", "takes a ratio from 0 to 1"),
        ("--method mean --curve smoothstep", "has no ratio alpha"),
        ("--method=", "unknown method ''"),
        ("--method clamp(A,B):slerp --clamp", "has one of that name already"),
        ("--method adjust:slerp --adjust 1,0,0,0,0,0,0,0", "has one of that name already"),
        ("--method ties --density 0.1,0.2", "density has 2 numbers for 1 input after the first"),
        ("--method n-sum --weights 0.5,0.5 --blocks D:GRAD_V", "no ratio 'D'"),
    ],
)
def test_hostile_options_are_refused_in_one_line(words: str, text: str, files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    refused(command("merge", *words.split(), *files[:2], "-o", str(out)), 2, text)
    assert not out.exists()


def test_a_formula_is_a_recipe_that_survives_json(files: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    recipe = sds.formula("A + k*(B - C)")(*files, k=0.5)
    assert sds.recipe_from_json(recipe.to_json()) == recipe
    recipe.save(tmp_path / "o.safetensors")
    a, b, c = arrays()
    assert np.array_equal(load_file(tmp_path / "o.safetensors")["x.weight"], a + np.float32(0.5) * (b - c))


METHOD_FILE = '''
from sdsurgery.functions import where
from sdsurgery.methods import Param, method

@method("larger-of-two", inputs="A B", share=Param(0.5, "share of the larger"))
def larger(a, b, share):
    """A, moved towards the larger of A and B."""
    return a + share * (where(abs(b) > abs(a), b, a) - a)
'''


def test_the_numbers_of_a_bounded_formula_may_be_called_like_options(files: list[str], tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.safetensors" for name in ("quiet", "plain")]
    for name, out in zip(("quiet", "k"), outs, strict=True):
        more = ("--formula", f"A + {name}*B", "--set", f"{name}=0.3", "--clamp", "--stiffness", "0.5", "--no-recipe")
        done(command("merge", *files[:2], *more, "--title", "x", "-o", out))
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("name", "option"), [("threads", "--threads"), ("out", "-o/--out/--output"), ("set", "--set")])
def test_a_parameter_that_is_called_like_an_option_is_refused(
    name: str, option: str, files: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from sdsurgery.methods import Param, method\n"
        f'method("clash-{name}", inputs="A B", {name}=Param(1.0, "x"))(lambda a, b, **_: a)\n'
    )
    words = f"clash-{name} has a parameter that is called like the option {option}; give it another name"
    refused(command("merge", *files[:2], "--method-file", path, "--method", f"clash-{name}", "-o", "x"), 2, words)


@pytest.mark.usefixtures("registry")
def test_a_method_file_adds_its_methods_to_one_command(files: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path, out = tmp_path / "my.py", tmp_path / "o.safetensors"
    path.write_text(METHOD_FILE)
    words = ["merge", "--method", "larger-of-two", "--share", "1", *files[:2], "-o", str(out)]
    refused(command(*words), 2, "unknown method 'larger-of-two'")
    other = tmp_path / "other.py"
    other.write_text(METHOD_FILE.replace("larger-of-two", "larger-of-both"))
    done(command(*words, "--method-file", str(path), "--method-file", str(other)))
    a, b, _ = arrays()
    assert np.array_equal(load_file(out)["x.weight"], a + (np.where(abs(b) > abs(a), b, a) - a))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("x = 1\ny = 1/0\n", 2, "bad.py, line 2: ZeroDivisionError"),
        ("x = (\n", 2, "bad.py, line 1: SyntaxError"),
        ("x = 1\n", 2, "registers no method"),
        (None, 3, "No such file"),
    ],
)
def test_a_method_file_that_fails_is_one_line(
    files: list[str], tmp_path: Path, text: str | None, code: int, words: str
) -> None:
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    refused(command("merge", "--method-file", str(path), "--method", "slerp", *files[:2], "--dry-run"), code, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("a if a > b else b", "mine, line 7 of mine.py: a method's body cannot branch on a tensor's values"),
        ("a.reshape(-1)", "mine, line 7 of mine.py: a method's body uses '.reshape' of a tensor"),
        ("{}['k']", "mine, line 7 of mine.py: KeyError: 'k'"),
        ("'text'", "mine: a method's body must return a combination of its inputs, not str"),
        ("a + whole(np.linalg.inv, a)", "a method's function failed: LinAlgError"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_method_whose_body_fails_is_one_line(files: list[str], tmp_path: Path, body: str, words: str) -> None:
    before = "import numpy as np\nfrom sdsurgery.functions import whole\nfrom sdsurgery.methods import method\n\n"
    method = f"@method('mine', inputs='A B')\ndef mine(a, b):\n    return {body}\n"
    path = tmp_path / "mine.py"
    path.write_text(before + method)
    found = command("merge", "--method-file", path, "--method", "mine", *files[:2], "-o", tmp_path / "o.safetensors")
    refused(found, 2, words.replace("mine.py", str(path)))


@pytest.mark.parametrize(
    ("combined", "words"),
    [("1/0", "its statistics of whole models: ZeroDivisionError"), ("[1, 2]", "are largest; 2 given")],
)
def test_statistics_of_whole_models_that_fail_are_one_line(combined: str, words: str) -> None:
    across = Across(("largest",), lambda a, b: norm(b - a), lambda found: eval(combined))
    with pytest.raises(sds.UsageError, match=words):
        across.known(get("weighted-sum"), np.ones(3))


# ---- variants and parameters


def test_a_variant_is_a_method_called_with_a_dot() -> None:
    a, b, _ = arrays()
    plain = sds.apply("weighted-sum", a, b, alpha=0.3)
    lerp = sds.apply("weighted-sum", a, b, alpha=0.3, variant="lerp")
    assert not np.array_equal(plain, lerp)
    assert np.array_equal(lerp, sds.apply("weighted-sum.lerp", a, b, alpha=0.3))
    with pytest.raises(sds.UsageError, match="weighted-sum has no variant 'larp'; did you mean 'lerp'"):
        sds.apply("weighted-sum", a, b, variant="larp")
    with pytest.raises(sds.UsageError, match="slerp has no variant 'flat'; it has norm"):
        sds.apply("slerp", a, b, variant="flat")


@pytest.mark.parametrize(
    ("name", "count", "given", "words"),
    [
        ("ema-chain", 2, {"decay": 1}, "ema-chain: decay must be in [0, 1), not 1"),
        ("nearswap", 2, {}, "nearswap needs a number for t"),
        ("nearswap", 2, {"t": 0}, "nearswap: t must be in (0, inf), not 0"),
        ("weighted-sum.lerp", 2, {"fused": 2}, "fused must be True or False, not 2"),
        ("n-sum", 3, {"weights": [1, 2]}, "weights has 2 numbers for 3 inputs; give one for each"),
        ("n-sum.normalised", 2, {"weights": [1, -1]}, "the weights sum to 0"),
        ("multislerp.base", 3, {"weights": [1, 2, 3]}, "for 2 inputs after the first; give one for each"),
        ("model-stock", 2, {}, "model-stock takes 3 or more inputs (A B C …), 2 given"),
        ("weighted-subtract", 2, {"alpha": 1, "beta": 1}, "alpha·beta is 1"),
    ],
)
def test_parameters_are_refused_with_what_was_expected(name: str, count: int, given: Any, words: str) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.apply(name, *arrays(count), **given)
    assert words in str(caught.value)


def test_one_number_stands_for_all_inputs() -> None:
    several = arrays(4)
    one, each = (sds.apply("n-sum.normalised", *several, weights=given) for given in (2.0, [2.0] * 4))
    assert np.array_equal(one, each)


def test_the_weight_of_one_input_differs_by_rule(files: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "o.safetensors"
    sds.merge("n-sum", files, weights=[0.5, 0.3, 0.2], rules={"B": {"x": 0.75}}, out=out)
    a, b, c = arrays()
    numbers = [np.float32(number) for number in (0.5, 0.75, 0.2)]
    assert np.array_equal(load_file(out)["x.weight"], numbers[0] * a + numbers[1] * b + numbers[2] * c)
    with pytest.raises(sds.UsageError, match="has no ratio 'D'"):
        sds.merge("n-sum", files, weights=[0.5, 0.3, 0.2], rules={"D": {"x": 0.75}}, dry_run=True)


# ---- modifiers


def test_clamp_keeps_the_result_between_inputs(files: list[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "o.safetensors"
    words = ["merge", "--method", "add-diff", "--alpha", "2", *files, "-o", str(out), "--force"]
    a, b, c = arrays()
    mixed = a + np.float32(2) * (b - c)
    for more, bounds in (["--clamp"], (a, b)), (["--bounds", "A,B,C"], (a, b, c)):
        done(command(*words, *more))
        low, high = np.minimum.reduce(bounds), np.maximum.reduce(bounds)
        assert np.array_equal(load_file(out)["x.weight"], np.clip(mixed, low, high))
    assert np.array_equal(
        sds.apply("clamp(A,B):add-diff", a, b, c, alpha=2), np.clip(mixed, np.minimum(a, b), np.maximum(a, b))
    )
    stiff = sds.apply("clamp(A,B,C):add-diff", a, b, c, alpha=2, stiffness=0.5)
    assert np.array_equal(stiff, sds.apply("clamp", mixed, a, b, c, stiffness=0.5))
    refused(command(*words, "--bounds", "A,Q"), 2, "no input Q of add-diff, whose last one is C")
    several = ["merge", "--method", "mean", *files, "-o", str(out), "--force"]
    refused(command(*several, "--bounds", "A,D"), 2, "no input D of mean, whose last one is C")
    refused(command(*words, "--bounds", "A"), 2, "clamp needs two or more inputs")


def test_a_curve_shapes_the_ratio_of_any_method() -> None:
    a, b, _ = arrays()
    shaped = 0.3 * 0.3 * (3 - 2 * 0.3)
    assert np.array_equal(sds.apply("smoothstep:slerp", a, b, alpha=0.3), sds.apply("slerp", a, b, alpha=shaped))
    back = sds.apply("inverse-smoothstep:slerp", a, b, alpha=shaped)
    assert np.allclose(back, sds.apply("slerp", a, b, alpha=0.3), rtol=1e-6)
    with pytest.raises(sds.UsageError, match="ram has no ratio alpha"):
        sds.apply("smoothstep:ram", a, b)
    with pytest.raises(sds.UsageError, match="takes a ratio from 0 to 1"):
        sds.apply("inverse-smoothstep:slerp", a, b, alpha=2)
