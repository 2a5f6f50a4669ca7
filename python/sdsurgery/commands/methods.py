"""``sdsurgery methods``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .common import plain, print_json, print_lines

HELP = "list the merge methods and their formulas"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from ..methods.parameters import described
    from ..methods.registry import registered, unusable
    from ..report import console
    from ..report.progress import say
    from ..report.warnings import in_json, warned

    rows = [
        {
            "name": method.name,
            "inputs": list(method.inputs),
            "any_number_of_inputs": method.variadic,
            "base": method.base or None,
            "formula": method.summary,
            "parameters": {
                name: {"default": param.default, "help": param.help, "text": described(param)}
                for name, param in method.params.items()
            },
        }
        for method in registered(others=True).values()
    ]
    warnings = [warned("unusable_package", what=line) for line in unusable()]
    if args.json:
        return print_json({"methods": rows, "warnings": in_json(warnings)["warnings"]})
    code = print_lines(console.method_lines(rows))
    if warnings and not args.quiet:
        say(warnings)
    return code
