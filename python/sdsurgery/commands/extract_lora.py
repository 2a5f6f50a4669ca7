"""``sdsurgery extract-lora``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import one_of, writing, written

HELP = "the difference of two checkpoints as an adapter"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.set_defaults(dtype="fp16")
    add = parser.add_argument
    add("tuned", metavar="TUNED", help="the fine-tuned checkpoint")
    add("base", metavar="BASE", help="the one that it was made from")
    add("--kind", type=one_of("--kind", ("lora", "locon", "dora", "full")), default="lora", metavar="WORD",
        help="lora, locon (convolutions too), dora, full")  # fmt: skip
    ranks(parser)
    add("--conv-rank", type=int, metavar="N", help="rank of 3×3 convolutions (default: as the others)")
    add(
        "--clamp",
        type=float,
        default=0.0,
        metavar="QUANTILE",
        help="limit the factors as kohya does, for instance 0.99",
    )
    add("--no-unet", dest="unet", action="store_false", help="leave the U-Net out")
    add("--no-te", dest="te", action="store_false", help="leave the text encoders out")
    add("--names", type=one_of("--names", ("kohya", "diffusers")), default="kohya", metavar="WORD",
        help="the dialect that is written: kohya, diffusers")  # fmt: skip


def ranks(parser: argparse.ArgumentParser) -> None:
    """The options that choose ranks."""
    add = parser.add_argument
    add("--rank", type=int, metavar="N", help="the rank, or the largest where a share chooses it")
    add("--energy", type=float, metavar="SHARE", help="the smallest rank that keeps this share of each layer's norm")
    add("--sigma-ratio", type=float, metavar="SHARE", help="singular values above this share of the largest")


def run(args: argparse.Namespace) -> int:
    from ..api.adapters import extract_lora

    names = ("kind", "rank", "energy", "sigma_ratio", "conv_rank", "clamp", "unet", "te", "names")
    own = {name: getattr(args, name) for name in names}
    return written(args, lambda **settings: extract_lora(args.tuned, args.base, **own, **settings))
