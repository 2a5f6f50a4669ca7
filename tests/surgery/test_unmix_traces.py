"""unmix: methods that are not sums leave traces that are named; nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sdsurgery as sds
from cli_support import sds as command
from mix_tools import QUICK, SPARED, a_family, mixed, pick, ratios, tuned


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return a_family(tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with a third of the tensors, in every block."""
    return a_family(tmp_path_factory.mktemp("traces_few"), without=SPARED)


TRACES: list[tuple[str, str, dict[str, Any], tuple[str, str, float, float | None]]] = [
    ("tensor-sum", "a b", {}, ("rows", "a b", 0.5, None)),
    ("max", "a b", {}, ("elements", "a b", 0.5, None)),
    ("dare", "base b d", {}, ("dropped", "base", 0.81, None)),
    ("dare.density", "base d", {"density": 0.3, "alpha": 0.6}, ("dropped", "base", 0.7, 2.0)),
    ("sparse-top-k", "base b", {}, ("trimmed", "base", 0.8, 0.5)),
    ("ties", "base b d", {"density": 0.3}, ("trimmed", "base", 0.49, None)),
    ("ties", "base a b d", {"density": 0.2}, ("trimmed", "base", 0.51, None)),
    ("tensor-sum", "a b", {"dtype": "bf16"}, ("rows", "a b", 0.5, None)),
    ("ties", "base b d", {"density": 1.0, "weights": [1.0, 0.5], "lam": 0.8}, ("elected", "base", 0.5, 0.8)),
    ("ties", "base b d", {"density": 1.0, "weights": [1, 0.5], "normalize": False}, ("elected", "base", 0.5, None)),
    ("ties.count", "base b d", {"alpha": 0.7}, ("elected", "base", 0.5, 0.7)),
    ("ties.sum", "base a b d", {}, ("elected", "base", 0.75, 1.0)),
    ("slerp", "b d", {"alpha": 0.3}, ("norm", "b d", 1.0, 0.3)),
    ("add-diff.clamped", "a b base", {"alpha": 0.7}, ("clamp", "a b", 0.32, None)),
]


@pytest.mark.parametrize(("method", "names", "parameters", "wanted"), TRACES)
def test_a_method_that_is_no_sum_leaves_its_trace(
    few: dict[str, Path], method: str, names: str, parameters: dict[str, Any],
    wanted: tuple[str, str, float, float | None],
) -> None:  # fmt: skip
    kind, about, share, ratio = wanted
    found = sds.unmix(mixed(few, names, method, **parameters), pick(few, "a b d base"))
    (trace,) = found.fingerprints
    assert (trace["kind"], {Path(path).stem for path in trace["candidates"]}) == (kind, set(about.split()))
    assert trace["share"] == pytest.approx(share, abs=0.02) and trace["text"] in found.notes
    assert trace["ratio"] == (None if ratio is None else pytest.approx(ratio, rel=1e-3))
    assert trace["tensors"] == trace["looked_at"] > 20
    assert not found.complete and not found.upper_bounds and not any("is missing" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "method", "parameters", "candidates"),
    [
        ("a b", "weighted-sum", {"alpha": 0.3}, "a c d base"),  # a parent is missing
        ("a b", "weighted-sum", {"alpha": 0.02}, "a c d"),
        ("a b base", "train-diff", {}, "a b c base"),  # a formula of its own
        ("a b c d", "mean", {}, "a b"),
        ("a b", "weighted-sum", {"alpha": 0.01}, "a base d"),  # little is missing
    ],
)
def test_sums_of_unknown_parents_have_no_trace_of_a_method(
    few: dict[str, Path], names: str, method: str, parameters: dict[str, Any], candidates: str
) -> None:
    found = sds.unmix(mixed(few, names, method, **parameters), pick(few, candidates))
    assert not found.complete and found.fingerprints == []
    assert found.residual_ranks and not any(row["low"] for row in found.residual_ranks)


def test_blocks_in_which_nothing_is_missing_have_no_trace_of_a_method(few: dict[str, Path]) -> None:
    first = mixed(few, "a b", "weighted-sum", alpha=0.3, blocks="GRAD_V", name="first")
    out = first.with_name("more.safetensors")
    sds.merge("weighted-sum", [first, few["c"]], alpha=0, blocks="IN05-IN08=0.6,OUT00-OUT06=0.4", out=out, **QUICK)
    run = command("unmix", out, *pick(few, "a b base"), "--json")
    found = json.loads(run.out)
    assert found["fingerprints"] == [] and found["formula"].endswith("; other ratios by block") and run.err == ""
    assert float(found["formula"].partition("·")[0]) == pytest.approx(found["ratios"][str(few["a"])], abs=2e-3)


def test_training_on_top_has_no_trace_of_a_method(models: dict[str, Path]) -> None:
    mix = mixed(models, "a b", "weighted-sum", alpha=0.3)
    trained = tuned(mix, "trained", 0.002, 11)
    found = sds.unmix(trained, pick(models, "a b c base"))
    assert ratios(found) == pytest.approx({"a": 0.7, "b": 0.3}, abs=1e-3)
    assert not found.complete and found.fingerprints == []
