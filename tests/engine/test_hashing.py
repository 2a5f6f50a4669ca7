"""Hashes: their definitions, the background threads, and a cache that can cost time but never be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pickle_builder import Memory
from sdsurgery import hashing
from sdsurgery.errors import Interrupted, RunFailed
from sdsurgery.hashing import BodyHash, FileHash, autov2, autov3, cache_folder, legacy_hash

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


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes are hashed from now on, as opposed to recalled."""
    hashed: list[str] = []
    original = FileHash._digest

    def spy(self: FileHash, readinto):
        hashed.append(os.path.basename(self._path))
        return original(self, readinto)

    monkeypatch.setattr(FileHash, "_digest", spy)
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
    job = FileHash(tmp_path / "a")
    assert job.result() == sha256(data) == job.result()
    assert job.done


def test_a_second_run_recalls_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    hashed = count_hashing(monkeypatch)
    for path in (tmp_path / "a", str(tmp_path / "a"), tmp_path / "link"):
        assert FileHash(path).result() == sha256(data)
    assert hashed == ["a"]


def test_a_changed_file_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    hashed = count_hashing(monkeypatch)
    for seed in range(3):
        data = make(path, 1000 + seed, seed)
        assert FileHash(path).result() == sha256(data)
    assert len(hashed) == 3


def test_a_file_replaced_by_one_of_the_same_size_and_mtime_is_hashed_again(tmp_path: Path) -> None:
    make(tmp_path / "a", 1000, 1)
    os.utime(tmp_path / "a", ns=(10**18, 10**18))
    FileHash(tmp_path / "a").result()
    time.sleep(0.02)
    data = make(tmp_path / "b", 1000, 2)
    os.utime(tmp_path / "b", ns=(10**18, 10**18))
    os.replace(tmp_path / "b", tmp_path / "a")
    assert FileHash(tmp_path / "a").result() == sha256(data)


def test_a_file_written_just_now_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_FRESH_NS", 3600 * 10**9)
    data = make(tmp_path / "a")
    assert FileHash(tmp_path / "a").result() == sha256(data)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_an_error_and_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    make(path)
    original = FileHash._digest

    def grow(self: FileHash, readinto):
        with path.open("ab") as file:
            file.write(b"!")
        return original(self, readinto)

    monkeypatch.setattr(FileHash, "_digest", grow)
    with pytest.raises(RunFailed, match="changed while it was being hashed"):
        FileHash(path).result()
    assert not cache.exists()


def test_errors_of_the_thread_surface_in_result(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"missing.*could not be read.*No such file"):
        FileHash(tmp_path / "missing").result()
    with pytest.raises(RunFailed, match=r"could not be read|regular file"):
        FileHash(tmp_path).result()


@POSIX_ONLY
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RunFailed, match="no longer a regular file"):
        FileHash(tmp_path / "fifo").result()


def test_cancelling_stops_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")
    started = threading.Event()

    def endless(self: FileHash, readinto):
        while True:
            started.set()
            self._check_cancelled()
            time.sleep(0.001)

    monkeypatch.setattr(FileHash, "_digest", endless)
    job = FileHash(tmp_path / "a")
    assert started.wait(10)
    assert not job.done
    job.cancel()
    assert job.done
    with pytest.raises(Interrupted):
        job.result()


# ---------------------------------------------------------------- the cache file


def test_many_hashes_at_once_are_all_remembered(tmp_path: Path, cache: Path) -> None:
    for number in range(8):
        make(tmp_path / f"{number}", 1000, number)
    for job in [FileHash(tmp_path / f"{number}") for number in range(8)]:
        job.result()
    assert {os.path.basename(path) for path in entries(cache)} == {f"{number}" for number in range(8)}
    assert os.listdir(cache) == ["hashes.json"]


def test_the_cache_keeps_the_newest_thousand(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_CACHE_ENTRIES", 3)
    for name in ("a", "b", "c", "a", "d", "e"):
        make(tmp_path / name, 100, random.randrange(10**9))
        FileHash(tmp_path / name).result()
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
    assert FileHash(tmp_path / "a").result() == sha256(data)
    assert entries(cache)[str(tmp_path / "a")][1] == sha256(data)


def test_a_huge_cache_file_is_not_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    FileHash(tmp_path / "a").result()
    monkeypatch.setattr(hashing, "_CACHE_MAX_BYTES", 10)
    hashed = count_hashing(monkeypatch)
    assert FileHash(tmp_path / "a").result() == sha256(data)
    assert hashed == ["a"]


def test_an_unusable_cache_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "taken" / "hashes.json").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken", Path("/proc/nowhere")):
        monkeypatch.setenv("SDS_CACHE", str(folder))
        assert FileHash(tmp_path / "a").result() == sha256(data)
    assert os.listdir(tmp_path / "taken") == ["hashes.json"]


@POSIX_ONLY
def test_the_cache_is_private(tmp_path: Path, cache: Path) -> None:
    make(tmp_path / "a")
    FileHash(tmp_path / "a").result()
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
    assert FileHash(path).result() == FileHash(path).result() == sha256(data)
    assert len(hashed) == 1


def test_processes_that_write_at_the_same_time_leave_a_sound_cache(tmp_path: Path, cache: Path) -> None:
    script = (
        "import sys\nfrom sdsurgery import hashing\nhashing._FRESH_NS = -10**18\n"
        "for path in sys.argv[1:]:\n    print(hashing.FileHash(path).result())\n"
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


# ---------------------------------------------------------------- the body of a growing output


class Growing:
    """An output whose first ``written`` bytes are there; reading beyond them is the mistake that tests look for."""

    def __init__(self, data: bytes, written: int = 0, most: int = 1 << 30) -> None:
        self.data, self.written, self.most = data, written, most
        self.reads = 0

    def read_into(self, offset: int, view: memoryview) -> int:
        assert offset + len(view) <= self.written, "read beyond the watermark"
        self.reads += 1
        count = min(len(view), self.most)
        view[:count] = self.data[offset : offset + count]
        return count

    def watermark(self) -> int:
        return self.written

    def hash(self, start: int) -> BodyHash:
        return BodyHash(self.read_into, start, len(self.data), self.watermark)


@pytest.mark.parametrize("size", [100, (1 << 20) + 100, 3_333_333])
@pytest.mark.parametrize("most", [777_777, 1 << 30])
def test_body_hash_is_of_everything_behind_the_start(size: int, most: int) -> None:
    data = random.Random(size).randbytes(size)
    assert Growing(data, size, most).hash(100).result() == sha256(data[100:])


def test_body_hash_never_reads_beyond_the_watermark() -> None:
    data = random.Random(1).randbytes(5_000_000)
    output = Growing(data)
    job = output.hash(64)
    rng = random.Random(2)
    while output.written < len(data):
        output.written = min(len(data), output.written + rng.randrange(700_000))
        time.sleep(0.002)
    assert job.result() == sha256(data[64:])


def test_body_hash_runs_along_and_does_not_wait_for_the_end() -> None:
    output = Growing(bytes(4 << 20), 3 << 20)
    job = output.hash(0)
    deadline = time.monotonic() + 10
    while output.reads < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert output.reads == 3
    assert not job.done
    output.written = 4 << 20
    assert job.result() == sha256(bytes(4 << 20))


def test_body_hash_stops_when_cancelled_before_the_output_is_whole() -> None:
    output = Growing(bytes(4 << 20), 1 << 20)
    job = output.hash(0)
    job.cancel()
    assert job.done
    with pytest.raises(Interrupted):
        job.result()


def test_body_hash_surfaces_what_goes_wrong_in_its_thread() -> None:
    def broken(offset: int, view: memoryview) -> int:
        raise OSError(5, "Input/output error")

    with pytest.raises(RunFailed, match="the output could not be read for its hash: Input/output error"):
        BodyHash(broken, 0, 10, lambda: 10).result()
    with pytest.raises(RunFailed, match="ends at byte 3, expected 10"):
        BodyHash(lambda offset, view: 0, 3, 10, lambda: 10).result()
    with pytest.raises(ZeroDivisionError):
        BodyHash(lambda offset, view: 1 // 0, 0, 10, lambda: 10).result()
