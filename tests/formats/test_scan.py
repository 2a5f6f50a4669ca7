"""``scan``: names what would have run, in every form and depth, and reads no tensor data."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import zipfile

import pytest
from attacks import GOOD_TENSOR, NAMES, RECORD, Watch, attacks, files
from cli_support import done, f32, refused, sds, started, unprivileged, write_raw
from pickle_builder import Memory, call, dict_of, integer, legacy, pickled, tensor, text, torch_zip, zipped
from sdsurgery.errors import SdsError
from sdsurgery.formats.scan import FileScan, ScanReport, scan, scan_source


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


def test_unknown_classes_are_listed_and_cannot_be_judged_when_they_are_called():
    body = pickled(dict_of({"w": GOOD_TENSOR, "cb": call("pytorch_lightning.callbacks", "Timer")}))
    found = scan_source("x", Memory(torch_zip(body, {"0": RECORD})))
    assert (found.verdict, found.suspicious) == ("unjudged", False)
    assert found.unjudged == ["archive/data.pkl: calls pytorch_lightning.callbacks.Timer"]
    assert found.unknown == ["pytorch_lightning.callbacks.Timer"]
    assert "other classes: pytorch_lightning.callbacks.Timer" in "\n".join(_lines(found))


def _lines(found: FileScan) -> list[str]:

    return list(ScanReport([found]).lines())


def test_a_safetensors_file_may_begin_with_the_byte_of_a_pickle_and_the_other_way_round():
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(0x80)
    good = scan_source("x", Memory(len(header).to_bytes(8, "little") + header + b"x"))
    assert good.kind.startswith("safetensors") and not good.suspicious
    evil = b"\x80\x02X\x02\0\0\0\0{cos\nsystem\nX\x04\0\0\0true\x85R."
    assert int.from_bytes(evil[:8], "little") < 100 << 20 and evil[8:9] == b"{"
    found = scan_source("x", Memory(evil.ljust(1000)))
    assert found.suspicious and found.dangerous == ["os.system"]
    hidden = b"X\x04\0\0\0\0\0\0{Vos\nVsystem\nV!\n0\x93(Vtrue\ntR."
    assert int.from_bytes(hidden[:8], "little") < 100 << 20 and hidden[8:9] == b"{"
    assert scan_source("x", Memory(hidden.ljust(1000))).suspicious


@pytest.mark.parametrize(("start", "size"), [(b"V", 3 << 20), (b"P", 3 << 20), (b"V", 70 << 20)])
def test_what_a_safetensors_file_hides_behind_its_beginning_is_found(start, size):
    body = b"\ncos\nsystem\n(Vtrue\ntR."
    data = b"x" * size + body
    text = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(data), len(data))
    header = text.ljust(start[0] + 256)  # so that the file begins with this opcode, which takes all up to a newline
    file = len(header).to_bytes(8, "little") + header + data
    assert file[:1] == start
    found = scan_source("x", Memory(file))
    assert found.suspicious
    assert found.dangerous == ["os.system"] or found.problems == ["too long to follow to the end"]
    harmless = scan_source("x", Memory(file.replace(b"\ncos", b"\n\0os")))
    assert harmless.suspicious == (size > 64 << 20)


def text_stream(body: bytes) -> bytes:
    """A legacy stream of torch as protocol 0 has it: magic number, version, system information, the object."""
    return b"L119547037146038801333356L\n.I1001\n.(dp0\n." + body + b"(lp0\n."


@pytest.mark.parametrize("protocol", [0, 1])
def test_harmless_pickles_of_protocol_0_and_1_are_listed_and_not_suspicious(protocol):
    data = pickle.dumps(collections.OrderedDict(a=[1, 2.5, "x"]), protocol=protocol)
    for found in (scan_source("x", Memory(data)), scan_source("x", Memory(text_stream(data)))):
        assert found.kind == "pickle of protocol 0 or 1"
        assert not found.suspicious
        assert list(found.globals) == ["collections.OrderedDict"]


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n(Vtrue\ntR.",
        b"Vos\nVsystem\nV!\n0\x93(Vtrue\ntR.",  # the two texts below a third, which is popped
        b"Vos\nVsystem\nVa\nVb\n00\x93(Vtrue\ntR.",
        b"Vos\nVsystem\nVa\nVb\n00\x93(Vtrue\ntR\xff",  # runs before it fails
        b"\x82\x01(Vtrue\ntR.",
    ],
)
def test_pickles_of_protocol_0_cannot_hide_what_they_call(body, tmp_path):
    filler = b"V" + b"x" * 1000 + b"\n0"  # the first window ends within such a text
    late = pickle.dumps(["x" * 100] * 3, protocol=0)[:-1] + b"0" + filler * 4200 + body  # behind 4 MB
    for number, data in enumerate((body, text_stream(body), late)):
        assert scan_source("x", Memory(data)).suspicious, number
        (tmp_path / f"{number}.pkl").write_bytes(data)
    assert all(file.suspicious for file in scan(tmp_path).files) and len(scan(tmp_path).files) == 3


def test_a_pickle_of_protocol_0_of_more_opcodes_than_are_followed_is_suspicious():
    late = pickle.dumps(["x" * 100] * 3, protocol=0)[:-1] + b"0" + b"(lp1\n0" * 600_000 + b"cos\nsystem\n(Vtrue\ntR."
    assert scan_source("x", Memory(late)).problems == ["too long to follow to the end"]


def test_a_pickle_too_long_to_follow_is_suspicious(monkeypatch):
    data = b"(lp1\n" + b"I1\na" * 200 + b"."
    assert scan_source("x", Memory(data)).problems == []
    with monkeypatch.context() as patch:
        patch.setattr("sdsurgery.formats.scan_content.MAX_OPCODES", 100)
        assert scan_source("x", Memory(data)).problems == ["too long to follow to the end"]
    monkeypatch.setattr("sdsurgery.formats.scan_content.MAX_WORK", 100)  # of all pickles of a file together
    assert scan_source("x", Memory(data)).problems == ["too long to follow to the end"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_looks_through_folders_by_content(tmp_path, canary):
    (tmp_path / "models" / "deep").mkdir(parents=True)
    evil = torch_zip(pickled(attacks(canary)["reduce"]), {})
    (tmp_path / "models" / "deep" / "innocent.png").write_bytes(evil)
    (tmp_path / "models" / "good.pth").write_bytes(torch_zip(pickled(dict_of({"w": GOOD_TENSOR})), {"0": RECORD}))
    (tmp_path / "models" / "readme.md").write_text("import os; os.system('x')\n")
    write_raw(tmp_path / "models" / "b.safetensors", {"w": ("F32", [1], f32(1.0))})
    good = done(sds("scan", "models/good.pth", "models/b.safetensors", cwd=tmp_path))
    assert good.out.count("nothing dangerous found") == 2
    assert "globals: torch._utils._rebuild_tensor_v2, torch.FloatStorage, collections.OrderedDict" in good.out
    assert "safetensors (nothing in it can run)" in good.out
    result = sds("scan", "models", "--json", cwd=tmp_path)
    assert result.rc == 3
    report = result.json()
    assert (report["suspicious"], report["skipped"], len(report["files"])) == (True, 1, 3)
    bad = [file for file in report["files"] if file["suspicious"]]
    assert [os.path.basename(file["path"]) for file in bad] == ["innocent.png"]
    assert bad[0]["dangerous"] == ["os.system"]
    assert result.err.startswith("sdsurgery: suspicious: models/deep/innocent.png")
    refused(sds("scan", "models", "-q", cwd=tmp_path), 3, "suspicious")
    refused(sds("scan", "nowhere", cwd=tmp_path), 2, "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
def test_a_file_that_cannot_be_opened_does_not_end_the_scan_of_a_folder(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "b.pt").write_bytes(torch_zip(pickled(dict_of({"w": GOOD_TENSOR})), {"0": RECORD}))
    os.chmod(tmp_path / "a.pt", 0)
    result = started("scan", tmp_path, "--json", preexec_fn=unprivileged)
    assert [file["kind"] for file in result.json()["files"]] == ["unreadable", "torch zip"]
    assert result.rc == 3


def test_bytes_that_no_pickle_takes_are_a_finding():
    good = pickled(dict_of({"a": integer(1)}))
    for data in (good + b"junk", good + good + b"\0", legacy(good, {}) + b"xyz"):
        found = scan_source("x", Memory(data))
        assert found.suspicious and "belong to none" in found.problems[0]
    for data in (good + good, good + b"\n", legacy(good, {}) + legacy(good, {})):
        assert scan_source("x", Memory(data)).verdict == "clean"


def test_a_file_is_safetensors_only_when_its_header_parses():
    evil = b"\x80\x02X\x02\0\0\0\0{0" + pickled(call("mailbox", "Maildir"))[2:]
    found = scan_source("x", Memory(evil.ljust(1000)))
    assert found.kind == "pickle" and found.unjudged == ["calls mailbox.Maildir"]
    text = b'{"w":{"dtype":"U8","shape":[9],"data_offsets":[0,1]}}'
    damaged = scan_source("x", Memory(len(text).to_bytes(8, "little") + text + b"x"))
    assert damaged.kind == "other"


def test_packed_files_beyond_the_limit_are_not_looked_into_and_said_so(monkeypatch):
    data = gzip.compress(pickled(b"C\xff" + bytes(255) + b"0" + call("os", "system", text("x"))), mtime=0)
    assert scan_source("x", Memory(data)).dangerous == ["os.system"]
    monkeypatch.setattr("sdsurgery.formats.scan_content.MAX_UNPACKED", 100)
    found = scan_source("x", Memory(data))
    assert (found.verdict, found.unjudged) == ("unjudged", ["not looked into: it unpacks to more than 0 MiB"])
    for start, word in (
        (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"), (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x1f\x9d\x90", "compress"), (b"LZIP\x01", "lzip"), (b"ZF0x2a".ljust(21), "joblib (before 0.10)"),
    ):  # fmt: skip
        assert scan_source("x", Memory(start.ljust(600))).unjudged == [
            f"not looked into: compressed by {word}; unpack it first"
        ]
    assert scan_source("x", Memory(gzip.compress(b"name,value\n1,2\n" * 200_000))).verdict == "clean"
    assert scan_source("x", Memory(data[:-20])).verdict != "clean"


def test_a_member_of_a_zip_archive_is_known_by_its_content(canary):
    evil = pickled(attacks(canary)["reduce"])
    for member in ("a/weights.txt", "x.npy", "noname", "a/data/0x"):
        assert scan_source("x", Memory(zipped({"readme": b"x", member: evil}))).dangerous == ["os.system"], member
    record = torch_zip(pickled(dict_of({"w": GOOD_TENSOR})), {"0": evil.ljust(24)})
    assert scan_source("x", Memory(record)).verdict == "clean"  # what lies in a storage is never unpickled


def test_links_are_followed_to_files_and_told_where_they_are_not(tmp_path, canary):
    blobs, snapshot, outside = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots", tmp_path / "outside"
    for folder in (blobs, snapshot, outside):
        folder.mkdir(parents=True)
    (blobs / "5e1f").write_bytes(torch_zip(pickled(attacks(canary)["reduce"]), {}))
    (outside / "y.pt").write_bytes(torch_zip(pickled(attacks(canary)["reduce"]), {}))
    os.symlink("../blobs/5e1f", snapshot / "model.bin")
    os.symlink("../../outside/y.pt", snapshot / "y.bin")
    os.symlink("..", snapshot / "loop")
    os.symlink("../../outside", snapshot / "away")
    os.symlink("nowhere", snapshot / "broken")
    report = scan(snapshot)
    assert [os.path.basename(file.path) for file in report.files if file.suspicious] == ["model.bin", "y.bin"]
    links = {os.path.basename(line.split(": ")[0]): line.split(": ")[1] for line in report.links}
    assert set(links) == {"model.bin", "y.bin", "loop", "away", "broken"}
    assert "out of the folder" in links["model.bin"] and "not followed" in links["away"]
    assert "around it" in links["loop"] and "no file" in links["broken"]
    whole = scan(tmp_path / "hub")
    assert len([file for file in whole.files if file.suspicious]) == 3
    assert "".join(whole.lines()) and all(line.strip() for line in whole.lines())


def test_an_empty_folder_gets_a_line(tmp_path):
    assert done(sds("scan", tmp_path)).out == "no files\n"


def test_exit_codes_and_sarif(tmp_path, canary):
    unknown = torch_zip(pickled(call("mypackage", "Thing")), {})
    (tmp_path / "unknown.pt").write_bytes(unknown)
    refused(sds("scan", "-q", tmp_path / "unknown.pt"), 3, "cannot be judged")
    assert "calls mypackage.Thing" in done(sds("scan", "--allow-unjudged", tmp_path / "unknown.pt")).out
    (tmp_path / "evil.pt").write_bytes(torch_zip(pickled(attacks(canary)["reduce"]), {}))
    refused(sds("scan", "-q", "--allow-unjudged", tmp_path / "evil.pt"), 3, "suspicious")
    result = sds("scan", "--sarif", ".", cwd=tmp_path)
    log = result.json()
    assert (result.rc, log["version"]) == (3, "2.1.0")
    (run,) = log["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    found = {
        (each["ruleId"], each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], each["level"])
        for each in run["results"]
    }
    assert {rule for rule, _, _ in found} <= rules
    assert found == {("dangerous-name", "evil.pt", "error"), ("cannot-be-judged", "unknown.pt", "warning")}


def test_an_archive_behind_other_bytes_is_looked_into():
    evil = zipped({"a/data.pkl": b"cos\nsystem\n(S'true'\ntR."})
    assert scan_source("x", Memory(b"#!/bin/sh\nexit 0\n" + evil)).dangerous == ["os.system"]
    assert not scan_source("x", Memory(b"#!/bin/sh\nexit 0\n" + zipped({"a/b": b"text"}))).suspicious


def test_an_archive_whose_offsets_count_other_bytes_in_front_is_looked_into(canary):
    """As self-extracting archives have them, which PyTorch's reader in C++ and zipfile open."""
    for front in (b"MZ", b"\x1f\x8b\x08"):  # the second begins as a packed file does
        out = io.BytesIO(front + bytes(100))
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("m/x", pickled(attacks(canary)["reduce"]))
        assert scan_source("x", Memory(out.getvalue())).dangerous


def test_bytes_behind_packed_data_are_a_finding_and_looked_into(canary):
    good = gzip.compress(pickled(b"N"))
    for rest, verdict in (
        (bytes(600), "clean"),
        (b"text", "unjudged"),
        (pickled(attacks(canary)["reduce"]), "suspicious"),
    ):
        assert scan_source("x", Memory(good + rest)).verdict == verdict
    found = scan_source("x", Memory(good + bytes(600) + b"text"))
    assert found.unjudged == ["4 bytes behind its gzip data belong to nothing"]
