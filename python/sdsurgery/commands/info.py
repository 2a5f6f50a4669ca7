"""``sdsurgery info``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import plain, print_json, print_lines

HELP = "show version, CPU targets and backends"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from .. import console, info

    found = info.collect()
    return print_json(found) if args.json else print_lines(console.info_lines(found))
