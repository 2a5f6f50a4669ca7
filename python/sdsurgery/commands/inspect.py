"""``sdsurgery inspect``"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import Failure, UsageError, printable
from ..settings import READING, SHOWING
from . import batch
from .common import chosen, error_dict, options, plain, print_json, print_lines
from .spelling import in_shell

if TYPE_CHECKING:
    from ..surgery.inspect import Inspection

_SETTINGS = (*READING, *SHOWING)
HELP = "show what files are: family, components, dtypes, EMA, metadata, recipe, ancestry"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    add = parser.add_argument
    add("inputs", metavar="FILE", nargs="*", help="one, or several for a table")
    add(
        "--base",
        metavar="FILE",
        help="for an adapter: its base model, to show how strong each layer is beside the weight",
    )
    add("--keys", metavar="REGEX", nargs="?", const="", help="list the tensors whose names match, or all of them")
    add("--hashes", action="store_true", help="read the whole file, and compute every hash that sites list")
    options(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    from ..report.progress import display

    inputs = _files(args)
    with display("inspect", quiet=args.quiet) as progress:
        if len(inputs) > 1:
            from ..report import html

            where = html.check(args.html, overwrite=args.overwrite) if args.html is not None else None
            args.html = None
            rows, failed = batch.each(inputs, lambda path: _inspect(args, path, progress), "cannot be read")
            if where is not None:
                html.write([each for _, each in rows], where, overwrite=args.overwrite)
            return _many(args, rows, failed)
        found = _inspect(args, inputs[0], progress)
    if args.json:
        return print_json(_as_json(args, found))
    return 0 if args.quiet else print_lines(_lines(args, found))


def _files(args: argparse.Namespace) -> list[str]:
    """The files. What follows ``--keys`` is one too where no expression could be meant."""
    files = list(args.inputs)
    if args.keys and os.path.exists(args.keys):
        files.insert(0, args.keys)
        args.keys = ""
    if not files:
        raise UsageError("no file given (see sdsurgery inspect --help)", code="wrong_inputs")
    if args.base is not None and len(files) > 1:
        raise UsageError("--base goes with one adapter", code="conflict")
    return files


def _inspect(args: argparse.Namespace, path: str, progress: Any) -> Inspection:
    from ..api.analysis import inspect

    own = {"base": args.base, "keys": args.keys, "hashes": args.hashes, "progress": progress}
    return inspect(path, **own, **chosen(args, _SETTINGS))


def _as_json(args: argparse.Namespace, found: Inspection) -> dict[str, Any]:
    """Without ``--keys`` there is no list of tensors."""
    shown = found.to_dict()
    if args.keys is None:
        del shown["tensors"]
    return shown


def _lines(args: argparse.Namespace, found: Inspection) -> Iterator[str]:
    from ..report import inspection

    if args.keys is not None:
        yield from inspection.tensor_lines(found)
    else:
        yield from inspection.lines(found, args.verbose)


def _many(args: argparse.Namespace, rows: Sequence[tuple[str, Any]], failed: Failure | None) -> int:
    from ..report import inspection

    found = [each for _, each in rows if not isinstance(each, Failure)]
    if args.json:
        print_json({"files": [
            {"path": path, "inspection": None if isinstance(each, Failure) else _as_json(args, each),
             "error": error_dict(each) if isinstance(each, Failure) else None}
            for path, each in rows
        ]}, failed)  # fmt: skip
    elif not args.quiet:
        if args.keys is not None:
            for each in found:
                print_lines([f"{printable(each.path)}:", *inspection.tensor_lines(each)])
        else:
            print_lines(inspection.overview(found))
        for _, each in rows:
            if isinstance(each, Failure):
                print(f"failed: {in_shell(printable(each, 1000))}", file=sys.stderr)
    if failed is not None:
        raise failed
    return 0
