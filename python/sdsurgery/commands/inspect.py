"""``sdsurgery inspect``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..settings import READING
from .common import chosen, options, plain, print_json, print_lines

HELP = "show what a file is: family, components, dtypes, EMA, metadata, recipe"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("input", metavar="FILE")
    text = "of an adapter: a model, to say how strong each of its layers is beside it"
    parser.add_argument("--base", metavar="FILE", help=text)
    options(parser, READING)


def run(args: argparse.Namespace) -> int:
    from ..api import inspect
    from ..report import console

    found = inspect(args.input, base=args.base, **chosen(args, READING))
    return print_json(found.to_dict()) if args.json else print_lines(console.inspection_lines(found, args.verbose))
