"""``sdsurgery verify``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..settings import OPTIONS, READING
from .common import chosen, options, plain, print_json, print_lines

_SETTINGS = ("threads", *READING)

HELP = "check structure, non-finite values and hashes"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("input", metavar="FILE")
    options(parser, _SETTINGS)
    parser.add_argument(OPTIONS["hash"].off, dest="hash", action="store_false", help="don't compute hashes")


def run(args: argparse.Namespace) -> int:
    from ..api import verify
    from ..errors import VerificationDiffers
    from ..report import console
    from ..report.progress import display

    with display("verify", quiet=args.quiet) as progress:
        found = verify(args.input, progress=progress, hash=args.hash, **chosen(args, _SETTINGS))
    error = VerificationDiffers(f"{args.input}: {'; '.join(found.differs)}", path=args.input) if found.differs else None
    if args.json:
        print_json(found.to_dict(), error)
    elif not args.quiet:
        print_lines(console.verification_lines(found))
    if error is not None:
        raise error
    return 0
