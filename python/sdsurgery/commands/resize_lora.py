"""``sdsurgery resize-lora``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import writing, written
from .extract_lora import ranks
from .merge_lora import dialect

HELP = "an adapter at another rank"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("input", metavar="FILE", help="an adapter of any additive kind, or DoRA")
    ranks(parser)
    dialect(parser)


def run(args: argparse.Namespace) -> int:
    from ..api.adapters import resize_lora

    own = {name: getattr(args, name) for name in ("rank", "energy", "sigma_ratio", "names")}
    return written(args, lambda **settings: resize_lora(args.input, **own, **settings))
