"""``sdsurgery convert``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError, printable
from ..settings import WRITING
from .common import chosen, error_dict, print_json, show, writing, written
from .spelling import in_shell

HELP = "write checkpoints in another format: .ckpt to .safetensors and back"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("inputs", nargs="+", metavar="FILE")
    parser.add_argument("--out-dir", metavar="FOLDER", help="convert all files into a folder, under their own names")
    parser.add_argument("--to", default="safetensors", metavar="FORMAT", help="with --out-dir: safetensors or ckpt")


def run(args: argparse.Namespace) -> int:
    from ..api import convert

    if args.out_dir is not None:
        return _many(args)
    if len(args.inputs) > 1:
        raise UsageError("several files need --out-dir FOLDER in place of -o", code="conflict")
    return written(args, lambda **given: convert(args.inputs[0], **given))


def _many(args: argparse.Namespace) -> int:
    from ..api import convert_all
    from ..progress import display

    if args.out is not None:
        raise UsageError("--out-dir names the files itself; it can't be combined with -o", code="conflict")
    with display("convert", quiet=args.quiet) as progress:
        done = convert_all(args.inputs, out_dir=args.out_dir, to=args.to, progress=progress, **chosen(args, WRITING))
    failed = [item.error for item in done if item.error is not None]
    error = failed[0].within(f"{len(failed)} of {len(done)} files were not converted, the first") if failed else None
    if args.json:
        print_json({"files": [_row(item) for item in done]}, error)
    for item in done:
        if item.report is not None:
            show(args, item.report)
        elif not args.quiet:
            print(f"failed: {in_shell(printable(item.error, 1000))}", file=sys.stderr)
    if error is not None:
        raise error
    return 0


def _row(item: Any) -> dict[str, Any]:
    failed = None if item.error is None else error_dict(item.error)
    return {
        "path": item.path,
        "output": item.out,
        "report": item.report and item.report.to_dict(),
        "error": failed,
    }
