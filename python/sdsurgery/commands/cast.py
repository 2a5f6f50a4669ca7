"""``sdsurgery cast``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import writing, written

HELP = "write a checkpoint in another dtype"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("input", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    from ..api import cast

    return written(args, lambda **settings: cast(args.input, **settings))
