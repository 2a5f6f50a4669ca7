"""``sdsurgery merge-lora``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .bake import block_weights, weighted
from .common import one_of, writing, written
from .extract_lora import ranks

HELP = "several adapters into one, by their effects"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("inputs", nargs="+", metavar="FILE[=STRENGTH[,te=STRENGTH]]", help="adapters of one family")
    ranks(parser)
    parser.add_argument("--exact", action="store_true", help="factors side by side, the ranks add up (the default)")
    block_weights(parser)
    dialect(parser)


def dialect(parser: argparse.ArgumentParser) -> None:
    """The option that chooses the names that are written."""
    parser.add_argument("--names", type=one_of("--names", ("kohya", "diffusers")), default="kohya", metavar="WORD",
                        help="the dialect that is written: kohya, diffusers")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from ..adapters.lora import parse
    from ..api.adapters import merge_lora

    loras = [each for (each,) in weighted(args, [parse(text) for text in args.inputs])]
    own = {name: getattr(args, name) for name in ("rank", "energy", "sigma_ratio", "exact", "names")}
    return written(args, lambda **settings: merge_lora(loras, **own, **settings))
