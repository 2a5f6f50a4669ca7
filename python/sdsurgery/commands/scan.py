"""``sdsurgery scan``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import InputRefused, printable
from .common import plain, print_json, print_lines

HELP = "list what torch.load would run from the pickles in files and folders"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("inputs", nargs="+", metavar="PATH", help="files, or folders with everything below them")


def run(args: argparse.Namespace) -> int:
    from ..formats.scan import scan

    report = scan(*args.inputs)
    bad = [file.path for file in report.files if file.suspicious]
    error = None
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        text = f"suspicious: {printable(bad[0], 1000)}{more} (of {len(report.files)} files looked at)"
        error = InputRefused(text, code="suspicious", path=bad[0])
    if args.json:
        print_json(report.as_json(), error)
    elif not args.quiet:
        print_lines(report.lines(verbose=args.verbose))
    if error is not None:
        raise error
    return 0
