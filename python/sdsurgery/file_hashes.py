"""Every hash by which model sites and web UIs know a file, from one read of it (``hashing.py`` says what each one is).

Two more of the whole file than a run computes beside its work: BLAKE3, 64 hexadecimal digits, by the package ``blake3``
(``sdsurgery[hashes]``; left out without it), and CRC-32, 8 digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _native
from .errors import RunFailed, UsageError, printable
from .files import native_errors
from .hashing import autov2, autov3, legacy_hash

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._native import Source
    from .checkpoint import Checkpoint
    from .settings import Progress

_STEP = 8 << 20


class Kind(NamedTuple):
    """What people call a hash, and how many digits it has."""

    title: str
    digits: int


KINDS = {
    "sha256": Kind("SHA-256", 64),
    "autov2": Kind("AutoV2", 10),
    "autov1": Kind("AutoV1", 8),
    "blake3": Kind("BLAKE3", 64),
    "crc32": Kind("CRC-32", 8),
    "body_sha256": Kind("SHA-256 of the tensor data", 64),
    "autov3": Kind("AutoV3", 12),
}
"""By the fields of ``FileHashes``."""


@dataclass(frozen=True)
class FileHashes:
    """Hexadecimal digits in small letters. None: of ``blake3`` where the package is missing, of ``body_sha256`` and
    ``autov3`` in other formats than safetensors."""

    sha256: str
    autov2: str
    autov1: str
    crc32: str
    blake3: str | None = None
    body_sha256: str | None = None
    autov3: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


class Expected(NamedTuple):
    """A digest that a file is expected to have: as it was given, its digits, and the hashes that it may be."""

    text: str
    digits: str
    fields: tuple[str, ...]

    def found(self, hashes: FileHashes) -> str | None:
        """The hash that has these digits, if one has."""
        return next((name for name in self.fields if getattr(hashes, name) == self.digits), None)

    def missed(self, hashes: FileHashes) -> str:
        """What the file has instead."""
        own = [f"{KINDS[name].title} {getattr(hashes, name) or 'not computed'}" for name in self.fields]
        return f"expected {printable(self.text, 100)}, found {', '.join(own)}"


def expected(text: str) -> Expected:
    """A digest as sites and programs write it: in any letters' case, ``0x`` in front or not, a name before it
    (``AutoV2:…``, ``blake3=…``), or none: then its length says what it may be.

    UsageError for what is no digest of a file, and for a BLAKE3 by name where the package is missing.
    """
    name, _, digits = text.strip().replace("=", ":").rpartition(":")
    digits = digits.strip().lower().removeprefix("0x")
    names = {_plain(word): field for field, kind in KINDS.items() for word in (field, kind.title)}
    if name and _plain(name) not in names:
        titles = ", ".join(kind.title for kind in KINDS.values())
        raise UsageError(f"'{printable(name, 40)}' is not a kind of hash; known: {titles}", code="unknown_name")
    asked = (names[_plain(name)],) if name else tuple(KINDS)
    fields = tuple(field for field in asked if KINDS[field].digits == len(digits))
    if not fields or not re.fullmatch("[0-9a-f]+", digits):
        lengths = ", ".join(f"{KINDS[field].title} {KINDS[field].digits}" for field in asked)
        raise UsageError(f"'{printable(text, 100)}' is not a digest; hexadecimal digits: {lengths}", code="bad_value")
    if fields == ("blake3",) and not has_blake3():
        raise UsageError("BLAKE3 needs the package blake3, which is not installed: pip install 'sdsurgery[hashes]'")
    return Expected(text, digits, fields)


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def has_blake3() -> bool:
    """Whether BLAKE3 can be computed."""
    import importlib.util

    return importlib.util.find_spec("blake3") is not None


def file_hashes(checkpoint: Checkpoint, progress: Progress | None = None) -> FileHashes:
    """All of them, of the file that was named, computed side by side. RunFailed when it cannot be read."""
    import hashlib

    source = checkpoint.source
    whole, body, crc, blake = hashlib.sha256(), hashlib.sha256(), _Crc32(), _blake3()
    start = checkpoint.data_offset if checkpoint.format == "safetensors" else source.size
    of_all = [whole.update, crc.update, *([blake.update] if blake else [])]
    _read(source, start, of_all, [*of_all, body.update], progress)
    inner = body.hexdigest() if checkpoint.format == "safetensors" else None
    sha256, digits = whole.hexdigest(), blake.hexdigest() if blake else None
    return FileHashes(
        sha256, autov2(sha256), legacy_hash(source), f"{crc.value:08x}", digits, inner, inner and autov3(inner)
    )


def _read(
    source: Source, start: int, before: Sequence[Callable[[memoryview], Any]],
    behind: Sequence[Callable[[memoryview], Any]], progress: Progress | None,
) -> None:  # fmt: skip
    """Call each of ``before`` with the bytes in front of ``start``, piece by piece, and each of ``behind`` with the
    others; a piece is read while the one before it is worked on."""
    from concurrent.futures import ThreadPoolExecutor

    at, turn, size = 0, 0, source.size
    buffers = [memoryview(bytearray(min(_STEP, size))) for _ in range(2)]
    working: list[Future[Any]] = []
    with ThreadPoolExecutor(len(behind)) as pool, native_errors():
        while at < size:
            end = min(at + _STEP, start if at < start else size, size)
            piece = buffers[turn][: end - at]
            source.read_into(at, piece)
            for each in working:
                each.result()
            try:
                working = [pool.submit(work, piece) for work in (before if at < start else behind)]
            except RuntimeError:
                raise RunFailed("the system cannot start a thread for hashing", code="memory") from None
            at, turn = end, 1 - turn
            if progress is not None:
                progress(at, size)
        for each in working:
            each.result()


class _Crc32:
    """``_native.crc32`` in hashlib's manner."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: memoryview) -> None:
        self.value = _native.crc32(data, self.value)


def _blake3() -> Any:
    if not has_blake3():
        return None
    import blake3

    return blake3.blake3()
