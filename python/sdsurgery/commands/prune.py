"""``sdsurgery prune``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import batch
from .common import words, writing

HELP = "drop what isn't needed: training leftovers, EMA, components"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    add = parser.add_argument
    batch.inputs(parser)
    add("--preset", default="full", metavar="WORD", help="full (default), no-ema, ema-only or inference")
    add("--drop", action="extend", type=words, default=[], metavar="NAMES", help="components, as ema,buffers,vae")
    add(
        "--keep-keys",
        action="append",
        metavar="REGEX",
        help="keep tensors whose name matches, even if another option drops them",
    )
    add("--drop-keys", action="append", metavar="REGEX", help="drop tensors whose name matches")
    add("--strict", action="store_true", help="also drop tensors of unknown components")


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import prune

    options = {name: getattr(args, name) for name in ("preset", "drop", "keep_keys", "drop_keys", "strict")}
    return batch.run(args, lambda path, **settings: prune(path, **options, **settings))
