"""``sdsurgery ema``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import batch
from .common import writing

HELP = "put the EMA weights in the U-Net's place"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    add = parser.add_argument
    batch.inputs(parser)
    add("--keep-counters", action="store_true", help="keep model_ema.decay and model_ema.num_updates")
    add("--to-ema", action="store_true", help="the reverse: add EMA twins made from the weights")


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import ema

    options = {"keep_counters": args.keep_counters, "to_ema": args.to_ema}
    return batch.run(args, lambda path, **settings: ema(path, **options, **settings))
