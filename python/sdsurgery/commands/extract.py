"""``sdsurgery extract``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import writing, written

HELP = "write one component, or chosen tensors, to a file of their own"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    add = parser.add_argument
    add("input", metavar="FILE")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--component", metavar="NAME", help="vae, unet, text_encoder, controlnet, …")
    which.add_argument("--prefix", metavar="TEXT", help="tensors whose names begin with it")
    which.add_argument("--keys", metavar="REGEX", help="tensors whose names match")
    add("--strip-prefix", action="store_true", help="leave out what the names begin with")


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import extract

    options = {name: getattr(args, name) for name in ("component", "prefix", "keys", "strip_prefix")}
    return written(args, lambda **settings: extract(args.input, **options, **settings))
