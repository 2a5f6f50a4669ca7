"""``sdsurgery merge``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError, printable
from .common import numbers, words, writing, written

if TYPE_CHECKING:
    from ..methods.registry import Method

HELP = "merge checkpoints into one"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
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
    _parameters(parser, _method_in(argv))


def run(args: argparse.Namespace) -> int:
    from ..api import merge, sweep
    from ..methods.registry import Param, get

    known = get(args.method).params
    values = {name: getattr(args, f"param_{name}") for name in known}
    params = {name: value for name, value in values.items() if value is not None}
    options = {name: getattr(args, name) for name in ("add_missing", "use_ema", "blocks", "rules")}
    if any(isinstance(known[name], Param) and len(value) > 1 for name, value in params.items()):
        return written(
            args, lambda **settings: sweep(args.method, args.inputs, parameters=params, **options, **settings)
        )
    numbers = {name: value[0] if isinstance(known[name], Param) else value for name, value in params.items()}
    return written(args, lambda **settings: merge(args.method, args.inputs, **options, **settings, **numbers))


def _method_in(argv: Sequence[str]) -> Method | None:
    """The method that the command line names; what else is in it depends on that. None when it names none."""
    from ..methods.registry import get, registered

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--method")
    try:
        name = parser.parse_known_args(argv)[0].method
    except argparse.ArgumentError:  # --method without a name, which the command's own parser says
        return None
    if name is not None:
        return get(name)
    flags = {_flag(param) for method in registered().values() for param in method.params}
    for word in argv:
        if word.partition("=")[0] in flags:  # which would be called unknown
            raise UsageError(f"{word} needs --method, one of {', '.join(registered())}")
    return None


def _parameters(parser: argparse.ArgumentParser, method: Method | None) -> None:
    """The flags of the method's parameters; without a method, a word about those of each."""
    from ..methods.registry import PerInput, registered

    if method is None:
        rows = [f"{item.name}: {_flags(item)}" for item in registered().values() if item.params]
        parser.description = f"{HELP}. Parameters of the methods: {'; '.join(rows)}.".replace("%", "%%")
        return
    parser.prog += f" --method {method.name}"  # where --help shows its flags
    group = parser.add_argument_group(f"parameters of {method.name}", method.summary.replace("%", "%%"))
    for name, param in method.params.items():
        kind, metavar = (numbers, "NUMBERS") if isinstance(param, PerInput) else (_values, "NUMBER")
        default = "" if param.default is None else f" (default {param.default:g})"
        text = (param.help + default).replace("%", "%%")
        group.add_argument(_flag(name), dest=f"param_{name}", type=kind, metavar=metavar, help=text)


def _values(text: str) -> list[float]:
    """An argument type: a number, or several for a sweep."""
    from ..surgery.sweep import values

    try:
        return values(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is not a number like 0.5, nor a list like 0.1,0.2 or 0.1:0.5:0.1"
        ) from None


def _flags(method: Method) -> str:
    return ", ".join(f"{_flag(name)} ({param.help})" for name, param in method.params.items())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
