"""What a benchmark says about the machine it ran on, and the small system calls it needs. No host names."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from typing import Any

GB = 1 << 30


def describe(folder: str) -> dict[str, Any]:
    """CPU, cores, memory, kernel, the folder's file system, Python and our version and commit."""
    import sdsurgery

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(_meminfo("MemTotal") / GB, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(folder),
        "python": platform.python_version(),
        "sdsurgery": sdsurgery.__version__,
        "commit": _commit(),
    }


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slug(name: str, cores: int) -> str:
    """A file name's part, such as ``amd-epyc-7763-2-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {cores} cores".lower()).strip("-")


def file_system(folder: str) -> str:
    """The type of the file system that holds a folder (Linux; elsewhere ``unknown``)."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return "unknown"
    real = os.path.realpath(folder)
    holding = [(len(point), kind) for point, kind in mounts if os.path.commonpath([real, point]) == point]
    return max(holding, key=lambda item: item[0])[1] if holding else "unknown"  # the last mount wins only if longer


def available_memory() -> int:
    """Bytes that programs and the page cache can still take; 0 where the system doesn't say."""
    return _meminfo("MemAvailable")


def drop_caches() -> None:
    """Forget all clean pages of files. PermissionError unless root; FileNotFoundError outside Linux."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3\n")


def _meminfo(field: str) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(rf"^{field}:\s+(\d+) kB$", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _commit() -> str | None:
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
