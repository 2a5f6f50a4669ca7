"""CRC-32: computed as zlib does, checked while a torch file's tensors are streamed and by verify."""

from __future__ import annotations

import os
import random
import zipfile
import zlib

import pytest
import sdsurgery
from cli_support import done, refused, sds
from pickle_builder import dict_of, pickled, tensor, torch_zip
from sdsurgery import _native
from torch_support import RECORD, raw, saved, torch

RUNS = [{"backend": "reference"}, {"threads": 1}, {"threads": 3, "tile_bytes": 4096}, {"io": "mmap"}]


def test_the_native_crc32_is_zlibs():
    data = random.Random(0).randbytes(5000)
    for size in (*range(300), 1023, 4096, 5000):
        assert _native.crc32(data[:size]) == zlib.crc32(data[:size])
        assert _native.crc32(data[size // 3 : size], _native.crc32(data[: size // 3])) == zlib.crc32(data[:size])


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    values = {f"w{i}": torch.randn(37 + 1000 * i) for i in range(6)}
    return values | {"half": torch.randn(5000).half(), "ids": torch.arange(77), "tied": values["w3"]}


def damage(path, name: str) -> None:
    """Flip one bit in the middle of a tensor's bytes."""
    with sdsurgery.open(path) as checkpoint:
        info = checkpoint.info(name)
    content = bytearray(path.read_bytes())
    content[info.offset + info.nbytes // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["w0", "w5", "half", "ids", "tied"])
@pytest.mark.parametrize("options", RUNS, ids=str)
def test_a_damaged_tensor_stops_the_run_and_nothing_is_written(tmp_path, name, options):
    path = tmp_path / "in.ckpt"
    path.write_bytes(saved(weights()))
    sdsurgery.cast(path, out=tmp_path / "good.safetensors", hash=False, sync=False, **options)
    damage(path, name)
    before = sorted(os.listdir(tmp_path))
    named = "'w3'|'tied'" if name == "tied" else f"'{name}'"
    with pytest.raises(sdsurgery.RunFailed, match=f"({named}).*in.ckpt.*damaged.*CRC-32"):
        sdsurgery.cast(path, out=tmp_path / "out.safetensors", dtype="bf16", hash=False, sync=False, **options)
    assert sorted(os.listdir(tmp_path)) == before


def test_only_what_is_read_is_checked(tmp_path):
    """Two tensors in one storage, of which a merge needs both; and a part of a storage, which proves nothing."""
    both = dict_of({"a": tensor((2,), (1,)), "b": tensor((4,), (1,), offset=2)})
    part = dict_of({"b": tensor((4,), (1,), offset=2)})
    for body, fails in ((both, True), (part, False)):
        path = tmp_path / "in.ckpt"
        path.write_bytes(torch_zip(pickled(body), {"0": RECORD}))
        sdsurgery.cast(path, out=tmp_path / "out.safetensors", overwrite=True)
        damage(path, "b")
        if fails:
            with pytest.raises(sdsurgery.RunFailed, match="CRC-32"):
                sdsurgery.cast(path, out=tmp_path / "out.safetensors", overwrite=True)
        else:
            sdsurgery.cast(path, out=tmp_path / "out.safetensors", overwrite=True)


def test_a_crc_of_zero_was_not_computed(tmp_path):
    path = tmp_path / "in.ckpt"
    torch.serialization.set_crc32_options(False)
    try:
        path.write_bytes(saved(weights()))
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert {item.CRC for item in archive.infolist()} == {0}
    damage(path, "w5")
    assert sdsurgery.verify(path).storages_checked == 0
    sdsurgery.cast(path, out=tmp_path / "out.safetensors")


def test_verify_checks_every_storage_and_names_the_damaged_ones(tmp_path):
    values = weights() | {"view": torch.randn(50, 60).t()}
    path = tmp_path / "in.ckpt"
    momentum = torch.randn(99)
    path.write_bytes(saved({"state_dict": values, "optimizer": {"m": momentum}}))
    found = sdsurgery.verify(path)
    assert (found.ok, found.storages_checked) == (True, 10)  # 9 storages of the state dict, 1 of the optimizer
    assert "CRC-32: 10 storages checked, 0 damaged" in done(sds("verify", path)).out
    damage(path, "view")
    damage(path, "ids")
    found = sdsurgery.verify(path)
    assert [text.split("'")[1] for text in found.differs] == ["ids", "view"]
    result = sds("verify", path, "-q")
    refused(result, 4, "CRC-32", "'ids'", "'view'")
    content = path.read_bytes()
    at = content.index(raw(momentum))
    path.write_bytes(content[:at] + b"?" + content[at + 1 :])
    assert any("not of the state dict" in text for text in sdsurgery.verify(path).differs)


def test_files_without_checksums_say_so(tmp_path):
    path = tmp_path / "in.pt"
    path.write_bytes(saved(weights(), "legacy"))
    assert sdsurgery.verify(path).storages_checked == 0
    sdsurgery.cast(path, out=tmp_path / "out.safetensors")
    assert sdsurgery.verify(tmp_path / "out.safetensors").storages_checked is None
