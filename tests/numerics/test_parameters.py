"""Whole numbers, seeds and ranges: a method's number is used as it was given, or refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from sdsurgery.methods import Param, Whole, get, method

BEYOND = "must lie between -2^53 and 2^53 (9007199254740992)"


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> list[str]:
    from safetensors.numpy import save_file

    paths = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    for seed, path in enumerate(paths):
        save_file({"x.weight": matrix(seed), "y.weight": matrix(seed + 9)}, path)
    return paths


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(12, 20)).astype(np.float32)


def rank_of(path: Path, name: str) -> int:
    from safetensors.numpy import load_file

    return int(np.linalg.matrix_rank(load_file(path)[name], tol=1e-4))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("truncate-rank --rank 4.5", "truncate-rank: rank must be a whole number, not 4.5"),
        ("truncate-rank --rank 4,2.5", "truncate-rank: rank must be a whole number, not 2.5"),
        ("truncate-rank --rank -1", "truncate-rank: rank must be in [0, inf), not -1"),
        ("truncate-rank.difference --rank 0.5", "rank must be a whole number, not 0.5"),
        ("karcher --max-iter 1.5", "karcher: max_iter must be a whole number, not 1.5"),
        ("geometric-median --maxiter 2.5", "geometric-median: maxiter must be a whole number, not 2.5"),
        ("dare --seed 0.5", "dare: seed must be a whole number, not 0.5"),
        ("dare --seed 9007199254740993", f"dare: seed {BEYOND}"),
        ("dare --p 1.0000001", "dare: p must be in [0, 1], not 1.0000001"),
    ],
)
def test_a_number_that_would_be_rounded_is_refused(words: str, text: str, files: list[str], tmp_path: Path) -> None:
    method, *rest = words.split()
    inputs = files[: 1 if method == "truncate-rank" else 3 if method == "geometric-median" else 2]
    out = tmp_path / "o-{rank}.safetensors" if "," in words else tmp_path / "o.safetensors"
    refused(command("merge", *inputs, "--method", method, *rest, "-o", out), 2, text)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_rank_differs_by_rule_and_is_whole_there_too(files: list[str], tmp_path: Path) -> None:
    out, rules = tmp_path / "o.safetensors", tmp_path / "rules.txt"
    rules.write_text("y = 3\n")
    words = ["merge", files[0], "--method", "truncate-rank", "--rank", "5", "--rules", str(rules), "-o", str(out)]
    done(command(*words))
    assert (rank_of(out, "x.weight"), rank_of(out, "y.weight")) == (5, 3)
    rules.write_text("y = 2.5\n")
    refused(command(*words, "--force"), 2, "truncate-rank: rank must be a whole number, not 2.5")
    with pytest.raises(sds.UsageError, match=r"mean: A\.rank must be a whole number, not 2\.5"):
        tree = sds.mean(sds.truncate_rank(files[0], rank=5, rules={"y": 2.5}), files[1])
        tree.save(tmp_path / "tree.safetensors")


def seeds() -> list[tuple[str, str]]:
    """Every parameter of every method that is a seed."""
    return [(name, each) for name, found in sds.methods().items() for each in found.params if "seed" in each]


@pytest.mark.parametrize(("name", "param"), seeds())
def test_every_seed_is_a_whole_number_that_float64_holds(name: str, param: str) -> None:
    found = sds.methods()[name]
    assert isinstance(found.params[param], Whole)
    for given in (2**53, 2**53 + 1, 1e300):
        with pytest.raises(sds.UsageError, match=f"{param} must lie between") as caught:
            found.bind(len(found.inputs), {param: given})
        assert caught.value.code == "bad_value"
    assert found.bind(len(found.inputs), {param: 2**53 - 1})[param] == 2**53 - 1


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("A + 0.1*normal(A, s)", f"s {BEYOND}"),
        ("A + bernoulli(A, 0.5, seed=s)", f"s {BEYOND}"),
        ("A + uniform(A, 9007199254740993)", "character 16: a seed must be smaller than 2^53 (9007199254740992)"),
    ],
)
def test_a_seed_in_a_formula_is_one_that_float64_holds(formula: str, text: str) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.apply(sds.formula(formula), matrix(0), **({"s": -(2**53) - 1} if "s)" in formula else {}))
    assert text in str(caught.value)
    with pytest.raises(sds.UsageError, match=r"s must be a whole number, not 1\.5"):
        sds.apply(sds.formula("A + 0.1*normal(A, s)"), matrix(0), s=1.5)


def test_a_method_of_ones_own_declares_a_whole_number_that_blocks_may_change(registry: None) -> None:
    @method("levels", inputs="A", levels=Param(4, "how many", "[1, inf)", whole=True))
    def levels(a: Any, levels: float) -> Any:
        """levels·A"""
        return levels * a

    assert np.array_equal(sds.apply("levels", matrix(0), levels=3), 3 * matrix(0))
    with pytest.raises(sds.UsageError, match=r"levels: levels must be a whole number, not 3\.25"):
        sds.apply("levels", matrix(0), levels=3.25)


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        ("weighted-sum", {"alpha": 10**400}, "alpha must be a number, not 1000"),
        ("weighted-sum", {"weights": {0.25, 0.75}}, "weights must be a list of numbers, not {"),
        ("weighted-sum", {"stiffness": 1}, "weighted-sum has no parameter 'stiffness'; it has alpha, weights"),
        ("mean", {"stiffness": 1}, "mean has no parameter 'stiffness'; it has none"),
        (
            "smoothstep:weighted-sum",
            {"weights": [0.5, 0.5]},
            "smoothstep shapes alpha, in whose place",
        ),
        ("clamp(A,A):slerp", {}, "clamp needs two or more inputs, as in A,B; not 'A,A'"),
        (5, {}, "a method is given by its name, not by 5"),
        ("slerp", {"variant": 3}, "a method is given by its name, not by 3"),
    ],
)
def test_odd_values_of_python_are_refused(method: Any, given: Any, text: str, files: list[str], tmp_path: Path) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.merge(method, files[:2], out=tmp_path / "o.safetensors", **given)
    assert text in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "o.safetensors").exists()


def test_none_is_the_default() -> None:
    a, b = matrix(0), matrix(1)
    assert np.array_equal(sds.apply("slerp", a, b, alpha=None), sds.apply("slerp", a, b))


@pytest.mark.parametrize(
    ("name", "variant", "meant"),
    [
        ("slerp", "Norm", "slerp.norm"),
        ("weighted-sum", "inverse_smoothstep", "weighted-sum.inverse-smoothstep"),
        ("Clamp(a, b):Slerp", None, "clamp(A,B):slerp"),
        ("SuperMerger:weighted_sum", None, "supermerger:weighted-sum"),
    ],
)
def test_variants_and_modifiers_may_be_written_in_another_case(name: str, variant: str | None, meant: str) -> None:
    assert get(name, variant).name == meant


@pytest.mark.parametrize("values", [["x", 1], [None, 1], [[1, 2], 3], "x", ""])
def test_a_sweep_refuses_what_is_no_number_before_it_names_its_outputs(
    values: Any, files: list[str], tmp_path: Path
) -> None:
    for name in ("o-{alpha}.safetensors", "o.safetensors"):
        with pytest.raises(sds.UsageError, match="weighted-sum: alpha must be a number, not"):
            sds.sweep("weighted-sum", files[:2], parameters={"alpha": values}, out=tmp_path / name)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--method slerp --alpha 0.1 --alpha 0.2", "--alpha (or --ratio, --multiplier) is given twice, with different"),
        ("--method slerp --alpha 0.1 --ratio 0.2", "--alpha (or --ratio, --multiplier) is given twice, with different"),
        ("--method n-sum --weights 1,2 --weights 2,1", "--weights is given twice, with different values"),
        ("--method slerp --method mean", "--method is given twice"),
        ("--method slerp --curve smoothstep --curve inverse-smoothstep", "--curve is given twice"),
        ("--formula A+B --formula A-B", "--formula is given twice"),
        ("--method dare --rescale --no-rescale", "--rescale and --no-rescale exclude each other"),
        ("--method slerp --lora-blocks MIDD", "--lora-blocks goes with --lora"),
        ("--method slerp --lora-others 1", "--lora-others goes with --lora-blocks"),
    ],
)
def test_options_that_contradict_or_would_do_nothing_are_refused(
    words: str, text: str, files: list[str], tmp_path: Path
) -> None:
    refused(command("merge", *files[:2], *words.split(), "-o", tmp_path / "o.safetensors"), 2, text)


def test_an_option_given_twice_with_one_value_is_that_value(files: list[str], tmp_path: Path) -> None:
    words = ["--method", "slerp", "--alpha", "0.5", "--ratio", "0.50", "-o", tmp_path / "o.safetensors"]
    done(command("merge", *files[:2], *words))
