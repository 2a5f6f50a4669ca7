"""``sdsurgery replace``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UsageError
from .common import writing, written

HELP = "put other files' components in: bake a VAE"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    add = parser.add_argument
    add("input", metavar="FILE")
    add("--component", action="append", required=True, metavar="NAME", help="vae, unet, …; once for every --with")
    add("--with", dest="donors", action="append", required=True, metavar="FILE", help="the file it comes from")
    add("--allow-missing", action="store_true", help="accept a donor with absent or extra tensors")


def run(args: argparse.Namespace) -> int:
    from ..api.checkpoints import replace

    if len(args.component) != len(args.donors) or len(set(args.component)) != len(args.component):
        raise UsageError(
            "every --component needs its own --with FILE, and each component can be given once", code="wrong_inputs"
        )
    donors = dict(zip(args.component, args.donors, strict=True))
    missing = args.allow_missing
    return written(args, lambda **settings: replace(args.input, donors, allow_missing=missing, **settings))
