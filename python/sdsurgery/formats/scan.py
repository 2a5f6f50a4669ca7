"""``scan``: says what a pickle would have run had ``torch.load`` loaded it, without loading it.

Everything that a loader reads is followed (``scan_content``), and every call is judged: dangerous by its name
(``pickle_names``), harmless by a closed table (``pickle_calls``), or not to be judged.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..errors import RunFailed, SdsError, UsageError, printable
from .pickle_stream import Bytes
from .scan_content import Scanner
from .scan_report import FileScan, ScanReport
from .scan_sources import File

__all__ = ["FileScan", "ScanReport", "scan", "scan_file", "scan_source"]


def scan(*paths: str | os.PathLike[str]) -> ScanReport:
    """Scan files, and every file below folders. UsageError for what isn't there.

    Links in folders are followed to files (a file that several lead to is read once), and not to other folders.
    """
    report = ScanReport()
    for path in paths:
        name = os.fspath(path)
        if not os.path.isdir(name):
            report.files.append(scan_file(name))
            continue
        read: dict[tuple[int, int], FileScan] = {}
        for full in _below(name, report.links):
            found = _once(full, read)
            if found.kind == "other" and found.verdict == "clean":
                report.skipped += 1
            else:
                report.files.append(found)
    return report


def _once(path: str, read: dict[tuple[int, int], FileScan]) -> FileScan:
    """The scan of a file of a folder; one that was read under another name isn't read again."""
    try:
        info = os.stat(path)
        key = (info.st_dev, info.st_ino)
        if key not in read:
            read[key] = scan_file(path)
        return FileScan(**(vars(read[key]) | {"path": path}))
    except (SdsError, OSError) as error:
        return FileScan(path, "unreadable", problems=[str(error)])


def _below(folder: str, links: list[str]) -> Iterator[str]:
    """The regular files below a folder, in the order of their names; ``links`` gets a line on each odd one."""
    top = os.path.realpath(folder)
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in folders:
            full = os.path.join(where, name)
            if os.path.islink(full) and (line := _folder_link(full, top)):
                links.append(line)
        for name in sorted(files):
            full = os.path.join(where, name)
            is_link = os.path.islink(full)
            if os.path.isfile(full):
                if is_link and not _within(target := os.path.realpath(full), top):
                    links.append(f"{full}: a link out of the folder, to {target}; scanned")
                yield full
            elif is_link:
                links.append(f"{full}: a link that leads to no file")


def _folder_link(path: str, top: str) -> str:
    """A line on a link to a folder; '' when that is looked through under its own name."""
    target = os.path.realpath(path)
    if _within(os.path.realpath(os.path.dirname(path)), target):
        return f"{path}: a link to a folder around it; not followed"
    if not _within(target, top):
        return f"{path}: a link out of the folder, to {target}; not followed, scan that folder too"
    return ""


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def scan_file(path: str) -> FileScan:
    """Scan one file. UsageError when it cannot be opened or is not a regular file, RunFailed when it can't be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{printable(path)}: not a regular file", code="not_regular")
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{printable(path)}: {error.strerror or error}") from None
    with file:
        try:
            found = scan_source(path, File(file))
        except OSError as error:
            raise RunFailed(f"{printable(path)}: {error.strerror or error}", code="io", path=path) from None
    if found.kind != "other" and found.verdict == "clean":
        found.holds = _small_model(path)
    return found


def _small_model(path: str) -> str:
    """What an adapter, an embedding or a hypernetwork is; "" for another file. Its header or pickle is parsed, as
    ``open`` does."""
    from ..adapters.read import adapter_of, summary
    from ..checkpoint import open_checkpoint
    from ..layouts import detect

    try:
        checkpoint = open_checkpoint(path)
    except (SdsError, OSError):
        return ""
    with checkpoint:
        adapter = adapter_of(checkpoint)
        if adapter is not None:
            modules = len(adapter.modules)
            return f"an adapter: {summary(adapter.kinds(), adapter.dialects(), adapter.base)}; modules: {modules}"
        found = detect(checkpoint.tensors)
        is_small = found.layout.name.startswith(("textual-inversion", "hypernetwork"))
        return "; ".join((f"a {found.layout.title}", *found.notes)) if is_small else ""


def scan_source(path: str, source: Bytes) -> FileScan:
    """Scan an opened file; archives inside it by a work list, not by recursion."""
    scanner = Scanner(FileScan(path))
    scanner.run(source)
    return scanner.found
