"""``sdsurgery fix-clip``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import writing, written

HELP = "repair the text encoders' position_ids"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("input", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import fix_clip

    return written(args, lambda **settings: fix_clip(args.input, **settings))
