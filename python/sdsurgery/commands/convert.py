"""``sdsurgery convert``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import batch
from .common import writing

HELP = "write checkpoints in another format: .ckpt to .safetensors and back"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    batch.inputs(parser)
    parser.add_argument("--to", default="safetensors", metavar="FORMAT", help="with --out-dir: safetensors or ckpt")


def run(args: argparse.Namespace) -> int:
    from ..api import convert
    from ..surgery.convert import suffix_of

    return batch.run(args, convert, None if args.out_dir is None else suffix_of(args.to))
