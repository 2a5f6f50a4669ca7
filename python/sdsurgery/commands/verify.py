"""``sdsurgery verify``"""

from __future__ import annotations

import argparse

from .common import opening, plain, print_json, print_lines, reading, threads

HELP = "check structure, non-finite values and hashes"


def arguments(parser: argparse.ArgumentParser) -> None:
    plain(parser)
    parser.add_argument("input", metavar="FILE")
    threads(parser)
    reading(parser)
    parser.add_argument("--no-hash", dest="hash", action="store_false", help="skip the hashes")


def run(args: argparse.Namespace) -> int:
    from .. import console
    from ..errors import VerificationDiffers
    from ..surgery.verify import verify

    with console.progress("verify", quiet=args.quiet) as progress:
        found = verify(args.input, threads=args.threads, hash=args.hash, progress=progress, **opening(args))
    error = VerificationDiffers(f"{args.input}: {'; '.join(found.differs)}", path=args.input) if found.differs else None
    if args.json:
        print_json(found.to_dict(), error)
    elif not args.quiet:
        print_lines(console.verification_lines(found))
    if error is not None:
        raise error
    return 0
