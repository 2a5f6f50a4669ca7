"""File formats, one file each. A reader is registered by decorating it; nothing else lists what the registry knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._native import Source
    from ..checkpoint import Contents


@dataclass(frozen=True)
class Reader:
    """One readable format: ``sniff`` looks at the first bytes, ``read`` parses the structure (never tensor data)."""

    name: str
    sniff: Callable[[Source], bool]
    read: Callable[[Source], Contents]


_READERS: list[Reader] = []


def register(reader: Reader) -> Reader:
    """Add a format. Readers are asked in the order in which they were registered; the first that recognises wins."""
    _READERS.append(reader)
    return reader


def _load() -> list[Reader]:
    from . import safetensors, torch_legacy, torch_zip  # noqa: F401  (each registers itself when first imported)

    return _READERS


def recognise(source: Source) -> Reader | None:
    """The reader for a file's content, or None."""
    return next((reader for reader in _load() if reader.sniff(source)), None)


def known() -> str:
    """Names of the registered formats, for messages."""
    return ", ".join(reader.name for reader in _load())
