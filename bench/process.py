"""Run one process to its end: wall-clock time, and the most memory it held."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAMPLE_SECONDS = 0.01


class ProcessFailed(Exception):
    """A contender exited with an error; the text has its last lines."""


@dataclass(frozen=True)
class Measured:
    """Seconds from start to end (``fsync`` included when asked for), and peaks in bytes.

    ``anonymous`` is the largest RssAnon seen in samples every 10 ms (None outside Linux); ``resident`` the kernel's
    own maximum at the last sample, which also counts mapped pages of files.
    """

    seconds: float
    anonymous: int | None
    resident: int | None
    stdout: str


def measure(argv: Sequence[str], *, fsync: str | None = None, env: Mapping[str, str] | None = None) -> Measured:
    """Run ``argv``; then, still timed, flush the file ``fsync``. Raises ProcessFailed when it does not exit with 0."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdout=stdout, stderr=stderr, env=env)
        try:
            anonymous, resident = _watch(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if fsync is not None and process.returncode == 0:
            _flush(fsync)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        text, complaint = (file.read().decode("utf-8", "replace") for file in (stdout, stderr))
    if process.returncode != 0:
        last = " | ".join(complaint.strip().splitlines()[-3:])
        raise ProcessFailed(f"{argv[0]} exited with {process.returncode}: {last}")
    return Measured(seconds, anonymous, resident, text)


def _watch(process: subprocess.Popen[bytes]) -> tuple[int | None, int | None]:
    """Sample anonymous and peak resident memory until the process ends, through a descriptor that wakes us then."""
    if not hasattr(os, "pidfd_open"):
        process.wait()
        return None, None
    import select

    peak, resident = 0, 0
    descriptor = os.pidfd_open(process.pid)
    try:
        while not select.select([descriptor], [], [], SAMPLE_SECONDS)[0]:
            found = _status(process.pid)
            peak = max(peak, found.get("RssAnon", 0))
            resident = max(resident, found.get("VmHWM", 0))
    finally:
        os.close(descriptor)
    process.wait()
    return peak, resident


def _status(pid: int) -> dict[str, int]:
    """Memory fields of /proc/PID/status in bytes; empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return {
                name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.MULTILINE)
            }
    except OSError:
        return {}


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
