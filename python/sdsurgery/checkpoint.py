"""A checkpoint: an opened file as an ordered table of tensors, of any format. Never a dict of loaded tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from .dtypes import DType
from .errors import InputRefused, printable
from .records import dataclass, field

if TYPE_CHECKING:
    from ._native import Source


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. ``offset`` and ``nbytes`` are bytes in the file; data may start at any byte.

    ``strides`` (in elements) is None for the contiguous row-major tensors that every format but a pickle holds.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass
class Contents:
    """What a format's reader found: tensors in file order, text metadata, and remarks worth telling the user."""

    format: str
    tensors: list[TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_offset: int = 0
    unusable: dict[str, str] = field(default_factory=dict)  # tensors that cannot be used, and why


class Checkpoint:
    """An opened checkpoint; use it as a context manager.

    ``keys()``, ``info(name)`` and ``metadata()`` need only the header. ``numpy(name)`` and ``torch(name)`` give
    zero-copy views of the mapped file, read-only (NumPy) or copy-on-write (torch): the file itself never changes.
    """

    def __init__(self, path: str | os.PathLike[str], source: Source, contents: Contents) -> None:
        self.path = os.fspath(path)
        self.source = source
        self.format = contents.format
        self.notes = contents.notes
        self.data_offset = contents.data_offset
        self.unusable = contents.unusable
        self.tensors: Mapping[str, TensorInfo] = {info.name: info for info in contents.tensors}
        self._metadata = contents.metadata

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Views handed out before stay valid: each keeps its mapping alive."""
        self.source.close()

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def require_all(self) -> None:
        """InputRefused when the file holds tensors of a kind that cannot be used (quantised, sparse, complex, …)."""
        for name, reason in self.unusable.items():
            more = f" (and {len(self.unusable) - 1} more)" if len(self.unusable) > 1 else ""
            raise InputRefused(f"{printable(self.path)}: tensor '{printable(name)}' {printable(reason)}{more}")

    def keys(self) -> list[str]:
        """Tensor names in file order."""
        return list(self.tensors)

    def metadata(self) -> dict[str, str]:
        """The file's text metadata (a copy)."""
        return dict(self._metadata)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of one tensor; KeyError with close matches when there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            from .suggest import did_you_mean

            raise KeyError(f"no tensor {printable(name)!r} in {self.path}{did_you_mean(name, self.tensors)}") from None

    def numpy(self, name: str) -> Any:
        """Zero-copy, read-only NumPy view of a tensor. TypeError for a dtype that NumPy lacks (BF16, FP8, …)."""
        from .interop import numpy_view

        return numpy_view(self, name)

    def torch(self, name: str) -> Any:
        """Zero-copy torch tensor over a copy-on-write mapping (writing to it never reaches the file)."""
        from .interop import torch_view

        return torch_view(self, name)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any registered format and read its header, nothing else.

    Raises InputRefused with one line when the file is missing, not a regular file, damaged or of no known format.
    The format is decided by content, not by the file's suffix.
    """
    from . import formats
    from .engine import native_errors, open_source

    source = open_source(path)
    try:
        with native_errors(InputRefused):
            reader = formats.recognise(source)
            if reader is None:
                raise InputRefused(f"{printable(path)}: not a checkpoint of a known format ({formats.known()})")
            try:
                return Checkpoint(path, source, reader.read(source))
            except InputRefused as error:
                raise InputRefused(f"{printable(path)}: {error}") from None
    except BaseException:
        source.close()
        raise
