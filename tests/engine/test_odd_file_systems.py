"""File systems without nameless files, hard links or locks of their own; folders and targets with special rights;
inputs that are touched while they are read; limits of the process.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
from cli_support import Result, done, environment, f32, refused, sds, started, write_raw
from pickle_builder import dict_of, pickled, tensor

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library that it compiles"
)
CAST = ("cast", "in.safetensors", "--dtype", "bf16", "-o", "out.safetensors", "-q")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one small input."""
    write_raw(tmp_path / "in.safetensors", {"w": ("F32", [50_000], f32(*range(50_000)))})
    return tmp_path


def odd(library: Path, **faults: str) -> dict[str, str]:
    return {
        **environment(),
        "LD_PRELOAD": str(library),
        **{f"SDS_FAULT_{name}": value for name, value in faults.items()},
    }


def run(folder: Path, env: dict[str, str], *words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", code) if code else ("-m", "sdsurgery")), *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


# ---- without nameless files


def killed_at_work(folder: Path, env: dict[str, str]) -> list[str]:
    """Start a run, kill it while it has its temporary file open; the names of what it leaves."""
    code = (
        "import os, signal, sys\n"
        "from sdsurgery import _native\n"
        "sink = _native.Sink(b'other.safetensors', 1000)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = run(folder, env, code=code)
    assert killed.returncode == -signal.SIGKILL
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_what_a_killed_run_leaves_is_removed_by_the_next_which_says_so(folder: Path, library: Path) -> None:
    env = odd(library, NO_TMPFILE="1")
    (left,) = killed_at_work(folder, env)
    assert left.startswith(".sdsurgery-") and left.split("-")[1].isdecimal()  # named with its process
    alive = folder / ".sdsurgery-1-00000000.tmp"
    alive.write_bytes(b"x")
    with open(alive, "rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for faults in ({"NO_TMPFILE": "1"}, {}):
            (folder / left).write_bytes(b"x")
            made = run(folder, odd(library, **faults), *CAST[:-1], "--force")
            assert made.returncode == 0, made.stderr
            assert f"removed {left}, left behind by a run that was killed" in made.stdout + made.stderr
            assert alive.exists() and not (folder / left).exists()
    again = run(folder, env, *CAST, "--force")
    assert again.returncode == 0 and not alive.exists()
    assert sorted(os.listdir(folder)) == ["in.safetensors", "out.safetensors"]


def test_inflated_data_has_no_name_while_it_is_used(tmp_path: Path) -> None:
    """A kill in the middle of inflating leaves nothing."""
    out = io.BytesIO()
    noise = os.urandom(1 << 12) * 8
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled(dict_of({"w": tensor((1 << 13,), (1,), numel=1 << 13)})))
        archive.writestr("a/data/0", noise)
        archive.writestr("a/version", b"3\n")
    (tmp_path / "in.ckpt").write_bytes(out.getvalue())
    (tmp_path / "tmp").mkdir()
    code = (
        "import resource, signal, sdsurgery\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # ends the process at the first byte beyond the limit
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sdsurgery.open('in.ckpt', allow_inflate=True)\n"
    )
    env = {**environment(), "TMPDIR": str(tmp_path / "tmp")}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    assert ended.returncode == -signal.SIGXFSZ
    assert os.listdir(tmp_path / "tmp") == []


# ---- without hard links


@pytest.mark.parametrize("links", ["1", "2"])
def test_two_writers_do_not_both_win_without_hard_links(folder: Path, library: Path, links: str) -> None:
    code = (
        "import sys\n"
        "from sdsurgery import _native\n"
        "sinks = [_native.Sink(b'out.safetensors', 4) for _ in range(2)]\n"
        "won = 0\n"
        "for number, sink in enumerate(sinks):\n"
        "    sink.write(0, b'%d...' % number)\n"
        "    try: sink.commit(False, False); won += 1\n"
        "    except _native.Error as error: assert error.code == 'exists', error\n"
        "    sink.abort()\n"
        "assert won == 1 and open('out.safetensors').read() == '0...'\n"
    )
    env = odd(library, NO_TMPFILE="1", NO_LINK=links)
    assert run(folder, env, code=code).returncode == 0
    assert sorted(os.listdir(folder)) == ["in.safetensors", "out.safetensors"]
    made = run(folder, env, *CAST, "--force")
    assert (made.returncode, made.stderr) == (0, "")
    assert sorted(os.listdir(folder)) == ["in.safetensors", "out.safetensors"]


# ---- targets with special rights


def without_ownership() -> None:
    """For ``preexec_fn``: root may replace any file on Linux, but not without this capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_capbset_drop, cap_fowner = 24, 3
    if libc.prctl(pr_capbset_drop, cap_fowner, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
def test_a_target_in_a_sticky_folder_is_refused_before_the_work(folder: Path) -> None:
    shared = folder / "shared"
    shared.mkdir()
    target = shared / "out.safetensors"
    target.write_bytes(b"of another")
    os.chmod(shared, 0o1777)
    for path in (shared, target):
        os.chown(path, 65534, 65534)
    words = ("cast", "in.safetensors", "--dtype", "bf16", "-o", "shared/out.safetensors", "--force", "-q")
    refused(started(*words, cwd=folder, preexec_fn=without_ownership), 1, "sticky", "shared/out.safetensors")
    assert target.read_bytes() == b"of another"
    assert os.listdir(shared) == ["out.safetensors"]
    done(sds(*words, cwd=folder))  # who may, may


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("chattr"), reason="sets a file's flags")
def test_an_immutable_target_is_refused_before_the_work(folder: Path) -> None:
    target = folder / "out.safetensors"
    target.write_bytes(b"old")
    if subprocess.run(["chattr", "+i", target], capture_output=True, check=False).returncode:
        pytest.skip("the file system has no such flag")
    try:
        refused(sds(*CAST, "--force", cwd=folder), 1, "immutable")
        assert target.read_bytes() == b"old"
    finally:
        subprocess.run(["chattr", "-i", target], check=True)


def test_a_replaced_target_keeps_its_attributes_and_mode_but_not_setuid(folder: Path) -> None:
    target = folder / "out.safetensors"
    target.write_bytes(b"old")
    try:
        os.setxattr(target, "user.origin", b"somewhere")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    os.chmod(target, 0o6750)
    done(sds(*CAST, "--force", cwd=folder))
    assert os.getxattr(target, "user.origin") == b"somewhere"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert target.read_bytes() != b"old"


# ---- inputs that are touched while they are read

TOUCHED = """
import os, sys
import sdsurgery
change, *words = sys.argv[1:]
times = []
def progress(done, total):
    if done < total:
        return
    times.append(1)
    if len(times) > 1 and change != "always":
        return
    path = "in.safetensors"
    if change == "link": os.link(path, f"in.link.{len(times)}")
    elif change in ("mode", "always"): os.chmod(path, 0o600 + len(times))
    elif change == "attribute": os.setxattr(path, "user.seen", b"1")
    else:
        stamp = os.stat(path)
        with open(path, "rb+") as file:
            file.seek(-1000, 2); file.write(bytes(1000))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
try:
    sdsurgery.cast("in.safetensors", dtype="bf16", out="out.safetensors", hash="--no-hash" not in words,
                   overwrite="--force" in words, progress=progress)
except sdsurgery.SdsError as error:
    sys.exit(f"sdsurgery: {error}")
print(len(times))
"""


def touched(folder: Path, change: str, *words: str) -> Result:
    command = [sys.executable, "-c", TOUCHED, change, *words]
    made = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=False)
    return Result(made.returncode, made.stdout, made.stderr)


@pytest.mark.parametrize("hashed", [(), ("--no-hash",)])
@pytest.mark.parametrize("change", ["link", "mode", "attribute", "always"])
def test_a_new_name_mode_or_attribute_of_an_input_is_no_change(
    folder: Path, change: str, hashed: tuple[str, ...]
) -> None:
    done(sds(*CAST, *hashed, cwd=folder))
    want = (folder / "out.safetensors").read_bytes()
    result = touched(folder, change, *hashed, "--force")
    if change == "attribute" and result.rc and "Operation not supported" in result.err:
        pytest.skip("the file system has no extended attributes")
    assert (result.rc, result.err) == (0, "")
    assert (folder / "out.safetensors").read_bytes() == want
    assert int(result.out) == (2 if change != "always" else 4)  # it was looked at again


@pytest.mark.parametrize("hashed", [(), ("--no-hash",)])
def test_a_change_in_place_with_its_time_put_back_is_found(folder: Path, hashed: tuple[str, ...]) -> None:
    result = touched(folder, "bytes", *hashed)
    assert result.rc == 1
    assert result.err == "sdsurgery: in.safetensors: the file changed while it was being read\n"
    assert os.listdir(folder) == ["in.safetensors"]


# ---- limits of the process


def test_the_limit_on_open_files_is_said_as_such(folder: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "from sdsurgery import cli\n"
        "words = ['inspect', 'in.safetensors', '-q']\n"
        "assert cli.run(words) == 0\n"  # everything is imported now
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "try:\n"
        "    while True: os.open('in.safetensors', os.O_RDONLY)\n"
        "except OSError: pass\n"
        "sys.exit(cli.run(words))\n"
    )
    made = run(folder, environment(), code=code)
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert "in.safetensors: Too many open files (the limit of this process; ulimit -n raises it)" in made.stderr


def test_more_inputs_than_open_files_are_merged(folder: Path) -> None:
    names = [f"in.{number}.safetensors" for number in range(200)]
    for number, name in enumerate(names):
        write_raw(folder / name, {"w": ("F32", [500], f32(*(number * k % 101 for k in range(500))))})
    (folder / "out").mkdir()
    words = ("merge", "--method", "mean", *names, "-o", "out/mean.safetensors", "--force", "-q")
    done(sds(*words, cwd=folder))
    want = (folder / "out/mean.safetensors").read_bytes()
    for limit in (20, 64):
        limited = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit))
        made = started(*words, cwd=folder, preexec_fn=limited)
        assert (made.rc, made.err) == (0, "")
        assert (folder / "out/mean.safetensors").read_bytes() == want


@pytest.mark.parametrize(
    ("meanwhile", "found"),
    [
        ("os.replace('in.29.x', 'in.0.x')", "in.0.x: the file changed while it was being read"),
        ("os.utime('in.0.x', (1, 1))", "in.0.x: the file changed while it was being read"),
        ("os.chdir('/')", "b'0'"),
    ],
)
def test_a_file_that_is_opened_again_is_the_same(folder: Path, meanwhile: str, found: str) -> None:
    code = (
        "import os, resource\n"
        "from sdsurgery import _native\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        "for k in range(30): open(f'in.{k}.x', 'w').write(str(k))\n"
        "sources = [_native.Source(b'in.%d.x' % k) for k in range(30)]\n"
        f"{meanwhile}\n"
        "try: print(sources[0].read(0, 1))\n"
        "except _native.Error as error: print(error)\n"
    )
    assert run(folder, environment(), code=code).stdout == f"{found}\n"


def test_a_file_without_a_name_stays_open(folder: Path) -> None:
    code = (
        "import os, resource\n"
        "from sdsurgery import _native\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        "for k in range(30): open(f'in.{k}.x', 'w').write(str(k))\n"
        "sources = [_native.Source(b'in.0.x')]\n"
        "os.unlink('in.0.x')\n"
        "sources += [_native.Source(b'in.%d.x' % k) for k in range(1, 30)]\n"
        "print(*(source.read(0, 1).decode() for source in sources))\n"
    )
    assert run(folder, environment(), code=code).stdout.split() == [str(k)[0] for k in range(30)]
