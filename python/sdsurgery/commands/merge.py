"""``sdsurgery merge``"""

from __future__ import annotations

import argparse
from typing import Any

from .common import numbers, words, writing, written

HELP = "merge checkpoints into one"


def arguments(parser: argparse.ArgumentParser) -> None:
    writing(parser)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="A B [C …], in the method's order")
    parser.add_argument("--method", required=True, help="see `sdsurgery methods`")
    parser.add_argument("--add-missing", action="store_true", help="add tensors that only B (or C) has")
    parser.add_argument("--use-ema", action="extend", type=words, default=[], metavar="A,B",
                        help="merge the EMA weights of these inputs")  # fmt: skip
    add = parser.add_argument
    add("--blocks", action="append", default=[], metavar="[RATIO:]WEIGHTS", help="ratios by merge block: "
        "IN04=0.3,OUT05-OUT08=0.8,BASE=0.5, a preset, or a list of numbers")  # fmt: skip
    add("--rules", action="append", default=[], metavar="[RATIO:]FILE", help="ratios by regular expression over names: "
        "lines REGEX = NUMBER, the last that matches wins")  # fmt: skip
    _method_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..surgery.merge import merge

    params = {
        name.removeprefix("param_"): value
        for name, value in vars(args).items()
        if name.startswith("param_") and value is not None
    }
    options = {name: getattr(args, name) for name in ("add_missing", "use_ema", "blocks", "rules")}
    return written(args, lambda **settings: merge(args.method, args.inputs, **options, **settings, **params))


def _method_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every parameter of every registered method."""
    from ..methods.registry import PerInput, registered

    params: dict[str, list[tuple[str, Any]]] = {}
    for method in registered("merge").values():
        for name, param in method.params.items():
            params.setdefault(name, []).append((method.name, param))
    for name, uses in params.items():
        text = "; ".join(
            f"{method}: {param.help}" + ("" if param.default is None else f" (default {param.default:g})")
            for method, param in uses
        )
        listed = isinstance(uses[0][1], PerInput)
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=f"param_{name}", type=numbers if listed else float, metavar="NUMBERS"
            if listed else "NUMBER", help=text.replace("%", "%%"),
        )  # fmt: skip
