"""Written checkpoints: torch, zipfile and our own reader read back what was laid out."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib

import pytest
from pickle_builder import Memory
from sdsurgery.checkpoint import open_checkpoint
from sdsurgery.dtypes import BY_NAME
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.formats import torch_zip_writer
from sdsurgery.formats.zip_reader import read_entries
from torch_support import DTYPES, check, raw, sample, torch

# --- writing ---------------------------------------------------------------------------------------------------------


def written(values: dict[str, torch.Tensor], **options) -> tuple[bytes, torch_zip_writer.Layout]:
    ours = {theirs: BY_NAME[key] for key, theirs in DTYPES.items()}
    plan = torch_zip_writer.layout(
        [(key, ours[value.dtype], tuple(value.shape)) for key, value in values.items()], **options
    )
    out = bytearray(b"\xaa" * plan.total)
    filled = 0
    crcs = []
    for value, record in zip(values.values(), plan.record_of, strict=True):
        offset, size = plan.records[record]
        data = raw(value)
        assert len(data) == size
        if record == len(crcs):
            crcs.append(zlib.crc32(data))
            filled += size
        out[offset : offset + size] = data
    for offset, piece in plan.finish(crcs):
        out[offset : offset + len(piece)] = piece
        filled += len(piece)
    assert filled == plan.total, "structure and records must fill the file exactly"
    return bytes(out), plan


def everything() -> dict[str, torch.Tensor]:
    values = {key: sample(theirs, 3, 5) for key, theirs in DTYPES.items()}
    values |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "żółw 😀": torch.ones(2), "": torch.zeros(1)}
    return values | {"large": torch.arange(70_000.0), "model.many.dims": sample(torch.float16, 1, 2, 1, 3, 1)}


def test_written_files_load_in_torch_with_weights_only():
    values = everything()
    data, _ = written(values)
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert list(loaded) == ["state_dict"]
    assert list(loaded["state_dict"]) == list(values)
    for key, value in values.items():
        got = loaded["state_dict"][key]
        assert got.dtype == value.dtype and got.shape == value.shape and got.is_contiguous()
        assert raw(got) == raw(value)


def test_written_files_load_in_torch_by_mapping(tmp_path):
    values = everything()
    path = tmp_path / "out.ckpt"
    path.write_bytes(written(values)[0])
    loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    assert all(raw(loaded[key]) == raw(value) for key, value in values.items())


def test_written_files_pass_zipfile_with_crc_and_alignment():
    data, plan = written(everything())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "archive/data.pkl"
        # The safe unpickler of the AUTOMATIC1111 web UI before 1.10 takes no other names than these.
        assert all(re.fullmatch(r"([^/]+)/((data/\d+)|version|(data\.pkl))", name) for name in names)
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert all(offset % 64 == 0 for offset in plan.offsets)


def test_written_files_are_read_back_by_our_own_reader():
    values = everything()
    data, plan = written(values, metadata={"sd_merge_recipe": "{}", "format": "pt"})
    found = check(data, values)
    assert [info.offset for info in found.tensors] == list(plan.offsets)
    assert found.metadata == {"sd_merge_recipe": "{}", "format": "pt"}
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert loaded["__metadata__"] == {"sd_merge_recipe": "{}", "format": "pt"}


def test_writing_is_deterministic():
    assert written(everything())[0] == written(everything())[0]


def test_shared_tensors_are_written_once():
    values = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6.0), "c": torch.ones(2)}
    data, plan = written(values, aliases={"b": "a"})
    assert len(plan.records) == 2
    loaded = torch.load(io.BytesIO(data), weights_only=True)["state_dict"]
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
    check(data, values)


def test_what_torch_cannot_hold_is_refused_before_writing():
    with pytest.raises(UsageError, match="F4"):
        torch_zip_writer.layout([("a", BY_NAME["F4"], (2,))])
    with pytest.raises(UsageError, match="twice"):
        torch_zip_writer.layout([("a", BY_NAME["F32"], (2,)), ("a", BY_NAME["F32"], (2,))])
    for other in ("b", "nope"):
        with pytest.raises(UsageError, match="cannot share"):
            torch_zip_writer.layout([("b", BY_NAME["F16"], (2,)), ("a", BY_NAME["F32"], (2,))], aliases={"a": other})


def test_large_files_use_zip64_and_still_load(tmp_path):
    """Records beyond 4 GiB and one larger than that, as holes in the file; torch maps it, zipfile lists it."""
    f32 = BY_NAME["F32"]
    plan = torch_zip_writer.layout([("a", f32, (5 << 28,)), ("b", f32, (3,)), ("c", f32, (1 << 20,))])
    path = tmp_path / "big.ckpt"
    with open(path, "wb") as file:
        file.truncate(plan.total)
        file.seek(plan.offsets[1])
        file.write(struct.pack("<3f", 1, 2, 3))
        for offset, piece in plan.finish([0, zlib.crc32(struct.pack("<3f", 1, 2, 3)), 0]):
            file.seek(offset)
            file.write(piece)
    with open_checkpoint(path) as checkpoint:
        assert [checkpoint.info(key).offset for key in checkpoint] == list(plan.offsets)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/0").file_size == 5 << 30
        assert archive.read("archive/data/1") == struct.pack("<3f", 1, 2, 3)
    loaded = torch.load(path, weights_only=True, mmap=True)["state_dict"]
    assert loaded["b"].tolist() == [1, 2, 3]
    assert loaded["a"].shape == (5 << 28,)


def test_many_tensors_use_zip64_counts():
    tensors = [(f"t{i}", BY_NAME["U8"], (1,)) for i in range(66_000)]
    plan = torch_zip_writer.layout(tensors)
    out = bytearray(plan.total)
    for offset, piece in plan.finish([zlib.crc32(b"\0")] * len(tensors)):
        out[offset : offset + len(piece)] = piece
    with zipfile.ZipFile(io.BytesIO(out)) as archive:
        assert len(archive.namelist()) == 66_002
    with pytest.raises(InputRefused, match="66002 entries"):
        read_entries(Memory(bytes(out)))
