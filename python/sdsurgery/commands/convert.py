"""``sdsurgery convert``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import batch
from .common import one_of, writing

HELP = "write checkpoints in another format: .ckpt to .safetensors and back"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    batch.inputs(parser)
    add = parser.add_argument
    add("--names", type=one_of("--names", ("kohya", "diffusers")), metavar="WORD",
        help="the dialect of an adapter: kohya, diffusers")  # fmt: skip
    add("--to", default="safetensors", metavar="FORMAT", help="with --out-dir: safetensors or ckpt")


def run(args: argparse.Namespace) -> int:
    from functools import partial

    from ..api.checkpoints import convert
    from ..surgery.convert import suffix_of

    work = convert if args.names is None else partial(convert, names=args.names)
    return batch.run(args, work, None if args.out_dir is None else suffix_of(args.to))
