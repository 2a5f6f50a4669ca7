"""``sdsurgery cast``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import batch
from .common import writing

HELP = "write a checkpoint in another dtype"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    batch.inputs(parser)


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import cast

    return batch.run(args, cast)
