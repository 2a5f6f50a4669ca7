"""Many Python threads at one Source, Sink, Run and Hasher, and merges side by side: right results, or a refusal. What
these find depends on luck; under ThreadSanitizer (CONTRIBUTING.md) they find data races even where all went well."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from sdsurgery import _native

THREADS = 8
MIB = 1 << 20


def together(*works: Callable[[], object]) -> list[Any]:
    """Every work on a thread of its own, all of which start at once: their results, in order."""
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def thread(number: int) -> None:
        try:
            barrier.wait(30)
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(len(works))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
        assert not each.is_alive(), "a thread hangs"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def pattern(seed: int, count: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


def test_a_source_is_read_by_many(tmp_path: Path) -> None:
    data = pattern(0, 3 * MIB)
    (tmp_path / "in").write_bytes(data)
    source = _native.Source(os.fsencode(tmp_path / "in"))

    def read(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(200):
            first = choose.randrange(len(data) - 4096)
            wanted = data[first : first + 4096]
            buffer = bytearray(4096)
            source.read_into(first, buffer)
            assert source.read(first, 4096) == bytes(buffer) == wanted
            assert bytes(memoryview(source.map())[first : first + 4096]) == wanted
            source.gather_into(first, (2, (2048,), (1,), 0), 0, buffer)
            assert bytes(buffer) == wanted and source.size == len(data)
            source.check_unchanged()

    together(*(partial(read, seed) for seed in range(THREADS)))


@pytest.mark.parametrize("way", ["read", "map", "check_unchanged"])
def test_a_source_closed_beside_reads_gives_its_own_bytes_or_a_refusal(tmp_path: Path, way: str) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 65536)

    def use(source: _native.Source) -> None:
        try:
            for _ in range(100):
                if way == "read":
                    assert source.read(0, 65536) == b"a" * 65536
                elif way == "map":
                    assert bytes(memoryview(source.map(True))[:4096]) == b"a" * 4096
                else:
                    source.check_unchanged()
        except _native.Error as error:
            assert error.code == "invalid" and "closed" in str(error)

    def close(source: _native.Source, pause: int) -> None:
        for _ in range(pause):
            source.path  # noqa: B018
        source.close()
        for _ in range(10):  # these take the number of the handle that is free now
            _native.Source(os.fsencode(tmp_path / "b")).read(0, 1)

    for pause in range(40):
        source = _native.Source(os.fsencode(tmp_path / "a"))
        together(*[partial(use, source)] * 4, *[partial(close, source, 4 * pause)] * 2)


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_a_sink_ends_once_and_takes_no_write_after(tmp_path: Path, end: str) -> None:
    def write(sink: _native.Sink, number: int) -> None:
        try:
            for _ in range(50):
                sink.write(number * 65536, bytes([number]) * 65536)
        except _native.Error as error:
            assert error.code == "invalid" and "closed" in str(error)

    def finish(sink: _native.Sink) -> int:
        while not sink.watermark:
            pass
        try:
            sink.abort() if end == "abort" else sink.commit(False, False)
        except _native.Error as error:
            assert "closed" in str(error)
            return 0
        return 1

    for turn in range(20):
        path = tmp_path / str(turn)
        sink = _native.Sink(os.fsencode(path), 4 * 65536)

        def start(sink: _native.Sink = sink, turn: int = turn) -> None:
            for _ in range(10 * turn):
                sink.size  # noqa: B018
            sink.watermark = 1

        ends = together(*(partial(write, sink, k) for k in range(4)), *[partial(finish, sink)] * 2, start)
        assert sink.committed == path.exists() == (end == "commit")
        if end == "commit":
            assert ends[4] + ends[5] == 1
            left = np.frombuffer(path.read_bytes(), np.uint8).reshape(4, -1)
            assert all(set(part.tolist()) <= {0, number} for number, part in enumerate(left))
        assert len(list(tmp_path.iterdir())) == (turn + 1 if end == "commit" else 0)


def test_a_run_is_watched_and_finished_by_many(tmp_path: Path) -> None:
    count = MIB
    values = np.random.default_rng(3).standard_normal((2, count)).astype(np.float32)
    values[0, :7] = np.nan
    sources = [_native.Source.memory(row.tobytes()) for row in values]
    operands = ((0, 1, 0), (1, 1, 0))  # float32

    def run(sink: _native.Sink | None, jobs: list[Any]) -> _native.Run:
        return _native.Run(sources=sources, programs=[], fills=[], jobs=jobs, sink=sink, threads=2, tile_bytes=4096)

    reduce = [(3, 0, 1, 0, count, operands, ())]
    quiet = run(None, reduce)
    quiet.start()
    quiet.finish()
    wanted = quiet.reductions()
    for _ in range(5):
        watched = run(None, reduce)

        def watch(watched: _native.Run = watched) -> object:
            while not watched.wait(0.0001):
                assert 0 <= watched.bytes_done <= 4 * count and watched.workers <= 2
                watched.tallies(), watched.reductions(), watched.sums(), watched.damaged(), watched.buffer_bytes
            watched.finish()
            return watched.reductions()

        watched.start()
        with pytest.raises(_native.Error, match="once"):
            watched.start()
        assert together(*[watch] * THREADS) == [wanted] * THREADS

    copy = [(0, 0, 0, 0, 4 * count, ((0, 0, 0),), ())]
    for turn in range(20):
        sink = _native.Sink(os.fsencode(tmp_path / "out"), 4 * count)
        cancelled = run(sink, copy)

        def cancel(cancelled: _native.Run = cancelled, turn: int = turn) -> None:
            while cancelled.bytes_done < turn * 4096 and not cancelled.wait(0):
                pass
            cancelled.cancel()

        def finish(cancelled: _native.Run = cancelled) -> str:
            try:
                cancelled.finish()
            except _native.Error as error:
                return str(error.code)
            return "done"

        cancelled.start()
        assert set(together(*[finish] * 3, *[cancel] * 3)) <= {"cancelled", "done", None}


def test_a_hasher_is_finished_by_many(tmp_path: Path) -> None:
    data = [pattern(seed, 2 * MIB + seed) for seed in range(3)]
    sources = []
    for number, item in enumerate(data):
        (tmp_path / str(number)).write_bytes(item)
        sources.append(_native.Source(os.fsencode(tmp_path / str(number))))
    hasher = _native.Hasher(sources)

    def finish() -> list[str]:
        while not hasher.wait(0.0001):
            assert len(hasher.files) == 3 and hasher.processors
        hasher.finish()
        return hasher.files

    hasher.start()
    with pytest.raises(_native.Error, match="once"):
        hasher.start()
    wanted = [hashlib.sha256(item).hexdigest() for item in data]
    assert together(*[finish] * THREADS) == [wanted] * THREADS


def test_merges_and_arrays_side_by_side(trio: list[Path], tmp_path: Path) -> None:
    def merge(number: int) -> str:
        out = tmp_path / f"{number}.safetensors"
        with sdsurgery.open(trio[0]) as a:
            report = sdsurgery.merge("weighted-sum", [a, trio[1]], alpha=0.3, out=out, threads=1 + number % 3)
        return report.body_sha256

    results = together(*(partial(merge, number) for number in range(4)))
    assert len(results[0]) == 64 and len(set(results)) == 1
    a, b = np.random.default_rng(1).standard_normal((2, 100_000)).astype(np.float32)
    wanted = sdsurgery.apply("weighted-sum", a, b, alpha=0.3)
    for result in together(*[lambda: sdsurgery.apply("weighted-sum", a, b, alpha=0.3)] * THREADS):
        assert np.array_equal(result, wanted)


def test_importing_the_module_keeps_the_gil_off_where_it_is() -> None:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python has a GIL")
    code = "import sys, sdsurgery._native; sys.exit(sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, timeout=60).returncode == 0
