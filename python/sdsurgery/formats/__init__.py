"""File formats, one file each, tried in turn on a file's content. A format's module is imported when it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._native import Source
    from ..checkpoint import Contents


@dataclass(frozen=True)
class Reader:
    """One readable format: ``sniff`` looks at the first bytes, ``read`` parses the structure (never tensor data)."""

    name: str
    sniff: Callable[[Source], bool]
    read: Callable[..., Contents]
    options: tuple[str, ...] = ()  # of ``open_checkpoint``, that ``read`` takes


FORMATS = ("safetensors", "torch_legacy", "torch_zip")
"""The modules with a ``READER``, in the order in which they are asked; the first that recognises a file wins."""


def readers() -> Iterator[Reader]:
    """Every format's reader; each module is imported when its turn comes."""
    for name in FORMATS:
        reader: Reader = import_module(f".{name}", __name__).READER
        yield reader


def recognise(source: Source) -> Reader | None:
    """The reader for a file's content, or None."""
    return next((reader for reader in readers() if reader.sniff(source)), None)


def known() -> str:
    """Names of the formats, for messages."""
    return ", ".join(reader.name for reader in readers())
