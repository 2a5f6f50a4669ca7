"""Arrays and tensors of the caller as inputs of a verb: the same bytes as from a file, read where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
import torch
from sdsurgery import _native

A: dict[str, Any] = {
    "strided": torch.arange(6, dtype=torch.float32).reshape(3, 2).t(),
    "bf16": torch.tensor([1.0, -2.5, 3.0], dtype=torch.bfloat16),
    "fp8": torch.tensor([1.0, 2.0], dtype=torch.float8_e4m3fn),
    "array": np.array([[1.5, 2.5]], np.float16),
    "big_endian": np.array([1.0, 4.0], ">f4"),
    "scalar": np.float32(3),
    "counter": np.array([1, 2, 3]),
    "marker": np.empty((0,), np.float32),
}
B: dict[str, Any] = {
    **{name: value * 0.5 for name, value in A.items() if name in ("strided", "bf16", "array", "big_endian", "scalar")},
    "fp8": torch.tensor([4.0, 0.5], dtype=torch.float8_e4m3fn),
    "counter": np.array([9, 9, 9]),
    "marker": np.empty((0,), np.float32),
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, tensors in zip(paths, (A, B), strict=True):
        sds.save(tensors, path)
    return paths


def body(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What a file holds besides its metadata."""
    with sds.open(path) as opened:
        return {name: (info.dtype.name, list(info.shape), opened.read(info)) for name, info in opened.tensors.items()}


@pytest.mark.parametrize("out", ["out.safetensors", "out.ckpt"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("which", ["both", "first", "second"])
def test_a_merge_gives_the_tensors_that_it_gives_of_files(
    files: tuple[Path, Path], tmp_path: Path, which: str, backend: str, out: str
) -> None:
    (tmp_path / "wanted").mkdir()
    sds.merge("weighted-sum", files, alpha=0.3, out=tmp_path / "wanted" / out)
    inputs = [A if which != "second" else files[0], B if which != "first" else files[1]]
    report = sds.merge("weighted-sum", inputs, alpha=0.3, out=tmp_path / out, backend=backend)
    assert body(tmp_path / out) == body(tmp_path / "wanted" / out)
    assert [digest is None for digest in report.sha256] == [isinstance(item, dict) for item in inputs]


def test_every_verb_of_one_input_takes_them(files: tuple[Path, Path], tmp_path: Path) -> None:
    for number, given in enumerate((files[0], A)):
        sds.cast(given, dtype="fp32", out=tmp_path / f"cast-{number}.safetensors")
        sds.prune(given, drop_keys="array", out=tmp_path / f"prune-{number}.safetensors")
    assert body(tmp_path / "cast-0.safetensors") == body(tmp_path / "cast-1.safetensors")
    assert body(tmp_path / "prune-0.safetensors") == body(tmp_path / "prune-1.safetensors")
    assert sds.compare(files[0], A).equal and not sds.compare(files[0], B).equal


def test_they_stand_in_recipes_and_sweeps(files: tuple[Path, Path], tmp_path: Path) -> None:
    def tree(a: Any, b: Any) -> sds.Call:
        return sds.weighted_sum(a, sds.add_diff(files[1], b, a, alpha=0.7), alpha=0.4)

    report = tree(A, B).save(tmp_path / "memory.safetensors")
    assert report.inputs == ["input A", str(files[1]), "input C"], "one dictionary used twice is one input"
    tree(*files).save(tmp_path / "files.safetensors")
    assert body(tmp_path / "memory.safetensors") == body(tmp_path / "files.safetensors")
    sds.sweep("weighted-sum", [A, B], parameters={"alpha": [0.25, 0.5]}, out=tmp_path / "s-{alpha}.safetensors")
    with sds.open(tmp_path / "s-0.5.safetensors", framework="numpy") as opened:
        assert opened["scalar"] == 2.25


def test_an_opened_checkpoint_stands_in_a_recipe_and_stays_open(files: tuple[Path, Path], tmp_path: Path) -> None:
    with sds.open(files[0]) as opened:
        recipe = sds.weighted_sum(opened, files[1])
        assert recipe.to_json()["inputs"] == [{"path": str(item)} for item in files]
        recipe.save(tmp_path / "out.safetensors")
        assert "scalar" in dict(opened.items())


def test_the_metadata_name_them_without_a_hash(files: tuple[Path, Path], tmp_path: Path) -> None:
    sds.merge("weighted-sum", [A, files[1]], out=tmp_path / "out.safetensors")
    with sds.open(tmp_path / "out.safetensors") as opened:
        recipe, models = (json.loads(opened.metadata()[key]) for key in ("sd_merge_recipe", "sd_merge_models"))
    assert recipe["models"][0] == {"name": "input A", "sha256": None, "legacy_hash": None}
    assert [model["name"] for model in models.values()] == ["b"]


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"w": [1.0, 2.0]}, "w"),
        ({"w": np.ones(2, complex)}, "w"),
        ({"w": torch.ones(2).to_sparse()}, "w"),
        ({3: np.ones(2)}, None),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(bad: Any, name: str | None, tmp_path: Path) -> None:
    with pytest.raises(sds.UsageError) as caught:
        sds.merge("weighted-sum", [{"w": np.ones(2, np.float32)}, bad], out=tmp_path / "out.safetensors")
    assert (caught.value.code, caught.value.tensor) == ("bad_array", name)
    assert not list(tmp_path.iterdir())


def test_refusals_say_which_input_it_is(tmp_path: Path) -> None:
    pair = [{"w": np.ones(2, np.float32)}, {"w": np.ones(3, np.float32)}]
    with pytest.raises(sds.InputRefused, match=r"\[3\] in input B, \[2\] expected as in input A"):
        sds.merge("weighted-sum", pair, out=tmp_path / "out.safetensors")
    with pytest.raises(sds.UsageError, match="inputs must be a list"):
        sds.merge("weighted-sum", pair[0], out=tmp_path / "out.safetensors")
    with pytest.raises(sds.UsageError, match="not int"):
        sds.weighted_sum(pair[0], 3)
    with pytest.raises(sds.UsageError, match="save them first"):
        sds.weighted_sum(*pair).to_json()


def test_pieces_of_memory_are_read_as_if_they_lay_one_behind_the_other() -> None:
    source = _native.Source.memory(b"abc", b"", b"defg", b"h")
    assert [source.read(at, count) for at, count in ((0, 8), (1, 5), (2, 1), (3, 4), (6, 2), (8, 0))] == [
        b"abcdefgh", b"bcdef", b"c", b"defg", b"gh", b""
    ]  # fmt: skip
    for at, count in ((0, 9), (7, 2), (8, 1), (99, 1)):
        with pytest.raises(_native.Error, match="past the end"):
            source.read(at, count)
