"""Reader of the stream that ``torch.save`` wrote before PyTorch 1.6 (and writes with
``_use_new_zipfile_serialization=False``).

Five pickles one after the other (magic number, protocol version, system info, the object, the list of storage keys),
then for each key of the list its storage: the number of elements as int64, and the raw elements, both little-endian.
Source: ``torch.serialization._legacy_save``, read as documentation.

This reader also takes the forms that end in a refusal with advice: plain pickles, and the tar files of the oldest
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...checkpoint import Contents, Record
from ...errors import InputRefused, printable
from .. import Format
from ..pickle_follow import TORCH_MAGIC
from ..pickle_graph import DICT, INT, LIST, MAX_OPCODES, MAX_PICKLE, STORAGE, TEXT, Graph, TruncatedPickle
from ..torch_pickle import parse, refuse_dangerous
from ..torch_state import contents
from ..torch_values import Storage

if TYPE_CHECKING:
    from ..._native import Source

MAGIC = TORCH_MAGIC.to_bytes(10, "little")
PROTOCOL_VERSION = 1001
WINDOWS = (2 << 20, MAX_PICKLE)
SMALL = 1000  # opcodes of a pickle that names the format or the system


def has_magic(head: bytes) -> bool:
    """Whether a file begins with the pickle of the magic number, of any protocol."""
    return head[:1] == b"\x80" and b"\x8a\x0a" + MAGIC in head[:32]


def is_old_tar(head: bytes) -> bool:
    """Whether a file is a tar archive, as the oldest torch wrote them."""
    return head[257:262] == b"ustar"


def sniff(source: Source) -> bool:
    """Claims torch's legacy streams, other binary pickles (protocols 2 to 5), and tar archives."""
    head = source.read(0, min(512, source.size))
    return (len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5) or is_old_tar(head)


def read(source: Source, *, allow_suspicious: bool = False, part: str = "") -> Contents:
    """The tensors of a legacy stream. Raises InputRefused with one line.

    ``allow_suspicious`` reads the tensors of a file whose pickle names dangerous functions; nothing is run either way.
    """
    head = source.read(0, min(512, source.size))
    if is_old_tar(head):
        raise InputRefused(
            "a tar archive (the oldest form of torch files, or a plain one); load it in torch and save it again"
        )
    if not has_magic(head):
        return _refuse_plain(source, allow_suspicious)
    stream = Stream(source, allow_suspicious)
    stream.next(SMALL)
    _check_version(stream.next(SMALL))
    _check_system(stream.next(SMALL))
    graph = stream.next()
    records, end = _records(source, graph, _keys(stream.next(MAX_OPCODES // 4)), stream.pos)
    found = contents("torch-legacy", graph, records, part)
    if end != source.size:
        found.notes.append(f"{source.size - end} bytes behind the last storage were not read")
    return found


class Stream:
    """Successive pickles of a file, read through a window that grows only when a pickle does not fit in it.

    Each is refused when it names something dangerous, unless ``allow_suspicious``: torch.load runs them all.
    """

    def __init__(self, source: Source, allow_suspicious: bool) -> None:
        self.source, self._allow_suspicious = source, allow_suspicious
        self.pos = 0  # in the file, behind the last pickle
        self._data = b""
        self._start = 0

    def next(self, max_opcodes: int = MAX_OPCODES) -> Graph:
        """The graph of the next pickle. Raises InputRefused."""
        for size in (0, *WINDOWS):
            if size:
                self._fill(size)
            try:
                graph, end = parse(self._data, self.pos - self._start, max_opcodes)
            except TruncatedPickle:
                if self._start + len(self._data) >= self.source.size:
                    raise
                continue
            self.pos = self._start + end
            if not self._allow_suspicious:
                refuse_dangerous(graph)
            return graph
        raise InputRefused(f"pickle: longer than {WINDOWS[-1] >> 20} MiB")

    def _fill(self, size: int) -> None:
        self._data = b""  # let the old window go before the new one is read
        self._start = self.pos
        self._data = self.source.read(self.pos, min(size, self.source.size - self.pos))


def _check_version(graph: Graph) -> None:
    if graph.kinds[graph.root] != INT or graph.values[graph.root] != PROTOCOL_VERSION:
        raise InputRefused(f"a torch file of a protocol version other than {PROTOCOL_VERSION}")


def _check_system(graph: Graph) -> None:
    """The third pickle gives the byte order of the machine that wrote the file."""
    items = graph.values[graph.root]
    if graph.kinds[graph.root] != DICT:
        raise InputRefused("a damaged torch file (no system information)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if graph.values[key] == "little_endian" and graph.values[value] is False:
            raise InputRefused("written on a big-endian machine; save it again with torch on a little-endian one")


def _keys(graph: Graph) -> list[str]:
    """The keys of the storages, in the order in which they follow."""
    nodes = graph.values[graph.root]
    if graph.kinds[graph.root] != LIST or any(graph.kinds[node] not in (TEXT, INT) for node in nodes):
        raise InputRefused("a damaged torch file (no list of storage keys)")
    keys = [str(graph.values[node]) for node in nodes]
    if len(set(keys)) != len(keys):
        raise InputRefused("a damaged torch file (a storage key is listed twice)")
    return keys


def _records(source: Source, graph: Graph, keys: list[str], pos: int) -> tuple[dict[str, Record], int]:
    """Where each storage lies, and where the last one ends. Storages are found one after the other, by their sizes."""
    storages: dict[str, Storage] = {}
    for kind, value in zip(graph.kinds, graph.values, strict=True):
        if kind == STORAGE:
            storages.setdefault(value.key, value)
    records = {}
    for key in keys:
        label = f"storage '{printable(key)}'"
        storage = storages.get(key)
        if storage is None:
            raise InputRefused(f"{label} is listed, but nothing in the file says its type")
        if pos + 8 > source.size:
            raise InputRefused(f"cut off: {label} begins at byte {pos} of {source.size}")
        numel = int.from_bytes(source.read(pos, 8), "little", signed=True)
        if numel != storage.numel:
            raise InputRefused(f"{label} has {numel} elements; {storage.numel} are expected")
        if numel < 0:
            raise InputRefused(f"{label} has {numel} elements")
        record = Record(pos + 8, numel * storage.itemsize)
        pos += 8 + record.nbytes
        if pos > source.size:
            raise InputRefused(f"cut off: {label} ends at byte {pos} of {source.size}")
        records[key] = record
    missing = next((key for key in storages if key not in records), None)
    if missing is not None:
        raise InputRefused(f"storage '{printable(missing)}' is missing from the list of storage keys")
    return records, pos


def _refuse_plain(source: Source, allow_suspicious: bool) -> Contents:
    """A binary pickle without torch's magic number holds no storages that could be read in place."""
    graph = Stream(source, allow_suspicious).next()
    raise InputRefused(
        f"a plain pickle ({graph.describe(graph.root)}), not a file of torch.save; its arrays cannot be read in place. "
        "Load it where it was made and save the tensors with torch.save or as safetensors"
    )


FORMAT = Format("torch-legacy", sniff, read, ("allow_suspicious", "part"))
