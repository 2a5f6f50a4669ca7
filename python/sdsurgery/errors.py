"""Every failure that a user can meet: one class per exit code, one ``code`` per kind of failure.

The message is one line that says which file or tensor, what was found, what was expected and what to do. It names
options as Python spells them (``overwrite=True``); the command line translates them (``commands/spelling.py``). Names
that come from a file are escaped with :func:`printable` before they enter a message.

Programs match ``error.code``, which is stable; the wording is not. docs/errors.md lists the codes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, TypeVar

CODES = {
    # UsageError
    "usage": "the request is wrong in a way that has no code of its own",
    "unknown_name": "no method, option, format, component, … has that name; the message lists close matches",
    "bad_value": "a setting or parameter has a value that it cannot have",
    "conflict": "two settings that exclude each other, or one that is given twice with different values",
    "no_output": "no output file was given",
    "wrong_inputs": "the wrong number or kind of inputs for the method",
    "exists": "the output exists, and overwriting was not asked for",
    "bad_output": "no file can be created at the output's path",
    "backend": "the backend cannot be used here, or cannot do what was asked",
    "bad_array": "an array or tensor that `apply` or `save` cannot work with",
    # InputRefused
    "refused": "an input is refused for a reason that has no code of its own",
    "not_found": "no such file or folder",
    "permission": "the system refuses access",
    "not_regular": "a folder, FIFO or device where a file is expected",
    "encoded": "a weight is in codes that cannot be decoded, or not as it was asked for",
    "unknown_format": "the file is not a checkpoint of a known format",
    "damaged": "the file breaks the rules of its format, or its bytes differ from their checksum",
    "truncated": "the file ends before the data that its header describes",
    "suspicious": "a pickle names functions that could do harm; nothing was run",
    "unjudged": "loading a pickle calls what is not known to be harmless; nothing was run",
    "compressed": "tensor data is compressed, and inflating it was not asked for",
    "unusable_tensor": "a needed tensor is of a kind that cannot be read or computed with",
    "family": "inputs of different families, or a family that the command cannot work with",
    "unlike": "the inputs have too few tensors in common",
    "shape": "a tensor's shape is not the expected one",
    "missing_tensors": "tensors that the command needs are not in the input",
    "extra_tensors": "the input has tensors that are not expected there",
    "nonfinite": 'NaN or Inf in an input, with on_nonfinite="error"',
    # RunFailed
    "failed": "the run failed for a reason that has no code of its own",
    "io": "a read or write failed",
    "too_many_files": "the system's limit on open files is reached",
    "no_space": "the disk or quota is full",
    "changed": "an input changed while it was being read",
    "overflow": 'a value does not fit the output dtype, with overflow="error"',
    "memory": "out of memory, or the system starts no more threads",
    "stdout": "standard output is closed or broken",
    "device": "a GPU ran out of memory, reported an error or was lost",
    # the others
    "differs": "a verification found a difference",
    "interrupted": "Ctrl-C or a termination signal",
    "internal": "a mistake in sdsurgery (command line only; from Python it is the exception itself)",
}
"""Every code and what it means."""


class Failure(BaseException):
    """What all errors have.

    ``code``: a key of ``CODES``; ``exit_code``: what the command line returns. ``tensor`` and ``path``: the tensor's
    name and the file, unescaped, where they are known. ``details``: further facts (``found``, ``expected``, …).
    """

    exit_code = 1
    code = "failed"
    in_json = False  # whether the command line has printed it within a result
    job: int | None = None  # number of the plan's job that met it, for the caller, who knows the tensors' names

    def __init__(
        self, message: str = "", *, code: str | None = None, tensor: str | None = None, path: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        if code is not None:
            self.code = code
        self.tensor, self.path, self.details = tensor, path, dict(details or {})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what the command line prints as ``{"error": …}``."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": str(self),
            "tensor": self.tensor,
            "path": self.path,
            "details": self.details,
        }


class SdsError(Failure, Exception):
    """Base of all errors raised on purpose but ``Interrupted``."""

    def within(self: Raised, prefix: str, *, tensor: str | None = None, path: str | None = None) -> Raised:
        """The same error with ``prefix`` in front; ``tensor`` and ``path`` are filled in where they were not known."""
        return type(self)(
            f"{prefix}: {self}", code=self.code, tensor=self.tensor or tensor, path=self.path or path,
            details=self.details,
        )  # fmt: skip

    def of_tensor(self: Raised, name: str) -> Raised:
        """The same error with the tensor's name in front."""
        return self.within(f"tensor '{printable(name)}'", tensor=name)


class RunFailed(SdsError):
    """The work began and could not be finished (disk full, input changed, overflow refused). Nothing is left behind."""


class DeviceFailed(RunFailed):
    """A GPU ran out of memory, reported an error or was lost. Nothing is left behind; the CPU can do the same work."""

    code = "device"


class UsageError(SdsError):
    """The request itself is wrong: an unknown method, a missing parameter, a target that exists."""

    exit_code = 2
    code = "usage"


class InputRefused(SdsError):
    """An input is damaged, hostile, of the wrong family or of the wrong shape. Raised before the first output byte."""

    exit_code = 3
    code = "refused"


class VerificationDiffers(SdsError):
    """A verification or a comparison found a difference."""

    exit_code = 4
    code = "differs"


class Interrupted(Failure, KeyboardInterrupt):
    """The run was cancelled by Ctrl-C or a termination signal. Nothing is left behind.

    A KeyboardInterrupt and no Exception: ``except Exception`` in a loop over files doesn't swallow Ctrl-C.
    """

    exit_code = 130
    code = "interrupted"


# What the engine and every backend say of values that are not wanted.
NONFINITE = 'NaN or Inf in an input (on_nonfinite="keep" carries it through)'
OVERFLOW = 'a value does not fit the output dtype (overflow="inf" or "saturate", or a wider dtype=)'

Raised = TypeVar("Raised", bound=SdsError)


def of_job(job: int, error: Raised) -> Raised:
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


def number_of(count: int, noun: str) -> str:
    """``1 tensor``, ``1,130 tensors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
