"""A checkpoint of several files: a format that is added here reads two files as one, and every verb takes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from cli_support import read_raw, write_raw
from sdsurgery import formats
from sdsurgery.checkpoint import Contents
from sdsurgery.files import open_source
from sdsurgery.formats import Format
from sdsurgery.formats.kinds import safetensors
from sdsurgery.testing import write_checkpoint

BEGIN = b"two files\n"
Pair = tuple[Path, Path]


def sniff(source: Any) -> bool:
    return bytes(source.read(0, min(source.size, len(BEGIN)))) == BEGIN


def read(source: Any) -> Contents:
    """The tensors of the safetensors files that the lines name, in their order."""
    names = bytes(source.read(len(BEGIN), source.size - len(BEGIN))).decode().splitlines()
    files = [os.path.join(os.path.dirname(source.path), name) for name in names]
    found = Contents("two-files", [], files=files)
    for number, path in enumerate(files):
        part = open_source(path)
        own = safetensors.read(part)
        part.close()
        found.tensors += [info.with_form(info.form._replace(file=number)) for info in own.tensors]
        found.metadata |= own.metadata
    return found


@pytest.fixture(autouse=True)
def two_files() -> Iterator[None]:
    added = formats.register(Format("two-files", sniff, read))
    yield
    formats.unregister(added)


def split(path: Path) -> Path:
    """The tensors of a file in two, alternately, and a third file that names them."""
    tensors, metadata = read_raw(path)
    for number, half in enumerate("xy"):
        part = dict(list(tensors.items())[number::2])
        write_raw(path.with_name(f"{path.stem}-{half}.safetensors"), part, metadata)
    index = path.with_suffix(".two")
    index.write_bytes(BEGIN + f"{path.stem}-x.safetensors\n{path.stem}-y.safetensors\n".encode())
    return index


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The same tensors in one file and in two."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for seed, name in enumerate("ab"):
        path = folder / f"{name}.safetensors"
        write_checkpoint(path, "sd1", size="tiny", seed=seed, ema=True)
        found[name] = path, split(path)
    return found


def tensors_of(path: Path) -> dict[str, Any]:
    return read_raw(path)[0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("which", [(1, 1), (0, 1), (1, 0)])
def test_a_merge_gives_the_same_tensors(
    models: dict[str, Pair], tmp_path: Path, which: tuple[int, int], backend: str
) -> None:
    inputs = [models[name][number] for name, number in zip("ab", which, strict=True)]
    outs = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for out, given in zip(outs, ([models[name][0] for name in "ab"], inputs), strict=True):
        sdsurgery.merge("weighted-sum", given, alpha=0.3, out=out, backend=backend, use_ema="B")
    assert tensors_of(outs[0]) == tensors_of(outs[1])


def test_a_cast_an_ema_and_a_pickle_give_the_same_tensors(models: dict[str, Pair], tmp_path: Path) -> None:
    for number in (0, 1):
        path = models["a"][number]
        sdsurgery.cast(path, out=tmp_path / f"cast-{number}.safetensors", dtype="bf16")
        sdsurgery.ema(path, out=tmp_path / f"ema-{number}.safetensors", fix_clip=True)
        sdsurgery.convert(path, out=tmp_path / f"convert-{number}.ckpt")
    for verb in ("cast", "ema"):
        assert tensors_of(tmp_path / f"{verb}-0.safetensors") == tensors_of(tmp_path / f"{verb}-1.safetensors")
    assert sdsurgery.compare(tmp_path / "convert-1.ckpt", models["a"][0]).equal


def test_compare_inspect_and_verify_see_one_model(models: dict[str, Pair]) -> None:
    one, two = models["a"]
    assert sdsurgery.compare(one, two).equal
    assert not sdsurgery.compare(two, models["b"][0]).equal
    found, expected = sdsurgery.inspect(two), sdsurgery.inspect(one)
    assert (found.format, found.family) == ("two-files", "sd1")
    assert (found.total, found.components) == (expected.total, expected.components)
    parts = [two, *(one.with_name(f"a-{half}.safetensors") for half in "xy")]
    assert found.bytes == sum(path.stat().st_size for path in parts)
    assert sdsurgery.verify(two).nonfinite == {}


def test_the_tensors_are_views_of_their_own_files(models: dict[str, Pair]) -> None:
    with sdsurgery.open(models["a"][0]) as one, sdsurgery.open(models["a"][1]) as two:
        assert sorted(one.keys()) == sorted(two.keys())
        for name in one:
            assert np.array_equal(one.numpy(name), two.numpy(name)), name


def test_a_missing_part_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, "vae-kl-f8", size="tiny")
    index = split(path)
    (tmp_path / "a-y.safetensors").unlink()
    with pytest.raises(sdsurgery.InputRefused, match=r"a-y\.safetensors"):
        sdsurgery.inspect(index)
