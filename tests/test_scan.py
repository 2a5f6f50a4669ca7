"""``scan``: names what would have run, in every form and depth, and reads no tensor data."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator

import pytest
from attacks import GOOD_TENSOR, NAMES, RECORD, Watch, attacks, files
from pickle_builder import Memory, call, dict_of, legacy, pickled, tensor, torch_zip, zipped
from sdsurgery.errors import SdsError
from sdsurgery.formats.scan import FileScan, ScanReport, scan, scan_source


@pytest.fixture
def canary(tmp_path) -> Iterator[str]:
    path = str(tmp_path / "canary")
    yield path
    assert not os.path.exists(path), "code from a file ran"


@pytest.mark.parametrize("attack", NAMES)
def test_scan_calls_every_attack_suspicious_in_every_form(attack, canary):
    for form, data in files(attacks(canary)[attack]).items():
        with Watch():
            found = scan_source("x", Memory(data))
        assert found.suspicious, form


def test_names_are_listed_with_what_would_have_run(canary):
    data = torch_zip(pickled(dict_of({"w": GOOD_TENSOR, "evil": attacks(canary)["reduce"]})), {"0": RECORD})
    found = scan_source("x", Memory(data))
    assert found.kind == "torch zip"
    assert found.dangerous == ["os.system"]
    assert found.calls["os.system"] == 1
    assert found.globals["torch._utils._rebuild_tensor_v2"] == 1
    assert found.problems == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n(Vx\ntR.", "builtins.eval"),
        (b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.", "os.system"),
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x82\x01N.", "os.system"),
        (b"\x80\x04Vos\nVsystem\n\x93.", "os.system"),
    ],
)
def test_scan_lists_names_of_pickles_that_the_machine_refuses(data, expected):
    found = scan_source("x", Memory(data))
    assert found.suspicious
    assert expected in found.dangerous


def test_scan_of_good_files_finds_nothing_and_reads_no_tensor_data():
    big = bytes(1 << 20)
    body = pickled(dict_of({"w": tensor((1 << 18,), (1,), numel=1 << 18)}))
    for data in (torch_zip(body, {"0": big}), legacy(body, {"0": (1 << 18, big)})):
        source = Memory(data)
        found = scan_source("x", source)
        assert not found.suspicious
        assert found.dangerous == found.problems == found.unknown == []
        assert "torch._utils._rebuild_tensor_v2" in found.globals
    source = Memory(torch_zip(body, {"0": big}))
    scan_source("x", source)
    assert source.largest < 100_000


def test_scan_looks_into_archives_inside_archives(canary):
    evil = torch_zip(pickled(attacks(canary)["reduce"]), {})
    nested = zipped({"readme.txt": b"x", "models/evil.ckpt": zipped({"inner/a.pt": evil})})
    found = scan_source("x", Memory(nested))
    assert found.dangerous == ["os.system"]
    deep = evil
    for _ in range(6):
        deep = zipped({"a.zip": deep})
    assert scan_source("x", Memory(deep)).suspicious
    compressed = zipped({"a/data.pkl": pickled(attacks(canary)["reduce"])}, zipfile.ZIP_DEFLATED)
    assert scan_source("x", Memory(compressed)).dangerous == ["os.system"]


def test_scan_looks_into_the_tar_files_of_old_torch(canary):
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in ("sys_info", "pickle"):
            data = pickled(attacks(canary)["reduce"])
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = scan_source("x", Memory(out.getvalue()))
    assert found.kind == "tar archive"
    assert found.dangerous == ["os.system"]


def test_scan_walks_folders_and_counts_the_rest(tmp_path, canary):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "evil.ckpt").write_bytes(torch_zip(pickled(attacks(canary)["reduce"]), {}))
    (tmp_path / "good.pt").write_bytes(torch_zip(pickled(dict_of({"w": GOOD_TENSOR})), {"0": RECORD}))
    (tmp_path / "notes.txt").write_text("cat\nand dog\n")
    (tmp_path / "empty").write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "loop")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
    report = scan(tmp_path)
    assert report.suspicious
    assert {os.path.basename(file.path): file.suspicious for file in report.files} == {
        "evil.ckpt": True,
        "good.pt": False,
    }
    assert report.skipped == 2
    lines = "\n".join(report.lines())
    assert "would have run os.system" in lines
    assert isinstance(report.files[0].as_json()["globals"], dict)


def test_scan_of_a_missing_path_or_a_device_is_a_usage_error(tmp_path):
    for path in (tmp_path / "nope", "/dev/null"):
        with pytest.raises(SdsError):
            scan(path)


def test_unknown_classes_are_listed_but_not_suspicious():
    body = pickled(dict_of({"w": GOOD_TENSOR, "cb": call("pytorch_lightning.callbacks", "Timer")}))
    found = scan_source("x", Memory(torch_zip(body, {"0": RECORD})))
    assert not found.suspicious
    assert found.unknown == ["pytorch_lightning.callbacks.Timer"]
    assert "other classes: pytorch_lightning.callbacks.Timer" in "\n".join(_lines(found))


def _lines(found: FileScan) -> list[str]:

    return list(ScanReport([found]).lines())
