"""Where a verb writes: the output's name as it was given, completed and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import RunFailed, SdsError, UsageError, printable
from ..files import free_bytes, target_path
from ..formats import is_named, writers

if TYPE_CHECKING:
    from ..settings import Settings
    from .report import Report

Path = str | os.PathLike[str]

_USUAL = ".safetensors"
_OTHERS = {
    "GGUF": ".gguf .ggml", "ONNX": ".onnx", "TensorRT": ".engine .plan .trt", "OpenVINO": ".xml", "Keras": ".h5 .hdf5",
    "TensorFlow": ".pb .tflite", "Core ML": ".mlmodel .mlpackage", "Flax": ".msgpack", "NumPy": ".npy .npz",
    "pickle": ".pkl .pickle", "archive": ".zip .7z .rar .tar .gz .xz .zst", "JSON": ".json",
    "YAML": ".yaml .yml", "text": ".txt .md .csv", "picture": ".png .jpg .jpeg .webp .gif .avif",
}  # fmt: skip
"""What other programs' files are called."""
_FOREIGN = {suffix: kind for kind, suffixes in _OTHERS.items() for suffix in suffixes.split()}
_SUFFIX = r"\.[a-zA-Z]\w*"  # what follows the last dot of "mix-0.5" or "model v1.5 final" is none


def named(out: Path) -> str:
    """The output's name: with ``.safetensors`` behind one that has no suffix. A name that exists stays as it is.

    UsageError for standard output and for a suffix of files that cannot be written.
    """
    text = os.fsdecode(out)
    if text == "-":
        raise UsageError(
            "the output is a file that is written in several places at once, so it cannot go to standard output ('-')",
            code="bad_output",
            path=text,
        )
    name = os.path.basename(text)
    suffix = os.path.splitext(name)[1]
    kind = _FOREIGN.get(suffix.lower())
    if kind is not None:
        written = ", ".join(dict.fromkeys(each for writer in writers() for each in writer.suffixes))
        raise UsageError(
            f"'{printable(text)}': {kind} files cannot be written; the output may end with {written}",
            code="bad_output",
            path=text,
        )
    if suffix and not is_named(text):
        _refuse_misspelt(text, suffix.lower())
    if not name or re.fullmatch(_SUFFIX, suffix) or os.path.lexists(text):
        return text
    return text + _USUAL


def _refuse_misspelt(text: str, suffix: str) -> None:
    """UsageError for a suffix that is nearly one of those that programs look for."""
    from difflib import get_close_matches

    known = [each for writer in writers() for each in writer.suffixes]
    near = get_close_matches(suffix, known, n=1, cutoff=0.8)
    if near:
        meant = os.path.splitext(text)[0] + near[0]
        raise UsageError(
            f"'{printable(text)}': programs do not look for models with that suffix; did you mean "
            f"'{printable(meant)}'?",
            code="bad_output",
            path=text,
        )


def remark(out: Path) -> str | None:
    """What is to be said of the name that was given."""
    if named(out) != os.fsdecode(out):
        return f"{printable(out)} has no suffix, so {_USUAL} is appended"
    return None if is_named(named(out)) else f"{printable(out)}: unknown suffix, so safetensors is written"


def require_free(out: Path | None, settings: Settings) -> None:
    """Before the work begins: raises as ``named`` and ``target_path``. In a dry run a file may be there already."""
    if out is not None:
        target_path(named(out), settings.overwrite or settings.dry_run)


def refusal(out: Path, overwrite: bool) -> SdsError | None:
    """Why a run would be refused that a dry run describes."""
    try:
        target_path(out, overwrite)
    except SdsError as error:
        return error
    return None


def refuse_space(reports: Sequence[Report]) -> None:
    """Note in the reports of a dry run that their outputs do not fit their folder together."""
    by_folder: dict[str, list[Report]] = {}
    for report in reports:
        if report.output is not None:
            by_folder.setdefault(os.path.dirname(os.path.realpath(report.output)), []).append(report)
    for folder, own in by_folder.items():
        needed, free = sum(report.bytes_written for report in own), free_bytes(folder)
        if needed <= free:
            continue
        text = f"{printable(folder)}: {needed} bytes are needed and {free} are free"
        for report in own:
            report.refusal = report.refusal or RunFailed(text, code="no_space", path=report.output)
