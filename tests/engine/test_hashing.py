"""Hashes: their definitions, the background threads, and a cache that can cost time but never be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import sdsurgery as sds
from pickle_builder import Memory
from sdsurgery import _native, hashing
from sdsurgery.hashing import Hashing, autov2, autov3, cache_folder, legacy_hash
from sdsurgery.testing import write_checkpoint

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no waiting until a new file's time stamps are old enough."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SDS_CACHE", str(folder))
    monkeypatch.setattr(hashing, "_FRESH_NS", -(10**18))
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entries(cache: Path) -> dict:
    return json.loads((cache / "hashes.json").read_text())["entries"]


def make(path: Path, size: int = 3_000_001, seed: int = 0) -> bytes:
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return data


def source(path: str | os.PathLike[str]) -> _native.Source:
    return _native.Source(os.fsencode(path))


def hashing_of(files: Sequence[_native.Source], *where: object) -> Hashing:
    job = Hashing(files, *where)  # type: ignore[arg-type]
    job.start()
    return job


def file_hash(path: str | os.PathLike[str]) -> str:
    (digest,), body = hashing_of([source(path)]).result()
    assert body is None
    return digest


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes are hashed from now on, as opposed to recalled."""
    hashed: list[str] = []
    original = hashing._File.remember

    def spy(self: hashing._File, digest: str) -> None:
        hashed.append(os.path.basename(self._path))
        original(self, digest)

    monkeypatch.setattr(hashing._File, "remember", spy)
    return hashed


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize("size", [0, 0xFFFFF, 0x100000, 0x100001, 0x10FFFF, 0x110000, 0x110001, 0x200000])
def test_legacy_hash_is_of_64_kib_at_1_mib_or_of_what_there_is(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert legacy_hash(Memory(data)) == sha256(data[0x100000:0x110000])[:8]  # type: ignore[arg-type]


def test_short_forms() -> None:
    digest = sha256(b"")
    assert autov2(digest) == "e3b0c44298"
    assert autov3(digest) == "e3b0c44298fc"


# ---------------------------------------------------------------- a file


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_500_000])
def test_file_hash_is_the_sha256_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = make(tmp_path / "a", size)
    assert file_hash(tmp_path / "a") == sha256(data)


def test_a_second_run_recalls_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    hashed = count_hashing(monkeypatch)
    for path in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "link"):
        assert file_hash(path) == sha256(data)
    assert hashed == ["a"]


def test_a_changed_file_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    hashed = count_hashing(monkeypatch)
    for seed in range(3):
        data = make(path, 1000 + seed, seed)
        assert file_hash(path) == sha256(data)
    assert len(hashed) == 3


def test_a_file_replaced_by_one_of_the_same_size_and_mtime_is_hashed_again(tmp_path: Path) -> None:
    make(tmp_path / "a", 1000, 1)
    os.utime(tmp_path / "a", ns=(10**18, 10**18))
    file_hash(tmp_path / "a")
    time.sleep(0.02)
    data = make(tmp_path / "b", 1000, 2)
    os.utime(tmp_path / "b", ns=(10**18, 10**18))
    os.replace(tmp_path / "b", tmp_path / "a")
    assert file_hash(tmp_path / "a") == sha256(data)


def test_a_file_written_just_now_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_FRESH_NS", 3600 * 10**9)
    data = make(tmp_path / "a")
    assert file_hash(tmp_path / "a") == sha256(data)
    assert not cache.exists()


@pytest.mark.parametrize("how", ["grow", "touch"])
def test_a_file_that_changes_while_it_is_hashed_is_an_error_and_not_remembered(
    tmp_path: Path, cache: Path, how: str
) -> None:
    path = tmp_path / "a"
    make(path)
    job = hashing_of([source(path)])
    time.sleep(0.02)
    if how == "grow":
        with path.open("ab") as file:
            file.write(b"!")
    os.utime(path)
    with pytest.raises(_native.Error, match="changed while it was being"):
        job.result()
    assert not cache.exists()


def test_a_file_that_is_touched_while_it_is_hashed_is_hashed_and_not_remembered(tmp_path: Path, cache: Path) -> None:
    data = make(tmp_path / "a")
    job = hashing_of([source(tmp_path / "a")])
    time.sleep(0.02)
    os.link(tmp_path / "a", tmp_path / "b")  # its change time differs, and what it holds doesn't
    assert job.result() == ((sha256(data),), None)
    assert not cache.exists()


def test_a_file_whose_name_goes_to_another_is_hashed_as_it_was_opened_and_not_remembered(
    tmp_path: Path, cache: Path
) -> None:
    data = make(tmp_path / "a")
    opened = source(tmp_path / "a")
    make(tmp_path / "b", seed=1)
    os.replace(tmp_path / "b", tmp_path / "a")
    assert hashing_of([opened]).result() == ((sha256(data),), None)
    assert not cache.exists()


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "a")
    opened = source(tmp_path / "a")
    os.truncate(tmp_path / "a", 1_000_000)
    with pytest.raises(_native.Error) as caught:
        hashing_of([opened]).result()
    assert caught.value.code in ("changed", "truncated")


def test_a_file_that_is_given_several_times_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    os.link(tmp_path / "a", tmp_path / "also a")
    hashed = count_hashing(monkeypatch)
    files = [source(tmp_path / name) for name in ("a", "b", "also a", "a")]
    assert hashing_of(files).result()[0] == (sha256(a), sha256(b), sha256(a), sha256(a))
    assert hashed == ["a", "b"]


# ---------------------------------------------------------------- the cache file


def test_many_hashes_at_once_are_all_remembered(tmp_path: Path, cache: Path) -> None:
    for number in range(8):
        make(tmp_path / f"{number}", 1000, number)
    hashing_of([source(tmp_path / f"{number}") for number in range(8)]).result()
    assert {os.path.basename(path) for path in entries(cache)} == {f"{number}" for number in range(8)}
    assert os.listdir(cache) == ["hashes.json"]


def test_the_cache_keeps_the_newest_thousand(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_CACHE_ENTRIES", 3)
    for name in ("a", "b", "c", "a", "d", "e"):
        make(tmp_path / name, 100, random.randrange(10**9))
        file_hash(tmp_path / name)
    assert [os.path.basename(path) for path in entries(cache)] == ["a", "d", "e"]


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"entries":[]}',
    b'{"entries":{"PATH":1}}',
    b'{"entries":{"PATH":[[1],"short"]}}',
    b'{"entries":{"PATH":["x","' + b"0" * 64 + b'"]}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path: Path, cache: Path, content: bytes) -> None:
    data = make(tmp_path / "a")
    cache.mkdir()
    (cache / "hashes.json").write_bytes(content.replace(b"PATH", os.fsencode(tmp_path / "a")))
    assert file_hash(tmp_path / "a") == sha256(data)
    assert entries(cache)[str(tmp_path / "a")][1] == sha256(data)


def test_a_huge_cache_file_is_not_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    file_hash(tmp_path / "a")
    monkeypatch.setattr(hashing, "_CACHE_MAX_BYTES", 10)
    hashed = count_hashing(monkeypatch)
    assert file_hash(tmp_path / "a") == sha256(data)
    assert hashed == ["a"]


def test_an_unusable_cache_folder_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "taken" / "hashes.json").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken", Path("/proc/nowhere")):
        monkeypatch.setenv("SDS_CACHE", str(folder))
        assert file_hash(tmp_path / "a") == sha256(data)
    assert os.listdir(tmp_path / "taken") == ["hashes.json"]


@POSIX_ONLY
def test_the_cache_is_private(tmp_path: Path, cache: Path) -> None:
    make(tmp_path / "a")
    file_hash(tmp_path / "a")
    assert stat.S_IMODE((cache / "hashes.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@POSIX_ONLY
def test_a_path_that_is_not_utf8_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")
    try:
        data = make(Path(path))
    except OSError:
        pytest.skip("the file system wants UTF-8")
    hashed = count_hashing(monkeypatch)
    assert file_hash(path) == file_hash(path) == sha256(data)
    assert len(hashed) == 1


def test_processes_that_write_at_the_same_time_leave_a_sound_cache(tmp_path: Path, cache: Path) -> None:
    script = (
        "import sys\nfrom sdsurgery import hashing\nhashing._FRESH_NS = -10**18\n"
        "for path in sys.argv[1:]:\n"
        "    job = hashing.Hashing([hashing._native.Source(path.encode())])\n"
        "    job.start()\n    print(job.result()[0][0])\n"
    )
    paths = [tmp_path / f"{number}" for number in range(30)]
    expected = [sha256(make(path, 50, number)) for number, path in enumerate(paths)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", script, *map(str, paths)], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    for process in running:
        assert process.communicate(timeout=60)[0].decode().split() == expected
        assert process.returncode == 0
    remembered = entries(cache)
    assert remembered
    for path, (_, digest) in remembered.items():
        assert digest == expected[paths.index(Path(path))]


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"SDS_CACHE": "/x/y", "XDG_CACHE_HOME": "/z"}, "/x/y"),
        ("linux", {"SDS_CACHE": "", "XDG_CACHE_HOME": "/z"}, "/z/sdsurgery"),
        ("linux", {"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/sdsurgery"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/sdsurgery"),
        ("darwin", {"HOME": "/Users/me", "XDG_CACHE_HOME": "/z"}, "/Users/me/Library/Caches/sdsurgery"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/sdsurgery"),
        ("win32", {}, None),
        ("linux", {"HOME": "relative"}, None),
    ],
)
@POSIX_ONLY
def test_the_cache_lies_where_the_platform_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str | None
) -> None:
    for name in ("SDS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == expected


# ---------------------------------------------------------------- what a web UI remembers


def webui(root: Path, name: str, entry: object, data: bytes) -> Path:
    """A checkpoint in the folders of a web UI, whose cache.json holds ``entry`` for it."""
    path = root / "models" / "Stable-diffusion" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if isinstance(entry, dict) and entry.get("mtime") == "the file's":
        entry = {**entry, "mtime": os.path.getmtime(path)}
    (root / "cache.json").write_text(json.dumps({"hashes": {f"checkpoint/{name}": entry}}))
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "sub/folder/a.safetensors", "sub\\a.safetensors"])
def test_a_hash_that_the_web_ui_remembers_is_taken(tmp_path: Path, name: str) -> None:
    path = webui(tmp_path, name, {"mtime": "the file's", "sha256": "5" * 64}, b"data")
    assert file_hash(path) == "5" * 64


def test_a_web_ui_under_windows_separates_folders_by_its_own_sign(tmp_path: Path) -> None:
    path = webui(tmp_path, "sub/a.safetensors", None, b"data")
    entry = {"mtime": os.path.getmtime(path), "sha256": "5" * 64}
    (tmp_path / "cache.json").write_text(json.dumps({"hashes": {"checkpoint/sub\\a.safetensors": entry}}))
    assert file_hash(path) == "5" * 64


STALE = [
    {"mtime": 1.5, "sha256": "5" * 64},
    {"mtime": "the file's", "size": 5, "sha256": "5" * 64},
    {"mtime": "the file's", "sha256": "5" * 63},
    {"mtime": "the file's", "sha256": None},
    {"mtime": "the file's"},
    {"sha256": "5" * 64},
    ["5" * 64],
    None,
]


@pytest.mark.parametrize("entry", STALE)
def test_a_web_ui_hash_that_does_not_fit_is_ignored(tmp_path: Path, entry: object) -> None:
    assert file_hash(webui(tmp_path, "a.safetensors", entry, b"data")) == sha256(b"data")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"hashes": 1}', b"[" * 100_000])
def test_a_damaged_web_ui_cache_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = webui(tmp_path, "a.safetensors", None, b"data")
    (tmp_path / "cache.json").write_bytes(content)
    assert file_hash(path) == sha256(b"data")


# ---------------------------------------------------------------- the body of a growing output


def sink_of(path: Path, data: bytes) -> _native.Sink:
    """An output that will be ``data``, nothing of which is written yet."""
    return _native.Sink(os.fsencode(path), len(data))


@pytest.mark.parametrize("size", [101, (1 << 20) + 100, 3_333_333])
def test_the_body_hash_is_of_everything_behind_the_start(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    sink = sink_of(tmp_path / "out", data)
    sink.write(0, data)
    sink.watermark = size
    assert hashing_of([], sink, 100).result() == ((), sha256(data[100:]))
    sink.abort()


def test_an_empty_body_has_a_hash_too(tmp_path: Path) -> None:
    sink = sink_of(tmp_path / "out", bytes(8))
    assert hashing_of([], sink, 8).result() == ((), sha256(b""))


@pytest.mark.parametrize("inputs", range(5))
def test_the_body_is_hashed_up_to_the_watermark_only(tmp_path: Path, inputs: int) -> None:
    """Bytes beyond it are wrong until just before it moves."""
    data = random.Random(1).randbytes(5_000_000)
    files = [make(tmp_path / str(number), 1_234_567 * number, number) for number in range(inputs)]
    sink = sink_of(tmp_path / "out", data)
    job = hashing_of([source(tmp_path / str(number)) for number in range(inputs)], sink, 64)
    rng, written = random.Random(2), 0
    while written < len(data):
        end = min(len(data), written + rng.randrange(700_000))
        sink.write(written, data[written:end])
        written = sink.watermark = end
        time.sleep(0.002)
    assert job.result() == (tuple(map(sha256, files)), sha256(data[64:]))


def test_hashing_ends_when_cancelled_before_the_output_is_whole(tmp_path: Path) -> None:
    make(tmp_path / "a")
    sink = sink_of(tmp_path / "out", bytes(4 << 20))
    sink.watermark = 1 << 20
    job = hashing_of([source(tmp_path / "a")], sink, 0)
    job.cancel()
    with pytest.raises(_native.Error, match="cancelled"):
        job.result()


def test_threads_end_with_their_object(tmp_path: Path) -> None:
    sink = sink_of(tmp_path / "out", bytes(4 << 20))
    job = hashing_of([], sink, 0)
    weak = weakref.ref(job._native)
    del job
    assert weak() is None


def test_an_interpreter_that_exits_in_the_middle_exits_quietly(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom sdsurgery import _native\nfrom sdsurgery.hashing import Hashing\n"
        "job = Hashing([], _native.Sink(os.fsencode(sys.argv[1]), 1 << 20), 0)\njob.start()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("method", "parameters", "light"),
    [("weighted-sum", {"alpha": 0.3}, True), ("slerp", {}, False), ("geometric-sum", {}, False)],
)
def test_only_light_work_leaves_processors_to_the_hashing(
    method: str, parameters: dict[str, float], light: bool, tmp_path: Path
) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, file in enumerate(files):
        write_checkpoint(file, "sd1", size="tiny", seed=seed)
    processors = _native.usable_cpus()
    for hashed in (True, False):  # the first, so that no hash is remembered
        report = sds.merge(method, files, **parameters, out=tmp_path / f"{hashed}.safetensors", hash=hashed, sync=False)
        beside = max(1, processors - max(1, processors // 2))
        assert report.how["threads"] == (beside if hashed and light else processors)
    pair = [(tmp_path / f"{hashed}.safetensors").read_bytes() for hashed in (True, False)]
    assert tensor_data(pair[0]) == tensor_data(pair[1])


def tensor_data(file: bytes) -> bytes:
    return file[8 + int.from_bytes(file[:8], "little") :]
