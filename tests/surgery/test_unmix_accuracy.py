"""unmix against random truth: ratios to 1e-4 overall and 5e-4 in every block, no false parent, proofs bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sdsurgery as sds
from mix_tools import SPARED, base_of, tuned

SHARES = {"a": 0.05, "b": 0.1, "c": 0.03, "d": 0.15, "e": 0.01, "f": 0.07, "g": 0.12}
BLOCKS = ("BASE", "IN01", "IN05", "M00", "OUT03", "OUT11", "VAE")


class Case(NamedTuple):
    """A merge of models by their letters, and the ratios that it has: overall, and of blocks that have others."""

    method: str
    names: list[str]
    parameters: dict[str, Any]
    truth: dict[str, float]
    blocks: dict[str, dict[str, float]]


def case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.permutation(["base", *SHARES])]

    def number() -> float:
        return round(float(rng.uniform(0.02, 0.98)), int(rng.integers(1, 4))) or 0.1

    kind = int(rng.integers(6))
    fused = bool(rng.integers(2))
    if kind < 3:  # of two, with or without block weights
        a, b = names[:2]
        alpha = number()
        method, given = ("weighted-sum", {}) if kind == 0 else ("weighted-sum.lerp", {"fused": fused})
        own = {block: number() for block in rng.choice(BLOCKS, 3, replace=False)} if kind == 2 else {}
        blocks = {block: {a: 1 - weight, b: weight} for block, weight in own.items()}
        if "BASE" in own and "VAE" not in own:
            blocks["VAE"] = blocks["BASE"]  # which it follows
        given = {**given, "alpha": alpha, **({"blocks": {str(k): w for k, w in own.items()}} if own else {})}
        return Case(method, [a, b], given, {a: 1 - alpha, b: alpha}, blocks)
    if kind == 3:
        a, b, c = names[:3]
        alpha = number()
        return Case("add-diff", [a, b, c], {"alpha": alpha, "fused": fused}, {a: 1, b: alpha, c: -alpha}, {})
    if kind == 4:
        a, b, c = names[:3]
        alpha, beta = number(), number()
        truth = {a: (1 - beta) * (1 - alpha), b: (1 - beta) * alpha, c: beta}
        return Case("sum-twice", [a, b, c], {"alpha": alpha, "beta": beta}, truth, {})
    count = int(rng.integers(3, 6))
    parts = rng.dirichlet([2.0] * count)
    weights = [round(float(0.05 + (1 - 0.05 * count) * part), 3) for part in parts[:-1]]
    weights.append(round(1 - sum(weights), 3))
    return Case("n-sum", names[:count], {"weights": weights}, dict(zip(names, weights, strict=False)), {})


def made(folder: Path, without: Sequence[str] = ()) -> dict[str, Path]:
    base = base_of(folder, without=without)
    return {"base": base, **{name: tuned(base, name, share, seed) for seed, (name, share) in enumerate(SHARES.items())}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made(tmp_path_factory.mktemp("accuracy"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with fewer tensors, in every block."""
    return made(tmp_path_factory.mktemp("accuracy_few"), SPARED)


def faults(models: dict[str, Path], seed: int) -> list[str]:
    """What is wrong with the answer for one random merge."""
    given = case(seed)
    mix = models["base"].with_name("mix.safetensors")
    inputs = [models[name] for name in given.names]
    sds.merge(given.method, inputs, out=mix, overwrite=True, sync=False, hash=False, **given.parameters)
    found = sds.unmix(mix, list(models.values()), prove=True)
    ratios = {Path(path).stem: ratio for path, ratio in found.ratios.items()}
    wrong = []
    parents = {name for name, ratio in given.truth.items() if ratio}
    if set(ratios) != parents:
        wrong.append(f"parents {sorted(ratios)}, not {sorted(parents)}")
    if not given.blocks:
        off = max(abs(ratios.get(name, 0.0) - ratio) for name, ratio in given.truth.items())
        wrong += [f"off by {off:.2g} overall"] if off > 1e-4 else []
    for block, each in found.blocks.items():
        own = {Path(path).stem: ratio for path, ratio in each.items()}
        truth = given.blocks.get(block, given.truth)
        off = max(abs(own.get(name, 0.0) - truth.get(name, 0.0)) for name in {*own, *truth})
        wrong += [f"off by {off:.2g} in {block}"] if off > 5e-4 else []
    assert found.proof is not None
    # Of (1 − β)·X + β·C with β = 1 only C can be found, and 0·X gave some of its zeros the other sign.
    in_value = len(parents) == 1 and found.proof["ulps"] == found.proof["unequal_elements"] == 0
    if found.proof["equal"] != found.proof["tensors"] and not in_value:
        wrong.append(f"not proved: {found.proof['text']} ({found.command})")
    return [f"{seed} {given.method} of {given.names} {given.parameters}: {each}" for each in wrong]


@pytest.mark.parametrize("seed", range(6))
def test_a_random_merge_is_found_and_proved(few: dict[str, Path], seed: int) -> None:
    assert faults(few, seed) == []


@pytest.mark.slow
def test_two_hundred_random_merges_are_found_and_proved(models: dict[str, Path]) -> None:
    assert [fault for seed in range(200) for fault in faults(models, seed)] == []
