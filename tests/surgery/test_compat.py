"""Other tools' choice of keys: what a tool skips, and what it takes where a model lacks a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command

NAMES = (
    "model.diffusion_model.a.to_out.0.weight",
    "model.diffusion_model.a.norm1.weight",
    "model.diffusion_model.b.weight",
)


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> list[Path]:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(4)
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for number, path in enumerate(paths):
        names = NAMES if number != 1 else NAMES[1:]
        save_file({name: rng.normal(size=(4, 5)).astype(np.float32) for name in names}, path)
    return paths


def tensors(path: Path) -> dict[str, np.ndarray]:
    with sds.open(path) as opened:
        return {name: np.array(opened.numpy(name)) for name in opened}


@pytest.mark.parametrize("method", ["self-scale", "add-noise"])
def test_supermerger_skips_outer_layers_and_norms(method: str, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done(command("merge", files[0], "--method", method, "--compat", "supermerger", "--alpha", "0.5", "-o", out))
    before, after = tensors(files[0]), tensors(out)
    assert [np.array_equal(before[name], after[name]) for name in NAMES] == [True, True, False]
    assert "supermerger:" + method in done(command("inspect", out)).out


def test_with_kohya_a_stands_in_for_a_tensor_that_another_model_lacks(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sds.merge("kohya:n-sum", files, weights=[0.5, 0.3, 0.2], out=out)
    a, b, c = map(tensors, files)
    after = tensors(out)
    half, rest, last = np.float32(0.5), np.float32(0.3), np.float32(0.2)
    assert np.array_equal(after[NAMES[0]], half * a[NAMES[0]] + rest * a[NAMES[0]] + last * c[NAMES[0]])
    assert np.array_equal(after[NAMES[2]], half * a[NAMES[2]] + rest * b[NAMES[2]] + last * c[NAMES[2]])
    sds.merge("n-sum", files, weights=[0.5, 0.3, 0.2], out=out, overwrite=True)
    assert np.array_equal(tensors(out)[NAMES[0]], a[NAMES[0]])  # else A's is kept


def test_a_method_that_a_tool_lacks_is_refused(files: list[Path]) -> None:
    refused(
        command("merge", *files[:2], "--method", "slerp", "--compat", "a1111"), 2, "of a1111 are known weighted-sum"
    )
