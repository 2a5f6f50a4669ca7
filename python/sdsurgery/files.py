"""Inputs and outputs as the native engine opens them. Its errors become those of ``errors.py`` here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import CODES, NONFINITE, OVERFLOW, InputRefused, Interrupted, RunFailed, SdsError, UsageError, printable
from .suggest import near_files

if TYPE_CHECKING:
    from ._native import Source

_NUMBER = re.compile(r"-?\d*\.?\d+")


# ---- inputs


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open an input file (regular files only, never blocking). InputRefused with one line when that can't be."""
    path = expanded(path)
    if not _is_name(os.fsdecode(path)):
        raise InputRefused(f"'{printable(os.fsdecode(path))}' is not a valid file name", code="not_found")
    try:
        with native_errors(InputRefused):
            return _native.Source(os.fsencode(path))
    except SdsError as error:
        if error.code == "not_found":
            raise InputRefused(
                f"{error}{near_files(os.fsdecode(path))}", code="not_found", path=os.fsdecode(path)
            ) from None
        error.path = os.fsdecode(path)
        raise


def require_found(inputs: Iterable[object]) -> None:
    """InputRefused when files are missing, with the names of all that are; what is not a path is passed over."""
    paths = [expanded(each) for each in inputs if isinstance(each, str | os.PathLike)]
    missing = [path for path in dict.fromkeys(paths) if _is_name(path) and not os.path.lexists(path)]
    numbers = [path for path in missing if _NUMBER.fullmatch(path)]
    if numbers:
        raise UsageError(
            f"'{numbers[0]}' is not a file; write a list of numbers as one word, with commas: "
            f"{','.join(numbers) if len(numbers) > 1 else '0.5,0.3,0.2'}",
            code="wrong_inputs",
        )
    if missing:
        each = [f"{printable(path)}: No such file or directory{near_files(path)}" for path in missing[:8]]
        raise InputRefused("; ".join(each), code="not_found", path=missing[0])


def open_temporary(path: str) -> Source:
    """Open a temporary file of this process: its name is removed at once where that can be, else at exit."""
    import atexit

    try:
        return open_source(path)
    finally:
        try:
            os.unlink(path)
        except OSError:  # Windows keeps the name of an open file
            atexit.register(with_suppressed, lambda: os.unlink(path))


# ---- outputs


def target_path(out: str | os.PathLike[str], overwrite: bool) -> str:
    """The real path of the output (a symlink is written through). UsageError when it exists and ``overwrite`` is off.

    RunFailed for a relative path when the current folder has been removed.
    """
    text = expanded(out)
    if not _is_name(text):
        raise UsageError(f"'{printable(text)}' is not a valid file name", code="bad_output")
    if text.endswith(("/", os.sep)):
        raise UsageError(f"the output must be a file, not a folder: '{printable(text)}'", code="bad_output", path=text)
    if os.path.exists(text) and not os.path.isfile(text):
        raise UsageError(
            f"the output must be a regular file, and '{printable(text)}' is not one", code="bad_output", path=text
        )
    if os.path.lexists(text) and not overwrite:
        raise UsageError(f"{printable(text)} exists; overwrite=True replaces it", code="exists", path=text)
    try:
        return os.path.realpath(text)
    except FileNotFoundError:
        raise RunFailed(f"{printable(text)}: the current folder no longer exists", code="io", path=text) from None


def free_bytes(folder: str) -> int:
    """Bytes that an ordinary user can still write in a folder's file system."""
    return _native.free_bytes(os.fsencode(folder))


# ---- names


def expanded(path: str | os.PathLike[str]) -> str:
    """``~/x`` as the file in the home folder that a shell would make of it."""
    text = os.fsdecode(path)
    return os.path.expanduser(text) if text.startswith(("~/", "~" + os.sep)) else text


def _is_name(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


# ---- errors


@contextmanager
def native_errors(kind: type[SdsError] = RunFailed) -> Iterator[None]:
    """Turn the native engine's errors into ours; ``kind`` is for errors that have no class of their own."""
    try:
        yield
    except _native.Error as error:
        raise _translated(error, kind) from None
    except MemoryError:
        raise RunFailed("out of memory", code="memory") from None


def _translated(error: Any, kind: type[SdsError]) -> SdsError:
    if error.code == "cancelled":
        raise Interrupted("interrupted; nothing was written") from None
    text = str(error).partition("\n\nAt:\n")[0]  # without the places in Python that pybind11 adds
    made = _of_code(error.code, printable(text, 400), kind)
    made.job = error.job if error.job >= 0 else None
    return made


def _of_code(code: str, text: str, kind: type[SdsError]) -> SdsError:
    if code == "nonfinite":
        return InputRefused(NONFINITE, code=code)
    if code == "overflow":
        return RunFailed(OVERFLOW, code=code)
    if code == "exists":
        return UsageError(f"{text} (overwrite=True replaces it)", code=code)
    if code == "invalid":
        return UsageError(text)
    if code == "too_many_files":
        return RunFailed(f"{text} (the limit of this process; ulimit -n raises it)", code=code)
    if code == "memory":  # no fault of the input that was being read
        return RunFailed(text, code=code)
    if code == "damaged":
        return RunFailed(f"{text}; nothing was written", code=code)
    return kind(text, code=code if code in CODES else None)


def with_suppressed(function: Callable[[], None]) -> None:
    """Call a clean-up step whose own failure must not hide the error that led to it."""
    import contextlib

    with contextlib.suppress(Exception, Interrupted):
        function()
