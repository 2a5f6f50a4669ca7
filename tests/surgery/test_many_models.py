"""Methods of any number of models: 200 of them, with one number for all or one each, blocks by letter."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done
from cli_support import started as command
from sdsurgery.methods import PerInput, registered

MANY = 200
METHODS = [name for name, method in registered().items() if method.variadic]
SLOW = {"geometric-median"}  # a hundred steps of all models


def listed(name: str, count: int) -> dict[str, Any]:
    """The lists that the method takes instead of a number."""
    params: Mapping[str, Any] = registered()[name].params
    return {
        key: [1 / count] * (count - param.after)
        for key, param in params.items()
        if isinstance(param, PerInput) and param.instead_of
    }


@pytest.fixture(name="models", scope="module")
def _models() -> list[np.ndarray]:
    base = np.random.default_rng(5).normal(size=(6, 8)).astype(np.float32)
    noise = np.random.default_rng(6).normal(size=(MANY, 6, 8)) * 0.1
    return [base, *(base + each.astype(np.float32) for each in noise[1:])]


@pytest.mark.parametrize("name", METHODS)
def test_two_hundred_models_give_a_finite_result_in_seconds(name: str, models: list[np.ndarray]) -> None:
    count = 60 if name in SLOW else MANY
    started = time.process_time()
    got = sds.apply(name, *models[:count], **listed(name, count))
    assert got.shape == models[0].shape
    assert np.isfinite(got).all()
    assert np.abs(got - models[0]).max() < 20  # the sum of all differences at most
    assert time.process_time() - started < 30


@pytest.mark.parametrize("name", ["karcher", "model-stock", "multislerp", "geometric-median"])
def test_what_many_models_are_given_without_all_pairs_is_the_same(
    name: str, models: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdsurgery.methods import averages, iterated, spherical

    few = sds.apply(name, *models[:9])
    for module in (averages, iterated, spherical):
        monkeypatch.setattr(module, "MANY", 4)
    method = registered()[name]
    with np.errstate(all="ignore"):
        many = method.body(*models[:9], **method.bind(9, {}))
    assert np.abs(np.asarray(many) - few).max() < 2e-6


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory, models: list[np.ndarray]) -> list[Path]:
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("many")
    paths = []
    for number, each in enumerate(models):
        paths.append(folder / f"{number}.safetensors")
        save_file({"x.weight": each, "x.bias": each[0]}, paths[-1])
    return paths


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("n-sum", []),
        ("ties", ["--density", "0.3", "--weights", "0.01"]),
        ("ties", ["--density", ",".join(["0.3"] * (MANY - 1)), "--weights", ",".join(["0.01"] * (MANY - 1))]),
        ("dare", ["--p", "0.5"]),
    ],
)
def test_files_of_two_hundred_models_with_sixty_four_open_files(
    method: str, options: list[str], files: list[Path], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.safetensors"
    done(command("merge", *files, "--method", method, *options, "-o", out, "--force",
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))))  # fmt: skip
    with sds.open(out) as merged:
        assert np.isfinite(merged.numpy("x.weight")).all()


def test_a_list_of_one_number_is_that_number_for_all(models: list[np.ndarray]) -> None:
    one = sds.apply("ties", *models[:5], density=0.3, weights=0.5)
    assert np.array_equal(one, sds.apply("ties", *models[:5], density=[0.3] * 4, weights=[0.5] * 4))


def test_blocks_of_one_input_by_its_letter(tmp_path: Path) -> None:
    from sdsurgery.testing import write_checkpoint

    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2, 3)]
    for seed, path in enumerate(paths):
        write_checkpoint(path, size="tiny", seed=seed, keep=lambda tensor: tensor.component == "unet")
    result = command("merge", *paths, "--method", "n-sum", "--weights", "0.5,0.3,0.2", "--blocks", "B:GRAD_V",
                     "--blocks", "C:IN04=0.9", "--dry-run", "-v", "--json")  # fmt: skip
    shown = json.loads(done(result).out)
    ratios = {row["block"]: row["ratios"] for row in shown["tensors"] if "ratios" in row}
    assert ratios["IN04"]["C"] == 0.9
    assert ratios["IN00"]["B"] == 1.0
    assert ratios["M00"]["B"] == 0.0
