"""A checkpoint: one or several opened files as one ordered table of tensors, of any format. Nothing is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from .dtypes import DType
from .errors import InputRefused, RunFailed, UsageError, printable
from .log import debug

if TYPE_CHECKING:
    from ._native import Source
    from .operands.encoding import Encoded
    from .structure import Structure


class Form(NamedTuple):
    """What a tensor is, without its name and its place: tensors of one file mostly share a few.

    ``strides`` (in elements) is None for the contiguous row-major tensors that every format but a pickle holds.
    ``file`` is the number of the checkpoint's file that the tensor lies in. ``encoded`` is set by ``encodings.decode``:
    then place and ``nbytes`` are those of the codes, and dtype and shape those of the weights that they stand for.
    ``parts`` are the tensors whose rows make up this one, where it is stored as several; its place is the first's.
    """

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    strides: tuple[int, ...] | None = None
    file: int = 0
    encoded: Encoded | None = None
    parts: tuple[TensorInfo, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether such a tensor is stored as its elements, row by row, in one piece."""
        return self.strides is None and self.encoded is None and not self.parts


class TensorInfo(NamedTuple):
    """One tensor: its name, the byte of its file where it begins, which may be any, and its ``form``, whose fields it
    has too. A small value: a checkpoint may have hundreds of thousands."""

    name: str
    offset: int
    form: Form

    @property
    def dtype(self) -> DType:
        return self.form.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def nbytes(self) -> int:
        return self.form.nbytes

    @property
    def strides(self) -> tuple[int, ...] | None:
        return self.form.strides

    @property
    def file(self) -> int:
        return self.form.file

    @property
    def encoded(self) -> Encoded | None:
        return self.form.encoded

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        return self.form.parts

    @property
    def elements(self) -> int:
        return prod(self.form.shape)

    def renamed(self, name: str) -> TensorInfo:
        """The same under another name."""
        return TensorInfo(name, self.offset, self.form)

    def with_form(self, form: Form) -> TensorInfo:
        """The same name and place with another form."""
        return TensorInfo(self.name, self.offset, form)


class Record(NamedTuple):
    """A run of bytes that a file keeps a checksum of. ``crc32`` is None when the file does not say it."""

    offset: int
    nbytes: int
    crc32: int | None = None
    file: int = 0


@dataclass
class Contents:
    """What a format's reader found: tensors in file order, text metadata, and notes for the user.

    ``unusable``: tensors that the file has but that cannot be read (quantised, sparse, complex, …), with the reason;
    they are not in ``tensors``. ``records``: the stretches of tensor data. ``files``: paths of those with the tensor
    data, in the order of ``TensorInfo.file``; empty when it is the recognised file itself. ``temporary``: they are this
    run's own, and are removed once they are opened. ``held``: an open file that such a path leads to.
    """

    format: str
    tensors: list[TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_offset: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    structure: Structure | None = None  # of a pickle
    temporary: bool = False
    held: BinaryIO | None = None


Framework = Literal["auto", "torch", "numpy"]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+$")
_CODES = {"I64": "q", "U64": "Q", "I32": "i", "U32": "I", "I16": "h", "U16": "H", "I8": "b", "U8": "B", "BOOL": "?"}
_CODES |= {"F64": "d", "F32": "f", "F16": "e"}
"""``struct``'s letters."""


class TensorSlice:
    """A tensor of an opened file: ``get_slice("w")[:4, 1]`` touches no other pages than those of that part."""

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        self._checkpoint, self._info = checkpoint, info

    def __repr__(self) -> str:
        return f"<TensorSlice {self._info.name}: {self._info.dtype.name} {list(self._info.shape)}>"

    def __getitem__(self, index: Any) -> Any:
        return self._checkpoint.get_tensor(self._info.name)[index]

    def get_shape(self) -> list[int]:
        """The whole tensor's shape."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """The dtype as safetensors spells it: F16, BF16, …"""
        return self._info.dtype.name


class Checkpoint:
    """An opened checkpoint; use it as a context manager.

    ``keys()``, ``info(name)`` and ``metadata()`` need only the header. ``numpy(name)`` and ``torch(name)`` give
    zero-copy views of the mapped file, read-only (NumPy) or copy-on-write (torch): the file itself never changes.
    ``checkpoint[name]``, ``items()``, ``get_tensor(name)`` and ``get_slice(name)`` are as in safetensors: such views,
    of the ``framework`` that the file was opened for. ``source`` is the file that was named, ``files`` those with the
    tensor data: the same one, several of which it is the index, or the inflated copy of a compressed one.
    """

    def __init__(self, path: str | os.PathLike[str], source: Source, contents: Contents, files: list[Source]) -> None:
        self.path = os.fspath(path)
        self.source = source
        self.files = files
        self.paths = [self.path] if contents.temporary or not contents.files else list(contents.files)
        self.bytes = sum(file.size for file in {source, *(() if contents.temporary else files)})
        self.records = contents.records
        self.format = contents.format
        self.notes = contents.notes
        self.data_offset = contents.data_offset
        self.unusable = contents.unusable
        self.structure = contents.structure
        self.tensors: Mapping[str, TensorInfo] = {info.name: info for info in contents.tensors}
        # Once encodings.decode has been called: format -> how many weights; scales beside weights that are not encoded.
        self.encodings: dict[str, int] = {}
        self.orphans: set[str] = set()
        self._metadata = contents.metadata
        self.framework: Framework = "auto"
        self._owned = True

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path}: {self.format}, {len(self.tensors)} tensors>"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Views handed out before stay valid: each keeps its mapping alive."""
        if self._owned:
            for file in (self.source, *self.files):
                file.close()

    def borrowed(self) -> Checkpoint:
        """The same opened file for a verb, which may rename tensors in its own table and doesn't close the file."""
        other = copy(self)
        other.tensors, other.encodings, other.orphans, other._owned = dict(self.tensors), {}, set(), False
        other.notes = list(self.notes)
        return other

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Any:
        return self.get_tensor(name)

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, tensor) in file order, one view at a time."""
        return ((name, self.get_tensor(name)) for name in self.tensors)

    def get_tensor(self, name: str) -> Any:
        """A zero-copy view: a torch tensor where torch is installed, else a NumPy array, or as ``framework`` says.
        Raises as ``info``, ``torch`` and ``numpy`` do."""
        if self.framework == "auto":
            from importlib.util import find_spec

            self.framework = "numpy" if find_spec("torch") is None else "torch"
        return self.torch(name) if self.framework == "torch" else self.numpy(name)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor of which only the part that is indexed is read."""
        return TensorSlice(self, self.info(name))

    def require_usable(self, needed: Callable[[str], bool] = lambda name: True) -> None:
        """InputRefused when a tensor that is ``needed`` is of a kind that cannot be used (quantised, sparse, …)."""
        wanted = {name: reason for name, reason in self.unusable.items() if needed(name)}
        for name, reason in wanted.items():
            more = f" (and {len(wanted) - 1} more)" if len(wanted) > 1 else ""
            raise InputRefused(
                f"{printable(self.path)}: tensor '{printable(name)}' is needed but cannot be read: {printable(reason)}"
                f"{more}; save it as a plain tensor with the program that made the file, or drop it "
                "(prune(drop_keys=…))",
                code="unusable_tensor",
                tensor=name,
                path=self.path,
            )

    def keys(self) -> list[str]:
        """Tensor names in file order."""
        return list(self.tensors)

    def metadata(self) -> dict[str, str]:
        """The file's text metadata (a copy)."""
        return dict(self._metadata)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of one tensor; KeyError with close matches for an unknown name."""
        try:
            return self.tensors[name]
        except KeyError:
            from .suggest import did_you_mean

            raise KeyError(f"no tensor {printable(name)!r} in {self.path}{did_you_mean(name, self.tensors)}") from None

    def read(self, info: TensorInfo) -> bytes:
        """A tensor's elements, row by row. For small ones: all that lies between its first and last are read.

        RunFailed when they can't be read.
        """
        from .files import native_errors

        file = self.files[info.file]
        if info.strides is None:
            with native_errors():
                return file.read(info.offset, info.nbytes)
        size, places = info.dtype.itemsize, [0]
        for count, stride in zip(info.shape, info.strides, strict=True):
            places = [place + stride * index for place in places for index in range(count)]
        with native_errors():
            span = file.read(info.offset, (max(places, default=-1) + 1) * size)
        return b"".join(span[place * size : (place + 1) * size] for place in places)

    def numbers(self, info: TensorInfo) -> list[float]:
        """The numbers of a small tensor; none when its dtype has no plain number (FP8, complex, …)."""
        import struct

        code = "f" if info.dtype.name == "BF16" else _CODES.get(info.dtype.name)
        if code is None:
            return []
        data = self.read(info)
        if info.dtype.name == "BF16":  # the upper half of a float32
            data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return list(struct.unpack(f"<{info.elements}{code}", data))

    def numpy(self, name: str) -> Any:
        """Zero-copy, read-only NumPy view of a tensor. TypeError for a dtype that NumPy lacks (BF16, FP8, …)."""
        from .interop.views import numpy_view

        return numpy_view(self, name)

    def torch(self, name: str) -> Any:
        """Zero-copy torch tensor over a copy-on-write mapping (writing to it never reaches the file)."""
        from .interop.views import torch_view

        return torch_view(self, name)


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    allow_suspicious: bool = False,
    allow_inflate: bool = False,
    part: str = "",
    framework: Framework = "auto",
) -> Checkpoint:
    """Open a checkpoint of any registered format and read its header, nothing else.

    ``allow_suspicious`` reads the tensors of a file whose pickle names dangerous functions; nothing is run either way.
    ``framework``: whether ``checkpoint[name]`` is a torch tensor or a NumPy array; auto is torch where it is installed.
    ``allow_inflate`` accepts compressed tensor data, which are inflated into a temporary file (in ``TMPDIR``).
    ``part``: the key of one of several dictionaries of weights in a pickle.
    Raises InputRefused with one line when the file is missing, not a regular file, damaged or of an unknown format.
    The format is decided by content, not by the file's suffix.
    """
    from . import formats
    from .files import native_errors, open_source

    if framework not in ("auto", "torch", "numpy"):
        raise UsageError(f"framework= cannot be '{printable(framework)}'; known: auto, torch, numpy", code="bad_value")
    if os.path.isdir(path):
        from .formats.strangers import folder

        text = folder(os.fspath(path))
        if text is not None:
            raise InputRefused(f"{printable(path)}: {text}", code="not_regular", path=os.fspath(path))
    source = open_source(path)
    try:
        with native_errors(InputRefused):
            reader = formats.recognise(source)
            if reader is None:
                from .formats.strangers import described

                text = described(source) or f"not a checkpoint of a known format ({formats.known()})"
                raise InputRefused(f"{printable(path)}: {text}", code="unknown_format", path=os.fspath(path))
            given = {"allow_suspicious": allow_suspicious, "allow_inflate": allow_inflate, "part": part}
            options = {name: value for name, value in given.items() if name in reader.options}
            try:
                contents = reader.read(source, **options)
            except (InputRefused, RunFailed) as error:
                if error.code == InputRefused.code:
                    error.code = "damaged"
                raise error.within(printable(path), path=os.fspath(path)) from None
            if (alone := _SHARD.search(os.path.basename(path))) is not None:
                from .formats.strangers import shard

                contents.notes.append(shard(os.fspath(path), int(alone[1]), int(alone[2])))
            opened = Checkpoint(path, source, contents, _open_files(contents) or [source])
            opened.framework = framework
            debug("opened %r", opened)
            return opened
    except BaseException:
        source.close()
        raise


def _open_files(contents: Contents) -> list[Source]:
    """The files with the tensor data where they are others than the one that was named. A temporary one is removed
    when the last user closes it."""
    from .files import open_source, open_temporary

    opened: list[Source] = []
    try:
        for path in contents.files:
            named = contents.temporary and contents.held is None
            opened.append(open_temporary(path) if named else open_source(path))
    except BaseException:
        for file in opened:
            file.close()
        raise
    finally:
        if contents.held is not None:
            contents.held.close()
    return opened
