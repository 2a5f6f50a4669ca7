"""Runs the command line, and makes small input files."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h
TIMEOUT = 60  # seconds; a command that takes longer hangs


@dataclass(frozen=True)
class Result:
    """How a command ended: exit code (negative: killed by that signal) and what it printed, as bytes and as text."""

    rc: int
    raw_out: bytes
    raw_err: bytes

    @property
    def out(self) -> str:
        return self.raw_out.decode("utf-8")

    @property
    def err(self) -> str:
        return self.raw_err.decode("utf-8")

    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails when there is anything else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' environment without the variables that change what the command prints or how it computes."""
    hidden = ("SDS_CPU", "SDS_DEBUG", "NO_COLOR", "FORCE_COLOR", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PYTHONUTF8": "1", **(extra or {})}


def sds(*args: object, cwd: object = None) -> Result:
    """Run ``sdsurgery ARGS`` in this process: a test of what a command does needs no new interpreter for it.

    It sees an environment and streams of its own, and its handlers of signals are taken back. What depends on the
    process (signals, limits, imports, closed streams, methods that stay registered) is a test for ``started``.
    """
    from sdsurgery import cli

    words = [os.fsdecode(arg) if isinstance(arg, bytes) else str(arg) for arg in args]
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in ("out", "err")]
        out, err = (io.TextIOWrapper(file, encoding="utf-8", line_buffering=file is files[1]) for file in files)
        stack.enter_context(mock.patch.dict(os.environ, environment(), clear=True))
        stack.enter_context(mock.patch.multiple(sys, stdout=out, stderr=err, unraisablehook=sys.unraisablehook))
        if cwd is not None:
            stack.callback(os.chdir, os.getcwd())
            os.chdir(str(cwd))
        try:
            code = cli.run(words)
        except SystemExit as end:  # --help, --version
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out.flush()
        err.flush()
        return Result(code, *(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in files))


def started(
    *args: object,
    cwd: object = None,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = ("-m", "sdsurgery"),
    **options: Any,
) -> Result:
    """Run ``python -m sdsurgery ARGS`` as a user does, in a process of its own. ``options`` go to subprocess.run; a
    time-out fails the test."""
    command = [sys.executable, *python, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run(
        command,
        cwd=None if cwd is None else str(cwd),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=False,
        **options,
    )
    return Result(done.returncode, done.stdout or b"", done.stderr or b"")


def on_terminal(*args: object, columns: int, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run ``python -m sdsurgery ARGS`` on a terminal of that width, without colours unless ``env`` names another TERM:
    exit code and what it shows."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    surroundings = environment({"TERM": "dumb", **(env or {})})
    surroundings.pop("COLUMNS", None)
    command = [sys.executable, "-m", "sdsurgery", *map(str, args)]
    shown = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=surroundings) as child:
        os.close(slave)
        with contextlib.suppress(OSError):  # what a terminal without a program answers
            while part := os.read(master, 1 << 16):
                shown += part
        code = child.wait(TIMEOUT)
    os.close(master)
    return code, shown.decode().replace("\r\n", "\n")


def unprivileged() -> None:
    """For ``preexec_fn``: root may read any file on Linux; without these two capabilities modes count for it, too."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def done(result: Result) -> Result:
    """Require exit code 0 and no traceback; returns the result."""
    assert result.rc == 0, result.err
    assert "Traceback" not in result.err
    return result


def refused(result: Result, code: int, *words: str) -> str:
    """Require the code, nothing on stdout and exactly one line on stderr, with these words in it; returns the line."""
    assert result.rc == code, (result.rc, result.err)
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err.startswith("sdsurgery: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, (word, result.err)
    return result.err


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every entry of a folder, hidden ones too, with the bytes of the regular files."""
    found: dict[str, bytes | None] = {}
    for entry in os.scandir(folder):
        regular = entry.is_file(follow_symlinks=False)
        found[entry.name] = Path(entry.path).read_bytes() if regular else None
    return found


Raw = tuple[str, Sequence[int], bytes]  # dtype, shape, data


def write_raw(path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file written by hand from the format's description: any names, dtypes and bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return path


def read_raw(path: Path) -> tuple[dict[str, Raw], dict[str, str]]:
    """Tensors (in the order of the header) and metadata of a safetensors file, read by hand."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = content[8 + length :]
    tensors = {name: (row["dtype"], row["shape"], body[slice(*row["data_offsets"])]) for name, row in header.items()}
    return tensors, metadata


def transposed(raw: Raw) -> Raw:
    """A matrix by its columns."""
    dtype, (rows, columns), data = raw
    size = len(data) // (rows * columns)
    items = [data[at : at + size] for at in range(0, len(data), size)]
    return dtype, [columns, rows], b"".join(item for column in range(columns) for item in items[column::columns])


def f32(*values: float) -> bytes:
    """Little-endian float32 bytes."""
    return struct.pack(f"<{len(values)}f", *values)


def floats(raw: Raw) -> list[float]:
    """Values of an F32 or F16 tensor."""
    dtype, _, data = raw
    kind = {"F32": "f", "F16": "e"}[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def plain(path: Path, *values: float, names: Iterable[str] = ("w",)) -> Path:
    """A file of unknown layout whose tensors are F32 vectors of these values."""
    return write_raw(path, {name: ("F32", [len(values)], f32(*values)) for name in names})


def no_new_entries(before: Mapping[str, Any], folder: Path, *allowed: str) -> None:
    """Require that nothing was left in a folder: no temporary file, no partial output."""
    left = set(os.listdir(folder)) - set(before) - set(allowed)
    assert not left, left
