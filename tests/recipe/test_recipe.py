"""A recipe is a tree of values; a merge of merges runs in one pass and is rounded once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as numpy_files
import sdsurgery as sds
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.methods.parameters import is_required
from sdsurgery.methods.registry import registered
from sdsurgery.recipe import Call, Model, call, compose, from_json

Tensors = dict[str, np.ndarray]


@pytest.fixture
def five(tmp_path: Path) -> list[Path]:
    """Five files of the same tensors; the third lacks one, the fifth another."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(5):
        tensors = {name: rng.normal(size=(17, 31)).astype(np.float16) for name in ("all", "not-third", "not-fifth")}
        if number in (2, 4):
            del tensors["not-third" if number == 2 else "not-fifth"]
        files.append(tmp_path / f"{number}.safetensors")
        numpy_files.save_file(tensors, files[-1])
    return files


def loaded(files: list[Path]) -> list[Tensors]:
    return [{k: v.astype(np.float32) for k, v in numpy_files.load_file(file).items()} for file in files]


def three(files: list[Path]) -> Call:
    a, b, c, d, e = files
    return sds.weighted_sum(sds.weighted_sum(a, e, alpha=0.25), sds.add_diff(b, c, d, alpha=0.7), alpha=0.4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"io": "pread"}])
def test_three_merges_of_five_files_are_the_composed_formula_rounded_once(
    five: list[Path], tmp_path: Path, backend: str, options: Mapping[str, Any]
) -> None:
    report = three(five).save(tmp_path / "out.safetensors", backend=backend, **options)
    a, b, c, d, e = loaded(five)
    f = np.float32

    def ae(name: str) -> np.ndarray:
        return f(0.75) * a[name] + f(0.25) * e[name]

    wanted = {
        "all": f(0.6) * ae("all") + f(0.4) * (b["all"] + f(0.7) * (c["all"] - d["all"])),
        "not-third": f(0.6) * ae("not-third") + f(0.4) * b["not-third"],
        "not-fifth": f(0.6) * a["not-fifth"] + f(0.4) * (b["not-fifth"] + f(0.7) * (c["not-fifth"] - d["not-fifth"])),
    }
    found = numpy_files.load_file(tmp_path / "out.safetensors")
    for name, value in wanted.items():
        assert np.array_equal(found[name].view(np.uint16), value.astype(np.float16).view(np.uint16)), name
    assert report.counts["merged"] == 3
    assert report.bytes_read == 2 * 17 * 31 * (5 + 4 + 4 - 1)  # "not-third" needs three files: A, E and B


def test_merging_in_two_passes_would_round_twice(five: list[Path], tmp_path: Path) -> None:
    a, b, c, d, _ = five
    inner, outer = tmp_path / "inner.safetensors", tmp_path / "outer.safetensors"
    sds.merge("add-diff", [b, c, d], alpha=0.7, out=inner)
    sds.merge("weighted-sum", [a, inner], alpha=0.4, out=outer)
    once = tmp_path / "once.safetensors"
    sds.merge("weighted-sum", [a, sds.add_diff(b, c, d, alpha=0.7)], alpha=0.4, out=once)
    first, second = numpy_files.load_file(outer), numpy_files.load_file(once)
    assert 0 < np.mean(first["all"] != second["all"]) < 0.5


def test_a_call_of_files_alone_writes_the_same_file_as_merge(five: list[Path], tmp_path: Path) -> None:
    sds.weighted_sum(*five[:2], alpha=0.3).save(tmp_path / "out.safetensors")
    first = (tmp_path / "out.safetensors").read_bytes()
    sds.merge("weighted-sum", five[:2], alpha=0.3, out=tmp_path / "out.safetensors", overwrite=True)
    assert (tmp_path / "out.safetensors").read_bytes() == first


def test_the_recipe_is_in_the_metadata_with_the_files_by_letter(five: list[Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    three(five).save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        recipe = json.loads(file.metadata()["sd_merge_recipe"])
    assert recipe["inputs"] == [
        {"method": "weighted-sum", "inputs": ["A", "B"]},
        {"method": "add-diff", "inputs": ["C", "D", "E"]},
    ]
    assert recipe["parameters"] == {"alpha": 0.4, "A.alpha": 0.25, "B.alpha": 0.7}
    assert [model["name"] for model in recipe["models"]] == ["0", "4", "1", "2", "3"]


def test_a_recipe_is_a_value_and_json_both_ways(five: list[Path]) -> None:
    recipe = three(five)
    assert recipe == three(five) and hash(recipe) == hash(three(five)) and recipe != three(five[::-1])
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert str(recipe) == ("weighted-sum(weighted-sum(0, 4, alpha=0.25), add-diff(1, 2, 3, alpha=0.7), alpha=0.4)")
    blocks = sds.weighted_sum("a", sds.model("b", use_ema=True), blocks={"IN04": 0.25})
    assert from_json(blocks.to_json()) == blocks and blocks.inputs[1] == Model("b", True)


def test_other_names_of_a_number_go_by_the_path_of_its_call() -> None:
    """``lam`` of ``ties`` is called ``alpha`` too: within a weighted sum that is not the sum's alpha."""
    for name, method in registered().items():
        if method.across is not None:
            continue  # such a one takes files, and stands alone
        needed = {each: 0.5 for each, param in method.params.items() if is_required(param)}
        inner = call(name, ["a", "b", "c"][: len(method.inputs)], **needed)
        tree = compose(call("triple-sum", [inner, "x", "y"], alpha=0.1, beta=0.2))
        numbers = tree.method.named(tree.numbers({"alpha": 0.3}))
        assert (numbers["alpha"], numbers["beta"]) == (0.3, 0.2), name
    tree = compose(call("weighted-sum", [call("ties", ["a", "b"]), "c"]))
    assert tree.numbers({"A.lambda": 0.25})["A.lam"] == 0.25


def test_a_file_that_is_used_twice_is_read_once(five: list[Path], tmp_path: Path) -> None:
    a, b = five[:2]
    report = sds.add_diff(a, sds.weighted_sum(a, b, alpha=0.3), a).save(tmp_path / "out.safetensors")
    assert report.inputs == [str(a), str(b)] and len(report.sha256) == 2
    x, y = loaded([a, b])
    f = np.float32
    wanted = x["all"] + f(1) * ((f(0.7) * x["all"] + f(0.3) * y["all"]) - x["all"])
    assert np.array_equal(numpy_files.load_file(tmp_path / "out.safetensors")["all"], wanted.astype(np.float16))


def test_block_weights_and_rules_of_an_inner_call(models: Path, tmp_path: Path) -> None:
    a, b, c = (models / f"{name}.safetensors" for name in "abc")
    inner = sds.weighted_sum(b, c, alpha=0.25, blocks={"OUT03": 1.0}, rules={"attn2": 0.0})
    sds.weighted_sum(a, inner, alpha=1.0).save(tmp_path / "out.safetensors")
    found, wanted = numpy_files.load_file(tmp_path / "out.safetensors"), numpy_files.load_file(c)
    prefix = "model.diffusion_model.output_blocks.3."
    for name, value in wanted.items():
        if name.startswith(prefix):
            source = numpy_files.load_file(b)[name] if "attn2" in name else value
            assert np.array_equal(found[name], source), name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"method": "add-dif", "inputs": []}, "did you mean"),
        ({"method": "add-diff", "inputs": [{"path": "a"}]}, "takes 3 inputs"),
        ({"method": "add-diff"}, "not a recipe: 'inputs' is missing"),
        ({"path": "a", "method": "add-diff", "inputs": 3}, "not a recipe"),
        ({}, "not a recipe"),
        ([], "not a recipe"),
    ],
)
def test_invalid_recipes_are_refused_in_one_line(value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        from_json(value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_nested_too_deeply_is_one_line() -> None:
    value: dict[str, Any] = {"path": "a"}
    for _ in range(5000):
        value = {"method": "weighted-sum", "inputs": [value, {"path": "b"}]}
    with pytest.raises(UsageError, match="nested too deeply"):
        from_json(value)


def test_too_many_files_are_refused() -> None:
    recipe = sds.weighted_sum(*(f"{n}" for n in range(513)), weights=[1 / 513] * 513)
    with pytest.raises(UsageError, match="at most 512 files"):
        compose(recipe)


def test_shapes_that_differ_are_refused_by_name(five: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / "odd.safetensors"
    numpy_files.save_file({"all": np.zeros((3, 3), np.float16)}, odd)
    with pytest.raises(InputRefused, match="tensor 'all' has shape"):
        sds.weighted_sum(five[0], sds.add_diff(five[1], odd, five[3])).save(tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
