"""``sdsurgery layouts``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UsageError
from .common import plain, print_json, print_lines

HELP = "list the known families of checkpoints, their tensors and merge blocks"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--keys", metavar="FAMILY", help="key, shape, dtype class, component and block of every tensor")
    which.add_argument("--blocks", metavar="FAMILY", help="the family's merge blocks and what is in them")
    which.add_argument("--presets", metavar="FAMILY", nargs="?", const="sd1",
                       help="the presets of block weights, as bars (sd1 unless another family is named)")  # fmt: skip
    parser.add_argument("--ema", action="store_true", help="with --keys: the EMA twin too")


def run(args: argparse.Namespace) -> int:
    if args.ema and not args.keys:
        raise UsageError("--ema belongs to --keys FAMILY", code="conflict")
    if args.keys is not None:
        return _keys(args)
    if args.presets is not None:
        return _presets(args)
    return _blocks(args) if args.blocks is not None else _families(args)


def _families(args: argparse.Namespace) -> int:
    from ..layouts import all_layouts

    layouts = all_layouts()
    if args.json:
        rows = [{"name": item.name, "title": item.title, "architecture": item.architecture} for item in layouts]
        return print_json({"layouts": rows})
    width = max(len(item.name) for item in layouts)
    return print_lines(f"{item.name:<{width}}  {item.title}" for item in layouts)


def _keys(args: argparse.Namespace) -> int:
    from ..layouts import get, keys_table

    lines = list(keys_table(args.keys, ema=args.ema))
    if not args.json:
        return print_lines(lines)
    layout = get(args.keys)
    return print_json({"layout": layout.name, "tensors": [row._asdict() for row in layout.tensors(ema=args.ema)]})


def _blocks(args: argparse.Namespace) -> int:
    from ..layouts import get
    from ..layouts.blocks import block_rows, blocks_table

    layout = get(args.blocks)
    if not args.json:
        return print_lines(blocks_table(layout))
    return print_json({"layout": layout.name, "blocks": [row._asdict() for row in block_rows(layout)]})


def _presets(args: argparse.Namespace) -> int:
    from ..layouts import get
    from ..layouts.blocks import presets_of
    from ..report.bars import bars

    layout = get(args.presets)
    found = presets_of(layout)
    if args.json:
        return print_json({"layout": layout.name, "presets": found})
    width = max(map(len, found))
    return print_lines(f"{name:<{width}}  {bars(weights)}" for name, weights in found.items())
