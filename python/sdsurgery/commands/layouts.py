"""``sdsurgery layouts``"""

from __future__ import annotations

import argparse

from .common import plain, print_json, print_lines

HELP = "the families of checkpoints that are recognised"


def arguments(parser: argparse.ArgumentParser) -> None:
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from ..layouts import all_layouts

    rows = [
        {"name": layout.name, "title": layout.title, "architecture": layout.architecture} for layout in all_layouts()
    ]
    if args.json:
        return print_json({"layouts": rows})
    return print_lines(f"{row['name']:<18} {row['title']}" for row in rows)
