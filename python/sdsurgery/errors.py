"""Every failure that a user can meet, one class per exit code.

The message of each is one line that says which file or tensor, what was found, what was expected and what to do.
Names that come from a file are escaped with :func:`printable` before they enter a message.
"""

from __future__ import annotations

import unicodedata
from typing import TypeVar


class SdsError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 1
    job: int | None = None  # number of the plan's job that met it, for whoever knows the tensors' names

    def of_tensor(self, name: str) -> SdsError:
        """The same error with the tensor's name in front."""
        return type(self)(f"tensor '{printable(name)}': {self}")


class RunFailed(SdsError):
    """The work began and could not be finished (disk full, input changed, overflow refused). Nothing is left behind."""

    exit_code = 1


class DeviceFailed(RunFailed):
    """A GPU ran out of memory, reported an error or was lost. Nothing is left behind; the CPU can do the same work."""


class UsageError(SdsError):
    """The request itself is wrong: an unknown method, a missing parameter, a target that exists."""

    exit_code = 2


class InputRefused(SdsError):
    """An input is damaged, hostile, of the wrong family or of the wrong shape. Raised before the first output byte."""

    exit_code = 3


class VerificationDiffers(SdsError):
    """A verification or a comparison found a difference."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """The run was cancelled by Ctrl-C or a termination signal. Nothing is left behind.

    A KeyboardInterrupt, so that ``except Exception`` in a loop over files does not swallow Ctrl-C.
    """

    exit_code = 130


# What the engine and every backend say of values that are not wanted.
NONFINITE = "NaN or Inf in an input (--on-nonfinite keep carries it through)"
OVERFLOW = "a value does not fit the output dtype (--overflow inf or saturate, or a wider --dtype)"

Failure = TypeVar("Failure", bound=SdsError)


def of_job(job: int, error: Failure) -> Failure:
    """The error as that of one job of a plan."""
    error.job = job
    return error


def printable(name: object, limit: int = 200) -> str:
    """``name`` as text that is safe on a terminal: control, format (bidi) and separator characters are escaped.

    Longer texts than ``limit`` characters are cut, with the number of characters left out.
    """
    text = str(name)
    cut = ""
    if len(text) > limit:
        cut = f"… (+{len(text) - limit} characters)"
        text = text[:limit]
    if text.isascii() and text.isprintable():
        return text + cut
    out = []
    for char in text:
        if char == " " or (char.isprintable() and unicodedata.category(char)[0] not in "CZ"):
            out.append(char)
        else:
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out) + cut
