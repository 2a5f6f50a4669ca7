"""``scan``: says what a pickle would have run had ``torch.load`` loaded it, without loading it.

Torch files of every form, plain pickles, and archives inside archives are looked at; the bytes of tensors are never
read. A file is suspicious when its pickle names something dangerous (``pickle_names``), or when it cannot be followed
to its end by the rules that every file of ``torch.save`` keeps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from ..errors import InputRefused, UsageError, printable
from .pickle_machine import MAX_OPCODES, MAX_PICKLE, Machine, TruncatedPickle
from .pickle_names import dangerous, dangerous_names
from .pickle_walk import TextPickles, Walk
from .torch_legacy import SMALL, WINDOWS, has_magic, is_old_tar
from .torch_values import TABLE, known, persistent
from .zip_reader import STORED, Entry, entry_bytes, is_zip, read_entries

MAX_DEPTH = 3  # of archives inside archives
MAX_WORK = 4 * MAX_OPCODES  # opcodes of all pickles of one file together
MAX_MEMBERS = 1000
_TOO_LONG = "too long to follow to the end"
_HIDDEN = (
    "calls what it names by STACK_GLOBAL or by an extension's number, which a file of its kind has no reason to do"
)
_PICKLES = (".pkl", ".pickle", ".ckpt", ".pt", ".pth", ".bin", ".zip", ".joblib")


class Bytes(Protocol):
    """What is scanned: a file, or a part of one."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes: ...


@dataclass(repr=False)
class FileScan:
    """What one file would do.

    ``globals``: every class and function it names, with the number of times. ``calls``: those that loading would have
    called. ``dangerous``: those that can be made to run anything. ``problems``: why it could not be followed to its
    end.
    """

    path: str
    kind: str = "other"
    globals: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    dangerous: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def suspicious(self) -> bool:
        """Whether it is unsafe to load with anything that runs pickles."""
        return bool(self.dangerous or self.problems)

    @property
    def unknown(self) -> list[str]:
        """Names that are neither dangerous nor of the kind that every checkpoint has."""
        return [label for label in self.globals if not known(label) and not dangerous(label)]

    def __repr__(self) -> str:
        return f"<FileScan of {self.path}: {'suspicious' if self.suspicious else 'nothing dangerous'}>"

    def as_json(self) -> dict[str, object]:
        """The report as plain values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "suspicious": self.suspicious,
            "dangerous": self.dangerous,
            "problems": self.problems,
            "unknown": self.unknown,
            "calls": self.calls,
            "globals": self.globals,
            "notes": self.notes,
        }


@dataclass(repr=False)
class ScanReport:
    """The scans of all files; ``skipped`` counts those in a folder that hold no pickle."""

    files: list[FileScan] = field(default_factory=list)
    skipped: int = 0

    @property
    def suspicious(self) -> bool:
        """Whether any file is; the command line returns exit code 3 then."""
        return any(file.suspicious for file in self.files)

    def __repr__(self) -> str:
        bad = sum(file.suspicious for file in self.files)
        return f"<ScanReport: {bad} of {len(self.files)} files suspicious, {self.skipped} skipped>"

    def as_json(self) -> dict[str, object]:
        """The report as plain values."""
        return {
            "suspicious": self.suspicious,
            "skipped": self.skipped,
            "files": [file.as_json() for file in self.files],
        }

    def lines(self, *, verbose: bool = False) -> Iterator[str]:
        """The report for people, one line per finding; names from files are escaped. ``verbose``: lists in full."""
        most = None if verbose else 20
        for file in self.files:
            verdict = "SUSPICIOUS" if file.suspicious else "nothing dangerous found"
            yield f"{printable(file.path, 1000)}: {file.kind}: {verdict}"
            for label in file.dangerous[:most]:
                verb = "would have run" if label in file.calls else "names"
                yield f"  {verb} {printable(label)} ({file.globals.get(label, 1)} times named)"
            yield from (f"  {problem}" for problem in file.problems[:most])
            if file.globals:
                names = ", ".join(printable(label, 80) for label in list(file.globals)[:most])
                left = f", … ({len(file.globals)} in all)" if most and len(file.globals) > most else ""
                yield f"  globals: {names}{left}"
            if file.unknown:
                yield "  other classes: " + ", ".join(printable(label, 80) for label in file.unknown[:most])
            yield from (f"  {note}" for note in file.notes[:most])
        if self.skipped:
            yield f"{self.skipped} other files hold no pickle"


def scan(*paths: str | os.PathLike[str]) -> ScanReport:
    """Scan files, and every file below folders (links in them are not followed). UsageError for what isn't there."""
    report = ScanReport()
    for path in paths:
        name = os.fspath(path)
        if not os.path.isdir(name):
            report.files.append(scan_file(name))
            continue
        for full in _below(name):
            try:
                found = scan_file(full)
            except UsageError as error:
                found = FileScan(full, "unreadable", problems=[str(error)])
            if found.kind == "other" and not found.suspicious:
                report.skipped += 1
            else:
                report.files.append(found)
    return report


def _below(folder: str) -> Iterator[str]:
    """The regular files below a folder, in the order of their names."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            full = os.path.join(where, file)
            if os.path.isfile(full) and not os.path.islink(full):
                yield full


def scan_file(path: str) -> FileScan:
    """Scan one file. UsageError when it cannot be opened or is not a regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{printable(path)}: not a regular file", code="not_regular")
        with open(path, "rb") as file:
            return scan_source(path, _File(file))
    except OSError as error:
        raise UsageError(f"{printable(path)}: {error.strerror or error}") from None


def scan_source(path: str, source: Bytes) -> FileScan:
    """Scan an opened file; archives inside it by a work list, not by recursion."""
    scanner = _Scanner(FileScan(path))
    scanner.run(source)
    return scanner.found


class _File:
    """A file as the readers see it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise InputRefused("the file changed while it was being read", code="changed")
        return data


class _Window:
    """A part of a file: a stored entry of an archive."""

    def __init__(self, source: Bytes, offset: int, size: int) -> None:
        self._source, self._offset, self.size = source, offset, size

    def read(self, offset: int, count: int) -> bytes:
        return self._source.read(self._offset + offset, count)


class _Memory:
    """An inflated entry."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


class _Scanner:
    def __init__(self, found: FileScan) -> None:
        self.found = found
        self.work = MAX_WORK
        self.todo: list[tuple[str, Bytes, int]] = []

    def run(self, source: Bytes) -> None:
        self.todo.append(("", source, 0))
        members = 0
        while self.todo:
            label, part, depth = self.todo.pop()
            members += 1
            if members > MAX_MEMBERS or self.work <= 0:
                self.found.problems.append("too many pickles inside; not all were followed")
                break
            try:
                self._look(label, part, depth)
            except InputRefused as error:
                self._problem(label, str(error))
        self.found.dangerous = dangerous_names(self.found.globals)

    def _look(self, label: str, source: Bytes, depth: int) -> None:
        head = source.read(0, min(512, source.size))
        if is_zip(source):  # type: ignore[arg-type]
            self._kind("zip archive")
            self._zip(label, source, depth)
        elif is_old_tar(head):
            self._kind("tar archive")
            self._tar(label, source, depth)
        elif len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20:
            self._kind("safetensors (nothing in it can run)")
            self._disguised(source)
        elif head[:1] == b"\x80":
            self._kind("torch legacy stream" if has_magic(head) else "pickle")
            self._pickles(
                label, source, (*[SMALL] * 3, MAX_OPCODES, MAX_OPCODES // 4) if has_magic(head) else (MAX_OPCODES,)
            )
        else:
            self._text_pickle(label, source)

    def _kind(self, kind: str) -> None:
        if self.found.kind == "other":
            self.found.kind = kind

    def _problem(self, label: str, text: str) -> None:
        self.found.problems.append(f"{printable(label)}: {text}" if label else text)

    # --- archives ----------------------------------------------------------------------------------------------------

    def _zip(self, label: str, source: Bytes, depth: int) -> None:
        entries = read_entries(source)  # type: ignore[arg-type]
        root = next(iter(entries), "").partition("/")[0]
        if not label and f"{root}/data.pkl" in entries:
            program = any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in entries)
            self.found.kind = "TorchScript archive" if program else "torch zip"
        for entry in reversed(entries.values()):
            if entry.name.lower().endswith(_PICKLES):
                self._member(f"{label}{entry.name}", source, entry, depth + 1)

    def _member(self, label: str, source: Bytes, entry: Entry, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._problem(label, f"an archive more than {MAX_DEPTH} levels deep")
        elif entry.method == STORED:
            self.todo.append((label, _Window(source, entry.offset, entry.size), depth))
        elif entry.name.lower().endswith((".pkl", ".pickle")):
            self.work -= entry.size // 16
            if self.work > 0:
                data = entry_bytes(source, entry, MAX_PICKLE)  # type: ignore[arg-type]
                self.todo.append((label, _Memory(bytes(data)), depth))
        else:
            self.found.notes.append(f"{printable(label)} is compressed and was not looked at")

    def _tar(self, label: str, source: Bytes, depth: int) -> None:
        """The members of torch's oldest form, and others by their suffix."""
        pos = 0
        for _ in range(MAX_MEMBERS):
            if pos + 512 > source.size:
                return
            header = source.read(pos, 512)
            name = header[:100].rstrip(b"\0").decode("utf-8", "backslashreplace")
            digits = header[124:136].strip(b"\0 ")
            if not name or not digits.isdigit():
                return
            size = int(digits, 8) if not digits.strip(b"01234567") else 0
            size = min(size, source.size - pos - 512)
            if name in ("pickle", "sys_info", "storages", "tensors") or name.lower().endswith(_PICKLES):
                if depth >= MAX_DEPTH:
                    self._problem(name, f"an archive more than {MAX_DEPTH} levels deep")
                else:
                    self.todo.append((f"{label}{name}", _Window(source, pos + 512, size), depth + 1))
            pos += 512 + size + -size % 512

    # --- pickles -----------------------------------------------------------------------------------------------------

    def _pickles(self, label: str, source: Bytes, limits: tuple[int, ...]) -> None:
        """Follow pickles, one after the other; what cannot be followed is at least walked for names."""
        pos = 0
        for limit in limits:
            pos = self._pickle(label, source, pos, limit)
            if pos < 0:
                return

    def _pickle(self, label: str, source: Bytes, pos: int, limit: int) -> int:
        """Where the pickle ends, or -1 when it could not be followed."""
        # An entry of an archive is read at once, a stream through a window that grows.
        entry = isinstance(source, _Window | _Memory) and source.size <= WINDOWS[-1]
        for size in WINDOWS[-1:] if entry else WINDOWS:
            data = source.read(pos, min(size, source.size - pos))
            machine = Machine(data, 0, TABLE, persistent, limit)
            try:
                graph = machine.run()
            except InputRefused as error:
                if isinstance(error, TruncatedPickle) and len(data) < min(WINDOWS[-1], source.size - pos):
                    continue
                self._problem(label, str(error))
                walk = Walk(data)
                self._count(walk.names, {})
                self.work -= min(len(data), 2 * MAX_OPCODES)
                return -1
            self._count(graph.globals, graph.called)
            self.work -= min(machine.pos, MAX_OPCODES)
            return pos + machine.pos
        return -1

    def _count(self, names: dict[str, int], calls: dict[str, int]) -> None:
        for target, counts in ((self.found.globals, names), (self.found.calls, calls)):
            for label, count in counts.items():
                target[label] = target.get(label, 0) + count

    def _disguised(self, source: Bytes) -> None:
        """A file can begin as a safetensors file and a pickle at once; it counts as one when it names something bad, or
        goes on further than is followed."""
        for size in WINDOWS:
            data = source.read(0, min(size, source.size))
            walk = Walk(data)
            cut = not walk.ended and (walk.exhausted or len(data) <= walk.pos < source.size)
            if not cut:
                break
        if any(dangerous(name) for name in walk.names) or walk.hides or cut:
            self.found.kind = "pickle disguised as safetensors"
            self._count(walk.names, walk.names)
            if walk.hides:
                self._problem("", _HIDDEN)
            if cut:
                self._problem("", _TOO_LONG)

    def _text_pickle(self, label: str, source: Bytes) -> None:
        """A pickle of protocol 0 or 1 has no mark of its own. One that names something dangerous counts in any case."""
        for size in WINDOWS:
            data = source.read(0, min(size, source.size))
            found = TextPickles(data, complete=len(data) == source.size)
            if not found.cut or len(data) == source.size:
                break
        self.work -= min(len(data), 2 * MAX_OPCODES)
        if found.likely or found.hides or any(dangerous(name) for name in found.names):
            self._kind("pickle of protocol 0 or 1")
            self._count(found.names, found.names)
            if found.hides:
                self._problem(label, _HIDDEN)
            if found.cut:
                self._problem(label, _TOO_LONG)
