"""One verb over many files. A failure of one does not stop the others; a verb that writes takes ``--out-dir FOLDER`` in
place of ``-o``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import InputRefused, RunFailed, SdsError, UsageError, printable
from ..settings import WRITING
from .common import chosen, error_dict, meant_as_output, print_json, show, written
from .spelling import in_shell


def inputs(parser: argparse.ArgumentParser) -> None:
    """The files of a verb, and the folder for the outputs of several."""
    parser.add_argument("inputs", nargs="+", metavar="FILE")
    parser.add_argument("--out-dir", metavar="FOLDER", help="write all files into a folder, under their own names")


def run(args: argparse.Namespace, work: Callable[..., Any], suffix: str | None = None) -> int:
    """``work(path, out=…, …)`` for the file, or for each of them. ``suffix`` of the outputs; None: the inputs' own."""
    if args.out_dir is None:
        if len(args.inputs) > 1:
            text = "several files need --out-dir FOLDER in place of -o"
            raise UsageError(f"{text}{meant_as_output(args)}", code="conflict")
        return written(args, lambda **given: work(args.inputs[0], **given))
    if args.out is not None:
        raise UsageError("--out-dir names the files itself; it can't be combined with -o", code="conflict")
    return _many(args, work, suffix)


def _many(args: argparse.Namespace, work: Callable[..., Any], suffix: str | None) -> int:
    from ..report import html
    from ..report.progress import display
    from ..surgery.convert import folder, refuse_twice

    outs = [_target(path, args.out_dir, suffix) for path in args.inputs]
    refuse_twice(args.inputs, outs)
    target = folder(args.out_dir, dry_run=args.dry_run)
    rows, failed = [], []
    given = chosen(args, WRITING)
    page = given.pop("html")
    where = html.check(page, overwrite=args.overwrite) if page is not None else None
    with display(args.verb, quiet=args.quiet) as progress:
        for path, out in zip(args.inputs, outs, strict=True):
            report, error = None, None
            try:
                report = work(path, out=os.path.join(target, os.path.basename(out)), progress=progress, **given)
                report.output = out
                error = report.refusal
                failed += [] if error is None else [error]
            except (InputRefused, RunFailed, UsageError) as reason:
                error = reason
                failed.append(reason)
            rows.append((path, out, report, error))
    if where is not None:
        html.write([report or error for _, _, report, error in rows], where, overwrite=args.overwrite)
    return _told(args, rows, failed)


def _told(args: argparse.Namespace, rows: Sequence[tuple[str, str, Any, SdsError | None]], failed: list[Any]) -> int:
    error = failed[0].within(f"{len(failed)} of {len(rows)} files were not written, the first") if failed else None
    if args.json:
        print_json({"files": [
            {"path": path, "output": out, "report": report and report.to_dict(), "error": reason and error_dict(reason)}
            for path, out, report, reason in rows
        ]}, error)  # fmt: skip
    for _, _, report, reason in rows:
        if report is not None:
            show(args, report)
        elif not args.quiet:
            print(f"failed: {in_shell(printable(reason, 1000))}", file=sys.stderr)
    if error is not None:
        raise error
    return 0


def each(paths: Sequence[str], work: Callable[[str], Any], word: str) -> tuple[list[tuple[str, Any]], SdsError | None]:
    """What ``work`` finds of every file, its error where it fails, and what the command then fails with: "2 of 3 files
    ``word``, the first: …"."""
    rows: list[tuple[str, Any]] = []
    for path in paths:
        try:
            rows.append((path, work(path)))
        except (InputRefused, RunFailed) as reason:
            rows.append((path, reason))
    failed = [found for _, found in rows if isinstance(found, SdsError)]
    if not failed:
        return rows, None
    return rows, failed[0].within(f"{len(failed)} of {len(paths)} files {word}, the first")


def _target(path: str, folder: str, suffix: str | None) -> str:
    name = os.path.basename(path)
    if suffix is not None:
        return os.path.join(folder, os.path.splitext(name)[0] + suffix)
    from ..formats import is_named

    return os.path.join(folder, name if is_named(name) else f"{name}.safetensors")
