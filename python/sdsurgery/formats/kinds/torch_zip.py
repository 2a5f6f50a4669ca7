"""Reader of the zip files that ``torch.save`` has written since PyTorch 1.6 (.ckpt, .pt, .pth, .bin).

``ROOT/data.pkl`` is the pickle, ``ROOT/data/KEY`` the bytes of each storage, stored uncompressed, so tensors are read
in place; ``ROOT/version`` and, in newer files, ``ROOT/byteorder`` and ``ROOT/.data/serialization_id`` describe the
archive. ROOT is any name. The writer is in ``torch_zip_writer.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from ...checkpoint import Contents, Record
from ...errors import InputRefused, RunFailed, printable
from ...structure import NESTED, Structure
from .. import Format, Pieces, Placed, Writer
from ..pickle_graph import MAX_PICKLE, Graph
from ..torch_pickle import parse, refuse_dangerous
from ..torch_state import contents
from ..torch_zip_writer import Layout, layout
from ..zip_reader import DEFLATED, MAX_RATIO, STORED, Entry, entry_bytes, inflate, is_zip, read_entries

if TYPE_CHECKING:
    from ..._native import Source
    from ...dtypes import DType

__all__ = ["FORMAT", "Layout", "layout", "read"]

_MODELS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_RESAVE = "open it where it was made and save it with torch.save(model.state_dict(), path)"


def read(
    source: Source,
    *,
    allow_suspicious: bool = False,
    allow_inflate: bool = False,
    part: str = "",
    inflate_dir: str | None = None,
) -> Contents:
    """The tensors of a torch zip file. Raises InputRefused with one line.

    ``allow_suspicious`` reads the tensors of a file whose pickle names dangerous functions; nothing is run either way.
    ``allow_inflate`` accepts compressed storages: they are inflated into a temporary file in ``inflate_dir`` (see
    ``Contents.files``); RunFailed when there is no room for it.
    """
    entries = read_entries(source)
    root = _root(entries)
    _check_names(entries, root)
    _check_small_records(source, entries, root)
    graph = _graph(source, entries[f"{root}/data.pkl"])
    if not allow_suspicious:
        refuse_dangerous(graph)
    prefix = f"{root}/data/"
    storages = {name[len(prefix) :]: entry for name, entry in entries.items() if name.startswith(prefix)}
    packed = [entry for entry in storages.values() if entry.method != STORED]
    if not packed:
        return contents("torch-zip", graph, _in_place(storages), part)
    if not allow_inflate:
        raise InputRefused(
            f"{len(packed)} of {len(storages)} storages are compressed, so they cannot be read in place; "
            "re-save the file with torch.save, or add allow_inflate=True to inflate it into a temporary file",
            code="compressed",
        )
    return _inflated(source, graph, storages, inflate_dir, part)


def _graph(source: Source, entry: Entry) -> Graph:
    """The graph of data.pkl; the bytes themselves are let go."""
    data = entry_bytes(source, entry, MAX_PICKLE)
    graph, end = parse(data)
    if end != len(data):
        raise InputRefused(f"data.pkl continues for {len(data) - end} bytes after the end of its pickle")
    return graph


def _root(entries: Mapping[str, Entry]) -> str:
    """The archive's root folder: that of its first entry, as torch has it."""
    first = next(iter(entries), "")
    root = first.partition("/")[0]
    if any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in entries):
        raise InputRefused(f"a TorchScript archive (a program with weights), which is not read; {_RESAVE}")
    if any(name.startswith(f"{root}/.data/extern_modules") for name in entries):
        raise InputRefused(f"a torch.package archive (a program with weights), which is not read; {_RESAVE}")
    if f"{root}/data.pkl" not in entries:
        model = next((name for name in entries if name.lower().endswith(_MODELS)), None)
        raise InputRefused(
            f"a zip archive with a model inside ('{printable(model, 80)}'); unpack it first"
            if model is not None
            else f"a zip archive, but not one that torch.save wrote: it has no {printable(root or 'ROOT', 60)}/data.pkl"
        )
    return root


def _check_names(entries: Mapping[str, Entry], root: str) -> None:
    """Refuse names that torch, which looks entries up without regard to case, could take for others."""
    seen: dict[str, str] = {}
    for name in entries:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise InputRefused(
                f"entries '{printable(other)}' and '{printable(name)}' differ in case only; torch may read either"
            )
        if name.partition("/")[0] != root:
            raise InputRefused(f"entry '{printable(name)}' lies outside the archive's folder '{printable(root)}'")
        if name.rpartition("/")[2].casefold() == "data.pkl" and name != f"{root}/data.pkl":
            raise InputRefused(f"it has a second data.pkl, '{printable(name)}'")


def _check_small_records(source: Source, entries: Mapping[str, Entry], root: str) -> None:
    version = entries.get(f"{root}/version")
    if version is not None and not entry_bytes(source, version, 64).strip().isdigit():
        raise InputRefused("its version record is not a number")
    order = entries.get(f"{root}/byteorder")
    word = bytes(entry_bytes(source, order, 64)).strip() if order is not None else b"little"
    if word == b"big":
        raise InputRefused(
            "written on a big-endian machine; load it there or in torch and save it on a little-endian one"
        )
    if word != b"little":
        raise InputRefused(f"its byteorder record says {printable(word)}; little or big is expected")


def _record(entry: Entry, offset: int) -> Record:
    return Record(offset, entry.size, entry.crc32 or None)


def _in_place(storages: Mapping[str, Entry]) -> dict[str, Record]:
    return {key: _record(entry, entry.offset) for key, entry in storages.items()}


def _inflated(source: Source, graph: Graph, storages: Mapping[str, Entry], folder: str | None, part: str) -> Contents:
    """Contents whose data lie in a temporary file, after everything that can be checked without it was checked."""
    import os
    import shutil
    import tempfile

    records, offset = {}, 0
    for key, entry in storages.items():
        if entry.method not in (STORED, DEFLATED):
            raise InputRefused(f"storage '{printable(key)}' is compressed by method {entry.method}, which is not read")
        records[key] = _record(entry, offset)
        offset += entry.size + -entry.size % 64
    if offset > MAX_RATIO * source.size:
        raise InputRefused(f"compressed more than {MAX_RATIO} times as a whole")
    found = contents("torch-zip", graph, records, part)
    folder = folder or tempfile.gettempdir()
    if offset > shutil.disk_usage(folder).free:
        raise RunFailed(
            f"inflating needs {offset} bytes in {printable(folder)}, and there is less free space", code="no_space"
        )
    handle, path = tempfile.mkstemp(prefix="sdsurgery-", suffix=".inflated", dir=folder)
    link = f"/proc/self/fd/{handle}"
    nameless = os.path.exists(link)
    if nameless:  # its name goes at once, so that even a kill leaves nothing behind
        os.unlink(path)
        path = link
    out = os.fdopen(handle, "wb")
    try:
        for key, entry in storages.items():
            out.seek(records[key].offset)
            _copy(source, entry, out)
        out.truncate(offset)
        out.flush()
    except BaseException:
        out.close()
        if not nameless:
            os.unlink(path)
        raise
    if nameless:
        found.held = out
    else:
        out.close()
    found.files, found.temporary = [path], True
    found.notes.append(f"inflated {offset} bytes into a temporary file")
    return found


def _copy(source: Source, entry: Entry, out: BinaryIO) -> None:
    """Write an entry's bytes to a file, checking its CRC-32."""
    import zlib

    crc = 0
    for piece in inflate(source, entry) if entry.method == DEFLATED else _pieces(source, entry):
        crc = zlib.crc32(piece, crc)
        out.write(piece)
    if entry.crc32 and crc != entry.crc32:
        raise InputRefused(f"entry '{printable(entry.name)}' is damaged (its CRC-32 differs)")


def _pieces(source: Source, entry: Entry) -> Iterator[bytes]:
    for pos in range(0, entry.size, 1 << 20):
        yield source.read(entry.offset + pos, min(1 << 20, entry.size - pos))


def _place(
    entries: Sequence[tuple[str, DType, tuple[int, ...]]],
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    structure: Structure = NESTED,
) -> Placed:
    placed = layout(entries, aliases=aliases, metadata=metadata, structure=structure)
    start = placed.records[0][0] if placed.records else placed.total

    def rest(given: Mapping[str, str], sums: Sequence[int]) -> Pieces:
        return placed.finish(sums, given)

    return Placed(placed.offsets, start, placed.total, placed.records, rest)


_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
WRITER = Writer("ckpt", _SUFFIXES, by_width=False, shares=True, body_hashed=False, place=_place, structured=True)
FORMAT = Format("torch-zip", is_zip, read, ("allow_suspicious", "allow_inflate", "part"), WRITER)
