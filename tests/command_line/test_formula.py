"""The report's first line: what the output is, as a formula in file names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, plain, sds
from sdsurgery.report.formula import formula, names_of


def merged(method: str, count: int = 2, **given: Any) -> str:
    """The formula of a merge of files called A, B, …"""
    recipe: dict[str, Any] = {"method": method, "parameters": given.pop("parameters", {}), **given}
    return formula("merge", recipe, ["A", "B", "C", "D", "E"][:count])


@pytest.mark.parametrize(
    ("method", "count", "numbers", "expected"),
    [
        ("weighted-sum", 2, {"alpha": 0.4}, "0.6 × A + 0.4 × B"),
        ("weighted-sum", 3, {"weights": (0.5, 0.3, 0.2)}, "0.5 × A + 0.3 × B + 0.2 × C"),
        ("add-diff", 3, {"alpha": 1.0}, "A + B − C"),
        ("add-diff", 3, {"alpha": -0.25}, "A − 0.25 × (B − C)"),
        ("sum-twice", 3, {"alpha": 0.5, "beta": 0.25}, "0.75 × (0.5 × A + 0.5 × B) + 0.25 × C"),
        ("slerp", 2, {"alpha": 0.3}, "slerp(A, B; alpha 0.3)"),
        ("formula:A + k*maximum(B - C)", 3, {"k": 0.5}, "A + 0.5*maximum(B - C)"),
    ],
)
def test_sums_are_written_out_and_other_methods_named(
    method: str, count: int, numbers: dict[str, Any], expected: str
) -> None:
    assert merged(method, count, parameters=numbers) == expected


def test_ratios_that_differ_between_tensors_are_said_shortly() -> None:
    blocks = {"alpha": {"IN00": 0.0, "OUT03": 0.8, "M00": 0.5}}
    text = merged("weighted-sum", parameters={"alpha": 0.5}, blocks=blocks)
    assert text == "weighted-sum(A, B; alpha 0.5 (0–0.8 by block))"
    rules = {"alpha": {"attn2": 0.3}}
    assert "alpha 0.5 (0–0.8 by block and 0.3 by rule)" in merged(
        "weighted-sum", parameters={"alpha": 0.5}, blocks=blocks, rules=rules
    )


def test_trees_ema_and_adapters_are_part_of_it() -> None:
    inner = {"method": "add-diff", "inputs": ["B", "C", "A"]}
    text = merged("weighted-sum", 3, inputs=["A", inner], parameters={"alpha": 0.4, "B.alpha": 0.7})
    assert text == "0.6 × A + 0.4 × (B + 0.7 × (C − A))"
    loras = {"B": [{"name": "style", "strength": 0.8}], "result": [{"name": "detail", "strength": -0.5, "te": 0.2}]}
    text = merged("weighted-sum", 4, parameters={"alpha": 0.5}, use_ema=["A"], loras=loras)
    assert text == "0.5 × A (EMA) + 0.5 × (B + 0.8 × style) − 0.5 × detail (te 0.2)"


@pytest.mark.parametrize(
    "recipe",
    [{}, {"method": "no-such"}, {"method": "weighted-sum"}, {"method": "weighted-sum", "parameters": {"alpha": "x"}},
     {"method": "add-diff", "parameters": {}, "inputs": ["A", "Z", {}]}, {"method": 3, "parameters": []}],
)  # fmt: skip
def test_a_recipe_that_is_not_understood_raises_nothing(recipe: dict[str, Any]) -> None:
    assert formula("merge", recipe, ["A", "B"]) == "merge(A, B)"


def test_names_are_as_short_as_they_differ() -> None:
    assert names_of(["x/a.ckpt", "x/b.safetensors"]) == ["a", "b"]
    assert names_of(["x/a.ckpt", "x/a.safetensors"]) == ["a.ckpt", "a.safetensors"]
    assert names_of(["x/a.ckpt", "y/a.ckpt"]) == [str(Path("x/a.ckpt")), str(Path("y/a.ckpt"))]
    assert names_of(["a.ckpt", "a.ckpt"]) == ["a", "a"]


def test_the_report_begins_with_it(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "DreamMix_v8.safetensors", 1.0), plain(tmp_path / "anything-V3.safetensors", 2.0)
    out = tmp_path / "mix.safetensors"
    first, second, *_ = done(sds("merge", "--method", "weighted-sum", a, b, "--alpha", "0.4", "-o", out)).err.split(
        "\n"
    )
    hash_ = sdsurgery.verify(out).hashes.body_sha256
    assert hash_ is not None
    assert first == f"0.6 × DreamMix_v8 + 0.4 × anything-V3 → mix.safetensors (AutoV3 {hash_[:12]})"
    assert second.startswith("wrote ")
    found = done(sds("cast", a, "--dtype", "fp16", "--dry-run", "--json")).json()
    assert found["formula"] == "cast(DreamMix_v8, fp16)"
    assert json.dumps(found["formula"]).isascii()


@pytest.mark.parametrize(
    ("verb", "recipe", "expected"),
    [
        ("prune", {"parameters": {"preset": "inference", "drop": ["vae"]}}, "prune(A; inference, drop vae)"),
        ("replace", {"parameters": {"components": {"vae": "x.pt"}}}, "replace(A; vae of B)"),
        ("bake", {"parameters": {"loras": [{"name": "l", "strength": 0.5}]}}, "A + 0.5 × l"),
        ("ema", {"parameters": {"to_ema": True}, "dtype": "fp16"}, "ema(A; to-ema, fp16)"),
    ],
)
def test_other_verbs_are_said_as_calls(verb: str, recipe: dict[str, Any], expected: str) -> None:
    assert formula(verb, recipe, ["A", "B"]) == expected
