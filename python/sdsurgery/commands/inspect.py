"""``sdsurgery inspect``"""

from __future__ import annotations

import argparse

from .common import opening, plain, print_json, print_lines, reading

HELP = "what a file is: family, components, dtypes, EMA, metadata, recipe"


def arguments(parser: argparse.ArgumentParser) -> None:
    plain(parser)
    parser.add_argument("input", metavar="FILE")
    reading(parser)


def run(args: argparse.Namespace) -> int:
    from .. import console
    from ..surgery.inspect import inspect

    found = inspect(args.input, **opening(args))
    return print_json(found.to_dict()) if args.json else print_lines(console.inspection_lines(found, args.verbose))
