"""A model in shards is opened by its index as one file, by every verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sdsurgery
from cli_support import Raw, done, f32, read_raw, refused, sds, write_raw

PARTS: list[dict[str, Raw]] = [
    {"a.weight": ("F32", [2], f32(1, 2)), "b.weight": ("F32", [1], f32(3))},
    {"c.weight": ("F16", [2], bytes(4))},
]


def shards(folder: Path) -> Path:
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, PARTS, strict=True):
        write_raw(folder / name, part, {"format": "pt"})
    weight_map = {tensor: name for name, part in zip(names, PARTS, strict=True) for tensor in part}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}, indent=2))
    return index


def test_every_verb_takes_the_index(tmp_path: Path) -> None:
    index, out = shards(tmp_path), tmp_path / "out.safetensors"
    whole = {name: raw for part in PARTS for name, raw in part.items()}
    done(sds("convert", index, "-o", out))
    assert read_raw(out)[0] == whole
    sdsurgery.merge("weighted-sum", [out, index], alpha=0.5, out=tmp_path / "merged.safetensors")
    assert read_raw(tmp_path / "merged.safetensors")[0] == whole
    assert sdsurgery.inspect(index).total.tensors == 3
    assert sdsurgery.verify(index).ok


def test_shards_of_torch_are_read_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for n in (1, 2):
        torch.save({f"t{n}": torch.ones(2) * n}, tmp_path / f"pytorch_model-{n}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {f"t{n}": f"pytorch_model-{n}.bin" for n in (1, 2)}}))
    done(sds("convert", index, "-o", tmp_path / "out.safetensors"))
    assert read_raw(tmp_path / "out.safetensors")[0] == {f"t{n}": ("F32", [2], f32(n, n)) for n in (1, 2)}


def test_a_shard_that_is_missing_or_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    second = tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors"
    write_raw(second, {"other": ("F16", [2], bytes(4))})
    refused(sds("inspect", index), 3, "00002-of-00002", "'c.weight'")
    second.unlink()
    refused(sds("inspect", index), 3, "00002-of-00002")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"weight_map": {"a": "../a.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside its folder"),
        ('{"weight_map": {"a": 3}}', "without a 'weight_map'"),
        ('{"weight_map": {}}', "without a 'weight_map'"),
        ('{"weight_map": {"a": "b"', "not valid JSON"),
        ('{"weight_map": ' + '{"a":' * 5000, "not valid JSON"),
    ],
)
def test_a_hostile_or_damaged_index_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(text)
    refused(sds("inspect", tmp_path / "x.index.json"), 3, words)


def test_a_folder_of_shards_is_named_with_its_index(tmp_path: Path) -> None:
    index = shards(tmp_path)
    refused(sds("inspect", tmp_path), 3, "shards", index.name)
    refused(sds("convert", tmp_path, "-o", tmp_path / "o.safetensors"), 3, "shards", index.name)
