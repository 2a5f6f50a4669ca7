"""Looks through one file for ``scan``: whatever a loader reads as a pickle is followed, wherever it lies.

Content decides, not names: torch's three containers, zip and tar archives, NumPy's files, packed files, plain pickles
one after the other, and files that a pickle hands to torch.load. What lies inside is put on a list of work, so nothing
recurses. The bytes of tensors are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import unpack
from typing import Any

from ..errors import InputRefused, printable
from .joblib_pickle import WRAPPER, JoblibPickle
from .kinds import safetensors
from .numpy_file import MAGIC as NUMPY
from .numpy_file import read_header
from .pickle_follow import TORCH_MAGIC, Pickle
from .pickle_followed import Blob, LongText, Name
from .pickle_graph import MAX_OPCODES
from .pickle_names import dangerous
from .pickle_stream import Bytes
from .scan_report import FileScan
from .scan_sources import MAX_UNPACKED, Memory, Unpacked, Window, closed_packing, packing, spooled
from .tar_reader import is_header, members
from .torch_values import storage_type
from .zip_reader import DEFLATED, STORED, Entry, inflate, is_zip, read_entries, start_behind_other_bytes

MAX_DEPTH = 3  # of archives inside archives
MAX_WORK = 4 * MAX_OPCODES  # opcodes of all pickles of one file together
MAX_MEMBERS = 50_000
MAX_PICKLES = 10_000  # one after the other
_STREAM = 5  # pickles before the storages of a legacy stream
_RECORD = re.compile(r"[^/]+/(?:data|constants|xl_model_weights)/\d+")
_FIRST = 1000  # opcodes of a pickle that holds a number
_TAR_RECORDS = ("storages", "tensors")  # of the oldest torch: pickles with raw data between
_HEAD = 512


class Scanner:
    """One run over one file; ``found`` is the result."""

    def __init__(self, found: FileScan) -> None:
        self.found = found
        self.work = MAX_WORK
        self.unpacked = MAX_UNPACKED
        self.excused: dict[str, int] = {}
        self.todo: list[tuple[str, Bytes, int]] = []

    def run(self, source: Bytes) -> None:
        """Look through the source and all that is inside."""
        self.todo.append(("", source, 0))
        count = 0
        while self.todo:
            label, part, depth = self.todo.pop()
            count += 1
            if count > MAX_MEMBERS or self.work <= 0:
                self._problem("", "too many pickles inside; not all were followed")
                break
            try:
                self._look(label, part, depth)
            except InputRefused as error:
                self._problem(label, str(error))
        harms = {
            name: count
            for name, count in self.found.globals.items()
            if dangerous(name) and count > self.excused.get(name, 0)
        }
        self.found.dangerous = list(harms)

    def _look(self, label: str, source: Bytes, depth: int) -> None:
        head = source.read(0, min(_HEAD, source.size))
        self._content(head, source)(label, source, depth)

    def _content(self, head: bytes, source: Bytes) -> Callable[[str, Bytes, int], None]:
        """What looks through a source that begins like this."""
        if is_zip(source):  # type: ignore[arg-type]
            return self._zip
        if is_header(head):
            return self._tar
        if head.startswith(NUMPY) and len(head) > 8:
            return self._numpy
        if packing(head):
            return self._packed
        if closed_packing(head):
            return self._closed
        if head[8:].lstrip(b" \t\r\n").startswith(b"{") and _is_safetensors(source):
            return self._safetensors
        return self._pickles

    def _kind(self, kind: str) -> None:
        if self.found.kind == "other":
            self.found.kind = kind

    def _problem(self, label: str, text: str) -> None:
        if len(self.found.problems) < 100:
            self.found.problems.append(f"{printable(label)}: {text}" if label else text)

    def _doubt(self, label: str, text: str) -> None:
        doubt = f"{printable(label)}: {printable(text)}" if label else printable(text)
        if doubt not in self.found.unjudged and len(self.found.unjudged) < 100:
            self.found.unjudged.append(doubt)

    def _inside(self, label: str, source: Bytes, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._problem(label, f"an archive more than {MAX_DEPTH} levels deep")
        else:
            self.todo.append((label, source, depth))

    # --- archives and packed files -----------------------------------------------------------------------------------

    def _zip(self, label: str, source: Bytes, depth: int) -> None:
        self._kind("zip archive")
        entries = read_entries(source, behind_others=not is_zip(source))  # type: ignore[arg-type]
        root = next(iter(entries), "").partition("/")[0]
        folded = {name.casefold() for name in entries}
        is_torch = f"{root}/data.pkl".casefold() in folded
        if is_torch and not label:
            program = any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in entries)
            self.found.kind = "TorchScript archive" if program else "torch zip"
        for entry in reversed(entries.values()):
            if not entry.size or (is_torch and _RECORD.fullmatch(entry.name)):
                continue
            self._entry(f"{label}/{entry.name}" if label else entry.name, source, entry, depth + 1)

    def _archive_at_the_end(self, label: str, source: Bytes, depth: int) -> None:
        start = start_behind_other_bytes(source)  # type: ignore[arg-type]
        if start is not None:
            self._zip(label, Window(source, start, source.size - start), depth)

    def _entry(self, label: str, source: Bytes, entry: Entry, depth: int) -> None:
        packed = Window(source, entry.offset, entry.packed)
        if entry.method == STORED:
            self._inside(label, packed, depth)
        elif entry.method == DEFLATED:
            pieces = inflate(source, entry)  # type: ignore[arg-type]
            self._unpacked(label, next(pieces, b""), lambda: next(pieces, b""), depth)
        elif entry.method == 12:
            self._inside(label, packed, depth)  # bzip2
        else:
            self._doubt(label, f"not looked into: compressed by zip's method {entry.method}")

    def _tar(self, label: str, source: Bytes, depth: int) -> None:
        self._kind("tar archive")
        self._disguised(label, source, depth)  # its first bytes are a name, which may be anything
        for member in members(source):
            if member.size:
                name = f"{label}/{member.name}" if label else member.name
                self._inside(name, Window(source, member.offset, member.size), depth + 1)

    def _packed(self, label: str, source: Bytes, depth: int) -> None:
        """What it unpacks to; it can be a pickle at once."""
        self._disguised(label, source, depth)
        how = packing(source.read(0, min(_HEAD, source.size)))
        content = Unpacked(source, how)
        self._unpacked(label, content.next(), content.next, depth + 1)
        if content.damage:
            self.found.notes.append(f"{printable(label)}: {content.damage}" if label else content.damage)
            self._archive_at_the_end(label, source, depth)
        if content.rest < source.size:
            self._doubt(label, f"{source.size - content.rest} bytes behind its {how} data belong to nothing")
            self._inside(label, Window(source, content.rest, source.size - content.rest), depth + 1)

    def _unpacked(self, label: str, head: bytes, read: Callable[[], bytes], depth: int) -> None:
        """The content of what was packed: looked through when it begins like anything that is."""
        if len(head) >= 1 << 20 and self._plain(head):
            return
        whole = spooled(head, read, self.unpacked)
        if whole is None:
            self._doubt(label, f"not looked into: it unpacks to more than {self.unpacked >> 20} MiB")
            return
        self.unpacked -= whole.size
        self._inside(label, whole, depth)

    def _plain(self, head: bytes) -> bool:
        """Whether a file that begins like this can hold no pickle."""
        source = Memory(head)
        if self._content(head[:_HEAD], source) != self._pickles or head[:1] == b"\x80":
            return False
        first = Pickle(source, 0, MAX_OPCODES // 10)
        return not (first.ended or first.exhausted or first.names or first.calls or first.stopped == "cut off")

    def _closed(self, label: str, source: Bytes, depth: int) -> None:
        how = closed_packing(source.read(0, min(_HEAD, source.size)))
        self._kind(f"{how} archive")
        self._doubt(label, f"not looked into: compressed by {how}; unpack it first")

    # --- NumPy and safetensors ---------------------------------------------------------------------------------------

    def _numpy(self, label: str, source: Bytes, depth: int) -> None:
        self._kind("NumPy array")
        header = read_header(source)
        if header.pickled:
            self._pickles(label, Window(source, header.start, source.size - header.start), depth, certain=True)
        elif header.end is not None and header.end < source.size:
            self._inside(label, Window(source, header.end, source.size - header.end), depth)

    def _safetensors(self, label: str, source: Bytes, depth: int) -> None:
        """It can be a pickle at once, which counts when that calls or names something bad."""
        self._kind("safetensors (nothing in it can run)")
        if self._disguised(label, source, depth):
            self.found.kind = "pickle disguised as safetensors"

    def _disguised(self, label: str, source: Bytes, depth: int) -> bool:
        """Whether a file of another kind consists of pickles at once that call or name something bad, or is a legacy
        stream at once. These are counted."""
        bad, pos = False, 0
        for _ in range(MAX_PICKLES):
            found = self._read(label, source, pos, MAX_OPCODES)
            if found.harms or found.unjudged or found.exhausted:
                bad = True
                self._count(label, found, depth, source)
            if found.exhausted:
                self._problem(label, found.stopped)
            if found.ended and found.value == TORCH_MAGIC:
                self._rest(label, source, depth, found)
                return True
            pos = found.end
            if not found.ended or pos >= source.size or self.work <= 0:
                break
        return bad

    # --- pickles -----------------------------------------------------------------------------------------------------

    def _pickles(self, label: str, source: Bytes, depth: int, certain: bool = False) -> None:
        """Pickles one after the other; ``certain``: a loader would take it as one, whatever it begins with."""
        if not source.size:
            return
        first = self._follow(label, source, 0, depth)
        marked = source.read(0, min(2, source.size)) in (b"\x80%c" % protocol for protocol in range(6))
        likely = certain or marked or first.exhausted or first.is_text or self._followed_by_one(source, first)
        if not likely and not label.lower().endswith((".pkl", ".pickle")):
            self._archive_at_the_end(label, source, depth)
            return
        old = "pickle of protocol 0 or 1"
        self._kind("torch legacy stream" if first.value == TORCH_MAGIC and marked else "pickle" if marked else old)
        if not first.ended:
            self._problem(label, first.stopped)
            return
        self._rest(label, source, depth, first)

    def _followed_by_one(self, source: Bytes, last: Pickle) -> bool:
        """Whether what looks like a pickle follows what may be one by coincidence."""
        while last.ended and not last.is_text:
            last = Pickle(source, last.end, min(self.work, MAX_OPCODES))
            self.work -= last.opcodes
        return last.is_text or last.exhausted

    def _rest(self, label: str, source: Bytes, depth: int, last: Pickle) -> None:
        """Everything behind the first pickle, to the end."""
        values, storages, pos, taken = [last.value], dict(last.storages), last.end, last.end
        for _ in range(MAX_PICKLES):
            if values[:1] == [TORCH_MAGIC] and len(values) == _STREAM:
                pos = taken = self._skip_storages(label, source, pos, storages, values[-1])
                values, storages = [], {}
            elif label.rpartition("/")[2] in _TAR_RECORDS:
                pos = taken = _skip_record(source, pos, label, values)
            if pos >= source.size:
                return
            last = self._follow(label, source, pos, depth)
            if not last.ended:
                break
            values.append(last.value)
            storages |= last.storages
            pos = taken = last.end
        if last.exhausted:
            self._problem(label, last.stopped)
        if source.size - taken == 1 and source.read(taken, 1) == b"\n":  # which editors and old programs leave
            return
        self._problem(label, f"{source.size - taken} bytes behind the end of its pickles belong to none")

    def _follow(self, label: str, source: Bytes, pos: int, depth: int) -> Pickle:
        limit = 2 * MAX_OPCODES if source.read(pos, 1) == b"\x80" else MAX_OPCODES
        found = self._read(label, source, pos, limit)
        if found.ended or found.harms or found.unjudged or source.read(pos, 1) == b"\x80":
            self._count(label, found, depth, source)
        return found

    def _read(self, label: str, source: Bytes, pos: int, limit: int) -> Pickle:
        """One pickle; where it has joblib's arrays, as joblib reads it, with all that other loaders would do."""
        plain = self._pickle(source, pos, limit)
        if WRAPPER not in plain.names:
            return plain
        found: Pickle = JoblibPickle(source, pos, min(self.work, limit))
        self.work -= found.opcodes
        exhausted = plain.exhausted or found.exhausted
        if plain.ended and not found.ended:
            plain.join(found)
            found = plain
        else:
            found.join(plain)
            last, count = plain, 0
            while last.ended and pos < last.end < found.end and not exhausted:
                last, count = self._pickle(source, last.end, limit), count + 1
                found.include(last)
                exhausted = last.exhausted or count > MAX_PICKLES
        if exhausted:
            self._doubt(label, "joblib's arrays: too long to follow to the end")
        return found

    def _pickle(self, source: Bytes, pos: int, limit: int) -> Pickle:
        found = Pickle(source, pos, min(self.work, limit))
        self.work -= found.opcodes
        return found

    def _count(self, label: str, found: Pickle, depth: int, source: Bytes) -> None:
        for target, counts in (
            (self.found.globals, found.names),
            (self.found.calls, found.calls),
            (self.excused, found.excused),
        ):
            for name, count in counts.items():
                target[name] = target.get(name, 0) + count
        for doubt in found.unjudged:
            self._doubt(label, doubt)
        for odd in found.odd:
            self._problem(label, odd)
        for data in found.nested:
            inside = _nested(source, data)
            if inside is None:
                self._doubt(label, "not looked into: bytes that it hands to torch.load")
            elif not (is_zip(inside) or Pickle(inside, 0, _FIRST).value == TORCH_MAGIC):  # type: ignore[arg-type]
                self._problem(label, "hands bytes to torch.load that are not a torch file")
            else:
                self._inside(label, inside, depth + 1)

    def _skip_storages(self, label: str, source: Bytes, pos: int, storages: dict[str, str], keys: Any) -> int:
        """Behind the storages of a legacy stream, which torch reads by their own sizes."""
        if not isinstance(keys, list):
            raise InputRefused("a damaged torch file (no list of storage keys)")
        for key in keys:
            kind = storage_type(storages.get(str(key), "")) if isinstance(key, str | int) else None
            if kind is None or pos + 8 > source.size:
                raise InputRefused("a damaged torch file (a storage is cut off or of an unknown type)")
            numel = int.from_bytes(source.read(pos, 8), "little", signed=True)
            pos += 8 + max(0, numel) * kind[0]
            if pos > source.size:
                raise InputRefused("a damaged torch file (a storage is cut off)")
        return pos


def _is_safetensors(source: Bytes) -> bool:
    try:
        safetensors.read(source)  # type: ignore[arg-type]
    except InputRefused:
        return False
    return True


def _nested(source: Bytes, data: Blob | LongText | str) -> Bytes | None:
    """The bytes that a pickle hands to a loader. As text they stand for bytes in Latin-1."""
    if isinstance(data, Blob):
        return Window(source, data.offset, data.size)
    if isinstance(data, LongText) and data.text is not None:
        data = data.text
    if isinstance(data, LongText):
        if data.size > MAX_UNPACKED // 8:
            return None
        data = source.read(data.offset, data.size).decode("utf-8", "surrogatepass")
    try:
        return Memory(data.encode("latin-1"))
    except UnicodeEncodeError:
        return None


def _skip_record(source: Bytes, pos: int, label: str, values: list[Any]) -> int:
    """Behind the raw data that the oldest torch wrote after a pickle of its members ``storages`` and ``tensors``."""
    last = values[-1]
    if not isinstance(last, tuple) or len(last) != 3:
        return pos
    if label.endswith("storages"):  # (key, location, storage class), then a number of elements, and these
        kind = storage_type(last[2].label) if isinstance(last[2], Name) else None
        if kind is None or pos + 8 > source.size:
            return pos
        return pos + 8 + max(0, int(unpack("<q", source.read(pos, 8))[0])) * kind[0]
    rank = int(unpack("<i", source.read(pos, 4))[0]) if pos + 4 <= source.size else 0
    return pos + 8 + 16 * max(0, rank) + 8  # (key, storage, class), then rank, sizes, strides, offset
