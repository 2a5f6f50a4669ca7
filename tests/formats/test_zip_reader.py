"""The zip container of torch files: strictly read, lies refused, compressed entries inflated only when asked."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib

import pytest
from pickle_builder import Memory, dict_of, pickled, tensor, torch_zip, zipped
from sdsurgery.checkpoint import open_checkpoint
from sdsurgery.errors import InputRefused
from sdsurgery.formats import torch_zip_writer
from sdsurgery.formats.kinds import torch_zip as zip_format
from torch_support import RECORD, elements, read, saved, torch

# --- the zip container -----------------------------------------------------------------------------------------------

GOOD = torch_zip(pickled(dict_of({"w": tensor((2, 3), (3, 1))})), {"0": RECORD})


@pytest.mark.parametrize("root", ["archive", "v1-5-pruned-emaonly", "a b", "żółw", "xy:z", "."])
def test_any_root_name_is_accepted(root):
    found = read(torch_zip(pickled(dict_of({"w": tensor((2, 3), (3, 1))})), {"0": RECORD}, root=root))
    assert found.tensors[0].shape == (2, 3)


def test_records_carry_their_crc_and_zero_means_not_computed():
    assert [record.crc32 for record in read(GOOD).records] == [zlib.crc32(RECORD)]
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"w": torch.arange(6.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert [record.crc32 for record in read(data).records] == [None]


def test_a_damaged_pickle_record_is_noticed_by_its_crc():
    at = GOOD.index(b"FloatStorage")
    with pytest.raises(InputRefused, match="CRC-32"):
        read(GOOD[:at] + b"HalfStorage_" + GOOD[at + 12 :])


def central(data: bytes, entry: str) -> int:
    """Where the central header of an entry begins."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(entry.encode()))


def local(data: bytes, entry: str) -> int:
    return data.index(entry.encode()) - 30


def patched(data: bytes, at: int, code: str, value: int) -> bytes:
    field = struct.pack(code, value)
    return data[:at] + field + data[at + len(field) :]


CDIR = GOOD.index(b"PK\x01\x02")
END = GOOD.index(b"PK\x05\x06")
STORAGE = "archive/data/0"
LIES = {
    "bytes behind the end": (GOOD + b"x", "after its end record"),
    "a comment that is too long": (patched(GOOD, END + 20, "<H", 5), "after its end record"),
    "no end record": (GOOD[:END], "cut off"),
    "nothing but its beginning": (b"PK\x03\x04" + bytes(30), "cut off"),
    "encrypted": (patched(GOOD, central(GOOD, STORAGE) + 8, "<H", 1), "encrypted"),
    "central name differs": (GOOD[:CDIR] + GOOD[CDIR:].replace(b"archive/data/0", b"archive/data/1"), "disagrees"),
    "marked as a folder": (patched(GOOD, central(GOOD, STORAGE) + 38, "<L", 0x10), "marked as a folder"),
    "local name differs": (GOOD[:CDIR].replace(b"archive/data/0", b"archive/data/1") + GOOD[CDIR:], "disagrees"),
    "local size differs": (patched(GOOD, local(GOOD, STORAGE) + 22, "<L", 20), "disagrees"),
    "local method differs": (patched(GOOD, local(GOOD, STORAGE) + 8, "<H", 8), "disagrees"),
    "local crc differs": (patched(GOOD, local(GOOD, STORAGE) + 14, "<L", 1), "disagrees"),
    "stored with two sizes": (patched(GOOD, central(GOOD, STORAGE) + 20, "<L", 20), "two different sizes"),
    "entry past the directory": (
        patched(patched(GOOD, central(GOOD, STORAGE) + 20, "<L", 9999), central(GOOD, STORAGE) + 24, "<L", 9999),
        "past the end",
    ),
    "entries at one place": (
        patched(GOOD, central(GOOD, STORAGE) + 42, "<L", 0),
        "disagrees",
    ),
    "directory elsewhere": (patched(GOOD, END + 16, "<L", CDIR - 1), "not where"),
    "directory too short": (patched(GOOD, END + 12, "<L", END - CDIR - 1), "not where"),
    "fewer entries than counted": (patched(patched(GOOD, END + 8, "<H", 9), END + 10, "<H", 9), "damaged"),
    "more entries than counted": (patched(patched(GOOD, END + 8, "<H", 2), END + 10, "<H", 2), "longer"),
    "several disks": (patched(GOOD, END + 4, "<H", 1), "split archive"),
    "an unknown method": (
        patched(patched(GOOD, central(GOOD, "archive/data.pkl") + 10, "<H", 12), 8, "<H", 12),
        "method 12",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_archive_is_refused(lie):
    data, reason = LIES[lie]
    with pytest.raises(InputRefused, match=reason):
        read(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "entry", ["../evil", "archive/../../evil", "/etc/passwd", "C:/evil", "a\\b", "archive/data.pkl"]
)
def test_path_travelling_and_duplicated_entries_are_refused(entry):
    out = io.BytesIO(GOOD)
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = entry
        archive.writestr(info, b"x")
    with pytest.raises(InputRefused, match=r"leads outside|two entries"):
        read(out.getvalue())


def overlapping() -> bytes:
    """An archive in which one entry's data contain another entry whole."""
    inner = torch_zip_writer._local_header(torch_zip_writer._File("archive/x", b"", 0), 0)
    data = torch_zip(pickled(dict_of({"w": tensor((2, 3), (3, 1))})), {"0": RECORD}, note=inner)
    at, start, end = data.index(inner), data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    extra = torch_zip_writer._central_header(torch_zip_writer._File("archive/x", b"", 0, at), 0)
    count, size = struct.unpack_from("<H", data, end + 10)[0] + 1, end - start + len(extra)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
    return data[:end] + extra + tail


def test_overlapping_entries_are_refused():
    with pytest.raises(InputRefused, match="overlap"):
        read(overlapping())


def test_bytes_in_front_of_the_archive_are_refused():
    hidden = torch_zip_writer._local_header(torch_zip_writer._File("archive/x", b"", 0), 0)
    data = hidden + GOOD
    at, shift = data.index(b"PK\x01\x02"), len(hidden)
    for _ in range(3):
        offset = struct.unpack_from("<L", data, at + 42)[0]
        data = patched(data, at + 42, "<L", offset + shift)
        at = data.find(b"PK\x01\x02", at + 4)
    data = patched(data, data.index(b"PK\x05\x06") + 16, "<L", CDIR + shift)
    with pytest.raises(InputRefused, match="before its first entry"):
        read(data)


def test_compressed_storages_are_refused_with_advice_or_inflated(tmp_path):
    pickle = pickled(dict_of({"w": tensor((2, 3), (3, 1)), "v": tensor((3,), (1,), key="1", numel=3)}))
    entries = {"a/data.pkl": pickle, "a/data/0": RECORD, "a/data/1": b"zeros of a" * 1 + b"12", "a/version": b"3"}
    data = zipped(entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputRefused, match=r"compressed.*re-save.*allow_inflate=True"):
        read(data)
    found = zip_format.read(Memory(data), allow_inflate=True, inflate_dir=str(tmp_path))
    assert found.temporary
    with open(found.files[0], "rb") as file:
        inflated = file.read()
    assert elements(inflated, found.tensors[0]) == RECORD
    assert elements(inflated, found.tensors[1]) == b"zeros of a12"


def test_damage_found_while_inflating_leaves_no_file(tmp_path):
    pickle = pickled(dict_of({"w": tensor((6000,), (1,), numel=6000)}))
    data = zipped({"a/data.pkl": pickle, "a/data/0": RECORD * 1000}, zipfile.ZIP_DEFLATED)
    at = data.index(b"a/data/0") + 8
    for damaged in (data[:at] + b"\xff" + data[at + 1 :], data[: at + 20] + b"\x00\x00" + data[at + 22 :]):
        with pytest.raises(InputRefused):
            zip_format.read(Memory(damaged), allow_inflate=True, inflate_dir=str(tmp_path))
        assert os.listdir(tmp_path) == []


def test_a_deflated_pickle_is_accepted_and_a_bomb_is_not():
    pickle = pickled(dict_of({"w": tensor((2, 3), (3, 1))}))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickle, zipfile.ZIP_DEFLATED)
        archive.writestr("a/data/0", RECORD)
    assert len(read(out.getvalue()).tensors) == 1
    bomb = zipped({"a/data.pkl": bytes(60 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputRefused, match="more than 100 times"):
        read(bomb)
    huge = zipped({"a/data.pkl": bytes((64 << 20) + 1)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputRefused, match="at most"):
        read(huge)


def test_a_pickle_record_with_something_behind_it_is_refused():
    with pytest.raises(InputRefused, match="after the end of its pickle"):
        read(torch_zip(pickled(dict_of({"w": tensor((6,), (1,))})) + b"x", {"0": RECORD}))


def test_zip64_archives_of_torch_are_read(tmp_path):
    """Storages of more than 4 GiB, written by torch as holes."""
    path = str(tmp_path / "big.ckpt")
    with torch.serialization.skip_data():
        torch.save({"a": torch.empty(5 << 28), "b": torch.empty(3, 5), "c": torch.empty(5 << 28)}, path)
    size = os.path.getsize(path)
    assert size > 10 << 30
    with open_checkpoint(path) as checkpoint:
        infos = [checkpoint.info(key) for key in checkpoint]
    assert [info.nbytes for info in infos] == [5 << 30, 60, 5 << 30]
    assert infos[2].offset > 5 << 30
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        for index, info in enumerate(infos):
            header = archive.getinfo(f"{root}/data/{index}").header_offset
            with open(path, "rb") as file:
                file.seek(header + 26)
                assert info.offset == header + 30 + sum(struct.unpack("<2H", file.read(4)))
