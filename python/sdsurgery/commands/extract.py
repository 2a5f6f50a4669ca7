"""``sdsurgery extract``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import writing, written

HELP = "write one component to a file of its own"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    add = parser.add_argument
    add("input", metavar="FILE")
    add("--component", required=True, metavar="NAME", help="vae, unet, text_encoder, …")
    add("--strip-prefix", action="store_true", help="leave out the prefix of the component's names")


def run(args: argparse.Namespace) -> int:
    from ..api import extract

    strip = args.strip_prefix
    return written(args, lambda **settings: extract(args.input, args.component, strip_prefix=strip, **settings))
