"""``sdsurgery bake``"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UsageError, printable
from .common import Arguments, one_of, writing, written

if TYPE_CHECKING:
    from ..adapters.lora import Lora

HELP = "bake adapters (LoRA, LyCORIS, …) into a checkpoint"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    writing(parser)
    parser.add_argument("input", metavar="FILE")
    parser.add_argument("more", nargs="*", metavar="ADAPTER[=STRENGTH]", help="adapters, as --lora names them")
    adapters(parser)
    parser.add_argument("--strict", action="store_true", help="refuse an adapter with modules that match nothing")
    parser.add_argument("--check", action="store_true", help="compute the changed tensors of the output again")


def adapters(into: argparse.ArgumentParser | Arguments) -> None:
    """The options that name adapters."""
    add = into.add_argument
    of_all = "an adapter, how much of it is applied (default 1), and how much to the text encoders; several in order"
    add("--lora", dest="loras", action="append", default=[],
        metavar="FILE[=STRENGTH[,te=STRENGTH]]", help=of_all)  # fmt: skip
    block_weights(into)


def block_weights(into: argparse.ArgumentParser | Arguments) -> None:
    """The options that weight adapters block by block."""
    add = into.add_argument
    of_blocks = (
        "weights by merge block of the N-th adapter, or of all: a list of 12, 17, 20 or 26 numbers, a preset such as "
        "MIDD, or IN04=0.3,OUT05-OUT08=0"
    )
    add("--lora-blocks", action="append", default=[], metavar="[N:]WEIGHTS", help=of_blocks)
    add("--lora-others", type=one_of("--lora-others", ("0", "1")), metavar="0|1",
        help="the weight of blocks that such a list doesn't name")  # fmt: skip


def given(args: argparse.Namespace) -> list[list[Lora]]:
    """What ``adapters`` has found: each adapter at one strength, or at several. UsageError for numbers that are none,
    or weights of an adapter that isn't there."""
    from ..adapters.lora import parse
    from ..surgery.sweep import values

    return weighted(args, [parse(text, values) for text in args.loras])


def weighted(args: argparse.Namespace, found: list[list[Lora]]) -> list[list[Lora]]:
    """The adapters with what ``block_weights`` has found. UsageError for weights of an adapter that isn't there, and
    for what would have no effect."""
    if args.lora_blocks and not found:
        raise UsageError("--lora-blocks goes with --lora", code="conflict")
    if args.lora_others is not None and not args.lora_blocks:
        raise UsageError("--lora-others goes with --lora-blocks", code="conflict")
    others = None if args.lora_others is None else float(args.lora_others)
    for text in args.lora_blocks:
        number, colon, weights = text.partition(":")
        if colon and not (number.isdecimal() and 1 <= int(number) <= len(found)):
            raise UsageError(
                f"--lora-blocks {printable(text)}: there is no adapter {printable(number)}; {len(found)} are given",
                code="bad_value",
            )
        chosen = [int(number) - 1] if colon else range(len(found))
        for at in chosen:
            found[at] = [replace(each, blocks=weights if colon else text, others=others) for each in found[at]]
    return found


def run(args: argparse.Namespace) -> int:
    from ..api.adapters import bake
    from ..api.merging import sweep

    args.loras = [*args.more, *args.loras]
    if not args.loras:
        raise UsageError("no adapter given: bake FILE ADAPTER=STRENGTH, or loras=FILE", code="wrong_inputs")
    loras = given(args)
    if all(len(each) == 1 for each in loras):
        one = [each[0] for each in loras]
        return written(args, lambda **settings: bake(args.input, one, strict=args.strict, check=args.check, **settings))
    if args.strict or args.check:
        raise UsageError("--strict and --check are for one output; give one strength", code="conflict")
    return written(args, lambda **settings: sweep("bake", [args.input], loras=loras, **settings))
