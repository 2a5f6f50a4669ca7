"""``sdsurgery scan``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputRefused, number_of, printable
from .common import plain, print_json, print_lines

if TYPE_CHECKING:
    from ..formats.scan import ScanReport

HELP = "list what torch.load would run from the pickles in files and folders"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("inputs", nargs="+", metavar="PATH", help="files, or folders with everything below them")
    parser.add_argument("--sarif", action="store_true", help="print a SARIF log on stdout, for code scanning")
    parser.add_argument(
        "--allow-unjudged", action="store_true",
        help="exit with 0 where files call what is not known to be harmless, but nothing known to be dangerous",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from ..formats.scan import scan

    report = scan(*args.inputs)
    error = _error(report, allow_unjudged=args.allow_unjudged)
    if args.sarif:
        from .. import __version__
        from ..formats.scan_sarif import as_sarif

        print_json(as_sarif(report, __version__), foreign=True)
    elif args.json:
        print_json(report.as_json(), error)
    elif not args.quiet:
        print_lines(report.lines(verbose=args.verbose))
    if error is not None:
        raise error
    return 0


def _error(report: ScanReport, *, allow_unjudged: bool) -> InputRefused | None:
    """What the command fails with: the worst verdict of any file."""
    if report.verdict == "clean" or (report.verdict == "unjudged" and allow_unjudged):
        return None
    bad = [file.path for file in report.files if file.verdict == report.verdict]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    where = f"{printable(bad[0], 1000)}{more} (of {number_of(len(report.files), 'file')} looked at)"
    if report.verdict == "suspicious":
        return InputRefused(f"suspicious: {where}", code="suspicious", path=bad[0])
    return InputRefused(f"cannot be judged: {where}", code="unjudged", path=bad[0])
