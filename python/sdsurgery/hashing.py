"""The hashes that the ecosystem knows checkpoints by, computed beside the work, never before it.

====================  ===========================================================================================
SHA256                the whole file
AutoV2, short hash    its first 10 hexadecimal digits
AutoV1, legacy hash   SHA-256 of the 64 KiB at offset 1 MiB (what there is of them), first 8 digits
body SHA256           everything behind the header: ``sshs_model_hash``, and ``modelspec.hash_sha256`` after ``0x``
AutoV3                the body's, first 12 digits
====================  ===========================================================================================

Hashes of input files are remembered between runs in one small file in the user's cache folder (``SDS_CACHE``
overrides the folder). Nothing that goes wrong with that file is ever an error: it only costs hashing again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import time
from _thread import allocate_lock
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import Interrupted, RunFailed, printable

if TYPE_CHECKING:
    from ._native import Source

_BLOCK = 1 << 20
_LEGACY_OFFSET, _LEGACY_BYTES = 0x100000, 0x10000
_POLL_SECONDS = 0.005

_CACHE_FILE = "hashes.json"
_CACHE_ENTRIES = 1000
_CACHE_MAX_BYTES = 8 << 20
_FRESH_NS = 2_000_000_000  # coarsest time stamp in use (FAT): a younger file may still change under the same stamp
_SHA256 = r"[0-9a-f]{64}"


def legacy_hash(source: Source) -> str:
    """AutoV1, A1111's ``model_hash``: 8 hexadecimal digits. Many files share one, and it changes with the header."""
    nbytes = max(0, min(_LEGACY_BYTES, source.size - _LEGACY_OFFSET))
    part = source.read(_LEGACY_OFFSET, nbytes) if nbytes else b""
    return _small_sha256()(part).hexdigest()[:8]


def _small_sha256() -> Any:
    """hashlib's own fallback: for 64 KiB it is not worth loading OpenSSL, which takes as long as reading a header."""
    for module in ("_sha2", "_sha256", "hashlib"):  # Python 3.12 and later, earlier ones, any
        try:
            return import_module(module).sha256
        except ImportError:
            continue
    raise AssertionError("hashlib is always there")


def autov2(sha256: str) -> str:
    """A1111's short hash: the first 10 digits of the whole file's SHA-256."""
    return sha256[:10]


def autov3(body_sha256: str) -> str:
    """The first 12 digits of the header-free SHA-256, which survives a change of the metadata."""
    return body_sha256[:12]


def _sha256() -> Any:
    import hashlib

    return hashlib.sha256()


class _Background:
    """A SHA-256 computed by a thread of its own. hashlib releases the GIL, so it runs beside everything else."""

    def __init__(self, what: str) -> None:
        import threading

        self._what = what
        self._cancelled = threading.Event()
        self._value = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="sdsurgery-hash", daemon=True)
        self._thread.start()

    def _compute(self) -> str:
        raise NotImplementedError

    def _main(self) -> None:
        try:
            self._value = self._compute()
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error

    @property
    def done(self) -> bool:
        """Whether ``result`` returns (or raises) at once."""
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stop, and return when the thread has: whatever it reads from may be closed then."""
        self._cancelled.set()
        self._thread.join()

    def result(self) -> str:
        """64 hexadecimal digits; waits for them.

        Raises RunFailed when the bytes could not be read, Interrupted when it was cancelled.
        """
        while self._thread.is_alive():
            self._thread.join(0.2)  # a join without a limit would swallow Ctrl-C on Windows
        if isinstance(self._error, OSError):
            raise RunFailed(f"{self._what} could not be read for its hash: {self._error.strerror}", code="io") from None
        if self._error is not None:
            raise self._error
        return self._value

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("hashing was cancelled")


class FileHash(_Background):
    """SHA-256 of a whole input file, begun at once in the background; taken from the cache where that is safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.realpath(path)
        super().__init__(printable(os.fspath(path)))

    def _compute(self) -> str:
        # Not blocking: the path may have become a FIFO since the engine opened it.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(self._path, "rb", buffering=0, opener=lambda path, _: os.open(path, flags)) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise RunFailed(f"{self._what} is no longer a regular file", code="changed")
            known = _recall(self._path, before)
            if known:
                return known
            settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _FRESH_NS
            digest = self._digest(file.readinto)  # type: ignore[attr-defined]
            if _stamp(os.fstat(file.fileno())) != _stamp(before):
                raise RunFailed(f"{self._what} changed while it was being hashed", code="changed")
        if settled:
            _remember(self._path, before, digest)
        return digest

    def _digest(self, readinto: Callable[[memoryview], int]) -> str:
        digest, block = _sha256(), memoryview(bytearray(_BLOCK))
        while count := readinto(block):
            digest.update(block[:count])
            self._check_cancelled()
        return digest.hexdigest()


class BodyHash(_Background):
    """SHA-256 of the bytes ``start`` to ``size`` of a file that is still being written, a little behind the writers.

    ``watermark()`` says how many bytes from the file's start are known to be written, all of them; it may only grow.
    ``read_into(offset, view)`` reads into ``view`` and returns how many bytes it got. Both are called from the thread,
    until ``result`` or ``cancel`` has returned.
    """

    def __init__(
        self, read_into: Callable[[int, memoryview], int], start: int, size: int, watermark: Callable[[], int]
    ) -> None:
        self._read_into, self._start, self._size, self._watermark = read_into, start, size, watermark
        super().__init__("the output")

    def _compute(self) -> str:
        digest, block = _sha256(), memoryview(bytearray(_BLOCK))
        position = self._start
        while position < self._size:
            self._check_cancelled()
            ready = min(self._size, self._watermark())
            if ready - position < min(_BLOCK, self._size - position):
                self._cancelled.wait(_POLL_SECONDS)
                continue
            count = self._read_into(position, block[: min(_BLOCK, ready - position)])
            if count <= 0:
                raise RunFailed(f"the output ends at byte {position}, expected {self._size}: could not hash it")
            digest.update(block[:count])
            position += count
        return digest.hexdigest()


# ---------------------------------------------------------------- the cache

_lock = allocate_lock()  # two inputs' hashes may be ready at the same moment; each is to be remembered


def cache_folder() -> str | None:
    """The folder of the hash cache, which need not exist; None when the user has no place for one."""
    chosen = os.environ.get("SDS_CACHE")
    if chosen:
        return os.path.abspath(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the XDG specification: relative paths are to be ignored
            base = os.path.expanduser("~/.cache")
    return os.path.join(base, "sdsurgery") if os.path.isabs(base) else None


def _stamp(status: os.stat_result) -> list[int]:
    """What changes whenever a file's bytes do. The change time catches a replaced file whose mtime was kept."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _recall(path: str, status: os.stat_result) -> str | None:
    entry = _entries(cache_folder()).get(path)
    return entry[1] if entry and entry[0] == _stamp(status) else None


def _entries(folder: str | None) -> dict[str, Any]:
    """The valid entries of the cache, oldest first: real path → [stamp, SHA-256]."""
    if folder is None:
        return {}
    path = os.path.join(folder, _CACHE_FILE)
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _CACHE_MAX_BYTES:
            return {}
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["entries"]
        return {key: entry for key, entry in entries.items() if _sound(entry)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _sound(entry: object) -> bool:
    if not (isinstance(entry, list) and len(entry) == 2):
        return False
    return isinstance(entry[0], list) and isinstance(entry[1], str) and re.fullmatch(_SHA256, entry[1]) is not None


def _remember(path: str, status: os.stat_result, digest: str) -> None:
    folder = cache_folder()
    if folder is None:
        return
    # Another process may write at the same time: each replaces the whole file, and the worst is a forgotten entry.
    with _lock:
        entries = _entries(folder)
        entries.pop(path, None)
        entries[path] = [_stamp(status), digest]
        for oldest in list(entries)[:-_CACHE_ENTRIES]:
            del entries[oldest]
        target = os.path.join(folder, _CACHE_FILE)
        temporary = f"{target}.{os.getpid()}"
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with open(temporary, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                json.dump({"entries": entries}, file)
            os.replace(temporary, target)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.unlink(temporary)
