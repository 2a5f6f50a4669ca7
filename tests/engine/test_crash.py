"""The output appears whole or not at all: kills, full disks, closed pipes and inputs that change under the run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import interrupts
import pytest
from cli_support import Result, done, environment, listing, plain, refused, sds, started
from sdsurgery.testing import write_checkpoint

HELPERS = Path(interrupts.__file__).resolve().parent

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and quotas as POSIX has them")

MERGE = (
    "merge",
    "--method",
    "weighted-sum",
    "a.safetensors",
    "b.safetensors",
    "-o",
    "out.safetensors",
    "--force",
    "-q",
)


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """Each test leaves up to 400 MB, which pytest would keep for three sessions."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 37 MB, small enough to merge often and large enough to be caught in the middle."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        write_checkpoint(folder / f"{name}.safetensors", "sdxl-base", size="tiny", seed=seed)
    return folder


@pytest.fixture(scope="module")
def merged(models: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed merge writes."""
    folder = _folder(models, tmp_path_factory.mktemp("merged"))
    done(sds(*MERGE, cwd=folder))
    return (folder / "out.safetensors").read_bytes()


def _folder(models: Path, folder: Path) -> Path:
    """A folder with the two inputs (the same files under new names) and an old output."""
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).hardlink_to(models / name)
    (folder / "out.safetensors").write_bytes(b"old")
    return folder


# The command line, with the backend of tests/helpers/backends/meddling.py among its own.
MEDDLING = f"""
import sys
from sdsurgery import __main__, backends
backends.__path__.append({str(HELPERS / "backends")!r})
sys.exit(__main__.main())
"""


def _meddled(
    folder: Path, action: str, *extra: str, delay: float | None = None, inner: str = "cpu", code: str = MEDDLING
) -> Result:
    """A merge whose backend does something else besides: at once, or so many seconds after the run began."""
    env = {"ACTION": action, "INNER": inner} | ({} if delay is None else {"DELAY": str(delay)})
    return started(*MERGE, "--threads", "2", "--backend", "meddling", *extra, cwd=folder, python=("-c", code), env=env)


# ---- signals

# Runs the command line as __main__ does, and informs its parent when the handlers of signals are in place.
READY = """
import os, signal, sys
from sdsurgery import __main__
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
left = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
install = signal.signal
def announced(number, handler):
    before = install(number, handler)
    if number in left:
        left.remove(number)
        left or os.write(1, b"ready")
    return before
signal.signal = announced
sys.exit(__main__.main())
"""


def _struck(folder: Path, number: int | None, delay: float) -> tuple[int, str, float]:
    """Start a merge, send the signal ``delay`` seconds after its handlers are in place; code, stderr, seconds."""
    command = [sys.executable, "-c", READY, *MERGE, "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment(), **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.read(5) == b"ready"
        started = time.monotonic()
        if number is not None:
            time.sleep(delay)
            child.send_signal(number)
        _, err = child.communicate(timeout=60)
        return child.returncode, err.decode(), time.monotonic() - started


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_at_any_moment_leaves_the_old_file_or_the_whole_new_one(
    models: Path, merged: bytes, tmp_path: Path, name: str
) -> None:
    number = getattr(signal, name)
    folders = [tmp_path / str(i) for i in range(10)]
    for folder in folders:
        folder.mkdir()
        _folder(models, folder)
    whole = _struck(folders[0], None, 0)[2]
    (folders[0] / "out.safetensors").write_bytes(b"old")
    chance = random.Random(number)
    delays = [chance.uniform(0, 1.1 * whole) for _ in folders]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda pair: _struck(pair[0], number, pair[1]), zip(folders, delays, strict=True)))
    interrupted = 0
    for folder, (code, err, _) in zip(folders, ends, strict=True):
        assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", "out.safetensors"]
        now = (folder / "out.safetensors").read_bytes()
        assert now in (b"old", merged)
        if number == signal.SIGKILL:
            assert code in (0, -number)
        else:
            assert code in (0, 130), err
            assert "Traceback" not in err
        if code == 130:
            assert err.startswith("sdsurgery: interrupted")
            assert err.count("\n") == 1
            assert now == b"old" or "nothing was written" not in err
        if code == 0:
            assert (now, err) == (merged, "")
        interrupted += code != 0
        (folder / "out.safetensors").unlink()
    assert interrupted >= 3, "too few were caught at work for this test to mean anything"


# A signal as soon as the output has its name: the moment that random ones rarely meet.
LATE = """
import os, signal, sys, threading
from sdsurgery import __main__
old = os.stat("out.safetensors").st_ino
def strike():
    while os.stat("out.safetensors").st_ino == old:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=strike, daemon=True).start()
sys.exit(__main__.main())
"""


def test_an_interruption_after_the_rename_does_not_claim_that_nothing_was_written(
    models: Path, merged: bytes, tmp_path: Path
) -> None:
    folder = _folder(models, tmp_path)
    result = started(*MERGE, cwd=folder, python=("-c", LATE))
    assert (folder / "out.safetensors").read_bytes() == merged
    assert result.rc in (0, 130)
    assert "nothing was written" not in result.err
    if result.rc == 130:
        refused(result, 130, "interrupted")


def test_a_signal_that_the_parent_ignores_stays_ignored(models: Path, merged: bytes, tmp_path: Path) -> None:
    folder = _folder(models, tmp_path)
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    done(_meddled(folder, "hang up", code=ignoring + MEDDLING))
    assert (folder / "out.safetensors").read_bytes() == merged


# ---- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "sdsurgery-test", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


def test_a_full_disk_is_refused_at_once_with_one_line(models: Path, small_disk: Path) -> None:
    out = small_disk / "out.safetensors"
    out.write_bytes(b"old")
    before = listing(small_disk)
    paths = [models / "a.safetensors", models / "b.safetensors"]
    result = sds("merge", "--method", "weighted-sum", *paths, "-o", out, "--force")
    refused(result, 1, "no room", "bytes needed")
    assert listing(small_disk) == before


def test_an_output_that_fits_is_written_on_the_small_disk(tmp_path: Path, small_disk: Path) -> None:
    path = plain(tmp_path / "in.safetensors", *range(1000))
    done(sds("cast", path, "--dtype", "fp16", "-o", small_disk / "out.safetensors"))


@pytest.mark.parametrize("old", [True, False])
def test_a_limit_on_the_size_of_files_is_one_line(models: Path, tmp_path: Path, old: bool) -> None:
    import resource

    folder = _folder(models, tmp_path)
    if not old:
        (folder / "out.safetensors").unlink()
    before = listing(folder)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    refused(started(*MERGE, cwd=folder, preexec_fn=limit), 1, "no room")
    assert listing(folder) == before


def test_a_write_that_fails_in_the_middle_is_one_line_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    folder = _folder(models, tmp_path)
    before = listing(folder)
    for inner, extra in (("cpu", ()), ("cpu", ("--no-hash",)), ("reference", ())):
        refused(_meddled(folder, "fill up", *extra, inner=inner), 1, "write")
        assert listing(folder) == before


@pytest.mark.skipif(sys.platform != "linux", reason="a thread's stack is as large as the limit, and counts")
def test_fewer_threads_than_asked_for_are_enough_and_none_is_one_line(models: Path, tmp_path: Path) -> None:
    import resource

    def limits(stack: int, room: int) -> Callable[[], None]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_AS, (room, room))

        return limit

    folder = _folder(models, tmp_path)
    done(sds(*MERGE, "--no-hash", cwd=folder))
    whole = (folder / "out.safetensors").read_bytes()
    several = [arg for arg in (*MERGE, "--no-hash", "--threads", "32", "--json") if arg != "-q"]
    (folder / "out.safetensors").unlink()
    report = done(started(*several, cwd=folder, preexec_fn=limits(512 << 20, 3 << 30))).json()
    assert 1 <= report["how"]["threads"] < 6
    assert (folder / "out.safetensors").read_bytes() == whole
    refused(started(*MERGE, "--no-hash", cwd=folder, preexec_fn=limits(2 << 30, 3 << 29)), 1, "thread")
    assert (folder / "out.safetensors").read_bytes() == whole


# ---- closed standard streams


def _with_closed_stdout(*args: object, cwd: Path) -> Result:
    return started(*args, cwd=cwd, stdout=None, preexec_fn=lambda: os.close(1))


def _with_broken_stdout(*args: object, cwd: Path) -> Result:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return started(*args, cwd=cwd, stdout=writer)
    finally:
        os.close(writer)


@pytest.mark.parametrize("run", [_with_closed_stdout, _with_broken_stdout], ids=["closed", "broken pipe"])
def test_a_stdout_without_a_reader_is_one_line_and_code_1(models: Path, tmp_path: Path, run: object) -> None:
    folder = _folder(models, tmp_path)
    for command in (
        ("inspect", "a.safetensors"),
        ("layouts", "--json"),
        ("merge", "--method", "weighted-sum", "a.safetensors", "b.safetensors", "--dry-run", "--json"),
        (*MERGE, "--json", "--no-hash"),
    ):
        refused(run(*command, cwd=folder), 1, "standard output")  # type: ignore[operator]
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", "out.safetensors"]
    assert (folder / "out.safetensors").read_bytes() == b"old", "refused before the work"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_report_that_cannot_be_printed_is_one_line_after_the_file_is_written(
    models: Path, merged: bytes, tmp_path: Path
) -> None:
    folder = _folder(models, tmp_path)
    with open("/dev/full", "wb") as full:
        refused(started(*MERGE, "--json", cwd=folder, stdout=full), 1, "standard output", "the output was written")
        assert (folder / "out.safetensors").read_bytes() == merged
        loud = [arg for arg in MERGE if arg != "-q"]
        assert started(*loud, cwd=folder, stderr=full).rc == 0, "a report that cannot be printed"
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", "out.safetensors"]


def test_a_merge_without_stdout_or_stderr_still_writes_its_file(models: Path, merged: bytes, tmp_path: Path) -> None:
    folder = _folder(models, tmp_path)

    def close() -> None:
        os.close(1)
        os.close(2)

    result = started(*(arg for arg in MERGE if arg != "-q"), cwd=folder, stdout=None, stderr=None, preexec_fn=close)
    assert result.rc == 0
    assert (folder / "out.safetensors").read_bytes() == merged


def test_a_pager_that_quits_early_causes_no_traceback(models: Path) -> None:
    result = _with_broken_stdout("merge", "--help", cwd=models)
    assert "Traceback" not in result.err
    assert "Exception" not in result.err


# ---- inputs that change


def _copies(models: Path, folder: Path) -> Path:
    """Inputs that may be damaged, written long enough ago that a change shows in their time."""
    folder.mkdir(exist_ok=True)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes((models / name).read_bytes())
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    (folder / "out.safetensors").write_bytes(b"old")
    return folder


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("what", ["empty", "half", "unaligned", "a little", "rewrite"])
def test_an_input_that_changes_before_it_is_read_is_one_line(models: Path, tmp_path: Path, io: str, what: str) -> None:
    folder = _copies(models, tmp_path)
    for extra in (("--no-hash",), ()) if what == "half" else ((),):
        result = _meddled(folder, what, "--io", io, *extra)
        assert result.rc in (1, 3), (result.rc, result.err)
        refused(result, result.rc)
        assert "b.safetensors" in result.err
        assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", "out.safetensors"]
        assert (folder / "out.safetensors").read_bytes() == b"old"
        _copies(models, folder)


def test_a_shrinking_input_is_one_line_when_others_took_the_signal(models: Path, tmp_path: Path) -> None:
    folder = _copies(models, tmp_path)
    taken = "import faulthandler, sdsurgery\nsdsurgery.cast('a.safetensors', dtype='bf16', out='a.out', io='mmap')\n"
    result = _meddled(folder, "half", "--io", "mmap", "--no-hash", code=taken + "faulthandler.enable()\n" + MEDDLING)
    refused(result, result.rc)
    assert "b.safetensors" in result.err
    assert (folder / "out.safetensors").read_bytes() == b"old"


def test_a_fault_of_somebody_else_ends_the_process_as_it_would_without_us(models: Path, tmp_path: Path) -> None:
    """faulthandler passes it on to us, who were there before it, and we to faulthandler, who was there before us."""
    code = """
import faulthandler, mmap, os, sys, sdsurgery
run = lambda: sdsurgery.cast(sys.argv[1], dtype="bf16", out="out.safetensors", io="mmap", overwrite=True, sync=False)
run(); faulthandler.enable(); run()
with open("short", "w+b") as file:
    file.truncate(8192)
    mapping = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
    mapping[5000]
"""
    command = [sys.executable, "-c", code, str(models / "a.safetensors")]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == -signal.SIGBUS
    assert ran.stderr.count("Fatal Python error: Bus error") == 1


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("what", ["half", "rewrite"])
def test_an_input_that_changes_while_it_is_read_is_one_line(
    models: Path, merged: bytes, tmp_path: Path, io: str, what: str
) -> None:
    noticed = 0
    for turn in range(3):
        folder = _copies(models, tmp_path / str(turn))
        result = _meddled(folder, what, "--io", io, "--no-hash", delay=0.004 * turn)
        assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", "out.safetensors"]
        now = (folder / "out.safetensors").read_bytes()
        if result.rc == 0:  # the run was over before
            assert len(now) > 30_000_000
            continue
        assert result.rc in (1, 3), (result.rc, result.err)
        refused(result, result.rc)
        assert now == b"old"
        noticed += 1
    assert noticed, "no change was in time for this test to mean anything"


@pytest.mark.parametrize("middle", [False, True], ids=["tiny", "middle"])
def test_a_script_that_is_interrupted_anywhere_ends_cleanly(tmp_path: Path, middle: bool) -> None:
    """More of it: python tests/helpers/interrupts.py --count 500"""
    interrupts.make_inputs(tmp_path, middle=middle)
    ends = interrupts.many(tmp_path, 12)
    assert ends["interrupted"] > 3, ends


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_the_reference_backend_survives_a_shrinking_input_too(models: Path, tmp_path: Path, io: str) -> None:
    folder = _copies(models, tmp_path)
    result = _meddled(folder, "half", "--io", io, "--no-hash", inner="reference")
    assert result.rc in (1, 3), (result.rc, result.err)
    refused(result, result.rc)
    assert (folder / "out.safetensors").read_bytes() == b"old"
