"""``sdsurgery demo``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import plain, print_json, print_lines

HELP = "make three small SD 1.5 checkpoints, merge them, check the result"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from .. import console, demo

    found = demo.run(quiet=args.quiet or args.json)
    if args.json:
        return print_json(found.to_dict())
    return 0 if args.quiet else print_lines(console.report_lines(found, verbose=args.verbose))
