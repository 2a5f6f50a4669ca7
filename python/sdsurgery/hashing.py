"""The hashes that the ecosystem knows checkpoints by, computed beside the work, never before it.

====================  ===========================================================================================
SHA256                the whole file
AutoV2, short hash    its first 10 hexadecimal digits
AutoV1, legacy hash   SHA-256 of the 64 KiB at offset 1 MiB (what there is of them), first 8 digits
body SHA256           everything behind the header: ``sshs_model_hash``, and ``modelspec.hash_sha256`` after ``0x``
AutoV3                the body's, first 12 digits
====================  ===========================================================================================

Hashes of input files are remembered between runs in one small file in the user's cache folder (``SDS_CACHE``
overrides the folder), and those that a web UI remembers are taken too. Nothing that goes wrong with such a file is
ever an error: it only costs hashing again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from ._native import Sink, Source

Identity = tuple[int, int, int, int]  # of an opened file: device, inode, size, mtime

_LEGACY_OFFSET, _LEGACY_BYTES = 0x100000, 0x10000

_CACHE_FILE = "hashes.json"
_CACHE_ENTRIES = 1000
_CACHE_MAX_BYTES = 8 << 20
_WEBUI_MAX_BYTES = 64 << 20  # it holds the metadata of every model too
_WEBUI_DEPTH = 16  # folders between a file and models/
_FRESH_NS = 2_000_000_000  # coarsest time stamp in use (FAT): a younger file may still change under the same stamp
_SHA256 = r"[0-9a-f]{64}"


def legacy_hash(source: Source) -> str:
    """AutoV1, A1111's ``model_hash``: 8 hexadecimal digits. Many files share one, and it changes with the header.

    RunFailed when they can't be read.
    """
    from .files import native_errors

    nbytes = max(0, min(_LEGACY_BYTES, source.size - _LEGACY_OFFSET))
    with native_errors():
        part = source.read(_LEGACY_OFFSET, nbytes) if nbytes else b""
    return _native.sha256([part])[0][:8]


def autov2(sha256: str) -> str:
    """A1111's short hash: the first 10 digits of the whole file's SHA-256."""
    return sha256[:10]


def autov3(body_sha256: str) -> str:
    """The first 12 digits of the header-free SHA-256, which survives a change of the metadata."""
    return body_sha256[:12]


def recalled(source: Source) -> str | None:
    """SHA-256 of a whole file, where this or another program remembers it."""
    return None if source.in_memory else _File(source).recall()


class Hashing:
    """SHA-256 of input files and of the output's tensor data, by native threads beside a run (``csrc/hasher.h``).

    Hashes that are remembered are taken from there. The threads belong to this object: ``cancel`` ends them, and so
    does its destruction: none is left when the interpreter exits. ``map`` as ``Options.io`` allows it.
    """

    def __init__(
        self, files: Sequence[Source], sink: Sink | None = None, body_begin: int | None = None, map: bool = True
    ) -> None:
        self._order = [source.identity for source in files]
        self._known: dict[Identity, str | None] = {}
        self._hashed: dict[Identity, _File] = {}  # each file once, however often and under whatever names it is given
        for source, identity in zip(files, self._order, strict=True):
            if source.in_memory:
                self._known[identity] = None
            if identity in self._known or identity in self._hashed:
                continue
            file = _File(source)
            known = file.recall()
            if known is None:
                self._hashed[identity] = file
            else:
                self._known[identity] = known
        self._native = _native.Hasher(
            [file.source for file in self._hashed.values()], sink, -1 if body_begin is None else body_begin, map
        )
        self.processors = self._native.processors  # that the threads keep busy while the output is being written

    def start(self) -> None:
        self._native.start()

    def result(self) -> tuple[tuple[str | None, ...], str | None]:
        """64 hexadecimal digits for every file (None for memory), and for the output's tensor data; waits for them.

        Raises RunFailed when a file changed, and the native engine's errors when bytes could not be read.
        """
        while not self._native.wait(0.1):  # not in one call: Ctrl-C is to be noticed
            pass
        self._native.finish()
        for file, digest in zip(self._hashed.values(), self._native.files, strict=True):
            file.remember(digest)
            self._known[file.source.identity] = digest
        return tuple(self._known[identity] for identity in self._order), self._native.body or None

    def cancel(self) -> None:
        """Stop, and return when the threads have ended: what they read from may be closed then."""
        self._native.cancel()


def file_sha256(source: Source) -> str:
    """SHA-256 of a whole file; waits for it."""
    job = Hashing([source])
    try:
        job.start()
        (digest,), _ = job.result()
        assert digest is not None
        return digest
    finally:
        job.cancel()


class _File:
    """What is known of one input beside its bytes: whether its hash may be recalled, and remembered."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._path = os.path.realpath(source.path)
        self._before = self._status()
        # Read before the bytes are: a file whose stamp is this young may change once more without changing it.
        self._settled = (
            self._before is not None
            and time.time_ns() - max(self._before.st_mtime_ns, self._before.st_ctime_ns) > _FRESH_NS
        )

    def _status(self) -> os.stat_result | None:
        """Of the opened file; None when its name is gone or has been given to another."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        device, inode, size, mtime = self.source.identity
        if (status.st_size, status.st_mtime_ns) != (size, mtime):
            return None
        return status if os.name != "posix" or (status.st_dev, status.st_ino) == (device, inode) else None

    def recall(self) -> str | None:
        if self._before is None:
            return None
        return _recall(self._path, self._before) or _recall_webui(self._path, self._before)

    def remember(self, digest: str) -> None:
        after = self._status()
        if self._before is None or after is None:
            return
        if _stamp(after) != _stamp(self._before):
            return  # touched: the hash is right (engine._look_again), but the file will have another stamp
        if self._settled:
            _remember(self._path, self._before, digest)


# ---------------------------------------------------------------- the cache

_lock = threading.Lock()  # runs in several threads of one process share the cache and its temporary name


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


def _recall_webui(path: str, status: os.stat_result) -> str | None:
    """The hash that AUTOMATIC1111's web UI (or Forge, which keeps the same file) remembers of a file in its folders.

    ``cache.json`` beside ``models/`` has a section ``hashes``: "checkpoint/NAME" → ``mtime`` (os.path.getmtime) and
    ``sha256``, where NAME is the path below the folder of the checkpoints (``modules/hashes.py``, ``sd_models.py``).
    """
    folder, parts = os.path.dirname(path), [os.path.basename(path)]
    while os.path.basename(folder).lower() != "models":
        parts.insert(0, os.path.basename(folder))
        if folder == os.path.dirname(folder) or len(parts) > _WEBUI_DEPTH:
            return None
        folder = os.path.dirname(folder)
    kept = os.path.join(os.path.dirname(folder), "cache.json")
    try:
        if not os.path.isfile(kept) or os.path.getsize(kept) > _WEBUI_MAX_BYTES:
            return None
        with open(kept, encoding="utf-8") as file:
            hashes = json.load(file)["hashes"]
        for separator in ("/", "\\"):  # NAME keeps the separators of the system that wrote it
            entry = hashes.get("checkpoint/" + separator.join(parts[1:]))
            if entry and _same_time(entry["mtime"], status) and entry.get("size", status.st_size) == status.st_size:
                digest = entry["sha256"]
                if isinstance(digest, str) and re.fullmatch(_SHA256, digest):
                    return digest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return None


def _same_time(mtime: object, status: os.stat_result) -> bool:
    return isinstance(mtime, (int, float)) and float(mtime) == status.st_mtime


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
    # Another run may write at the same time: each replaces the whole file, and the worst is a forgotten entry.
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
        except BaseException as error:  # Ctrl-C too must not leave the temporary file
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if not isinstance(error, (OSError, ValueError)):
                raise
