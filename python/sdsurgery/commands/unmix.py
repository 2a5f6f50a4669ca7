"""``sdsurgery unmix``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import printable
from ..report.fitting import table, width
from ..settings import COMPUTING, READING, SHOWING
from .common import chosen, options, plain, print_json, print_lines
from .spelling import in_shell

if TYPE_CHECKING:
    from ..surgery.unmix import Unmixing

HELP = "find out what a model was mixed from, and in what ratio"

_SETTINGS = ("fix_names", *COMPUTING, *READING, *SHOWING)


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    add = parser.add_argument
    add("mix", metavar="MIX", help="the model")
    add("candidates", nargs="*", metavar="CANDIDATE", help="what it may be made of")
    add("--in", dest="folder", metavar="FOLDER", help="all files of its family in a folder are candidates")
    add("--prove", action="store_true", help="make the merge again, in a temporary file, and compare")
    options(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    from ..api.analysis import unmix
    from ..report.progress import display

    with display("unmix", quiet=args.quiet) as progress:
        found = unmix(
            args.mix, args.candidates, folder=args.folder, prove=args.prove, progress=progress,
            **chosen(args, _SETTINGS),
        )  # fmt: skip
    if args.json:
        print_json(found.to_dict())
    elif not args.quiet:
        print_lines(lines(found, verbose=args.verbose))
    return 0


def lines(found: Unmixing, *, verbose: bool = False) -> Iterator[str]:
    """What was found as text: the formula, the ratios by block, notes, the command."""
    from ..report.command import runnable
    from ..report.warnings import line
    from ..surgery.candidates import short_names
    from ..surgery.mixture import BEYOND

    yield f"{printable(found.path)} (family {found.family}, {found.tensors} weights)"
    yield f"{'=' if found.complete else '≈'} {found.formula}"
    short = dict(zip(found.candidates, short_names(found.candidates), strict=True))
    parents = list(found.ratios)
    head = ("block", *(short[path] for path in parents), "unexplained", "× rounding")
    most = {path: "≤ " if path in found.upper_bounds else "" for path in parents}
    whole = (most[path] + _ratio(found.ratios[path], found.errors[path]) for path in parents)
    rows: list[tuple[str, ...]] = [("all", *whole, f"{found.unexplained:.3%}", "")]
    for block, ratios in found.blocks.items():
        left = found.block_residuals[block]
        above = most if left["over_rounding"] > BEYOND else dict.fromkeys(parents, "")
        cells = (above[path] + _ratio(ratios[path], found.block_errors[block][path]) for path in parents)
        rows.append((block, *cells, f"{left['unexplained']:.3%}", f"{left['over_rounding']:.2f}"))
    rows += [(f"{part} of {short[path]}", *("–" for _ in parents), "", "") for part, path in found.parts.items()]
    yield from table(head, rows, width(sys.stdout))
    if found.left_out:
        yield f"explain nothing: {', '.join(short[path] for path in found.left_out)}"
    if verbose or found.condition > 1e4:
        yield f"condition number of the candidates: {found.condition:.3g}"
    if verbose:
        for layer in found.residual_ranks:
            beside = f"{layer['strength']:.2%} of the layer's norm"
            yield f"residual of {printable(layer['name'])}: rank {layer['rank']} of {layer['full']}, {beside}"
    for note in found.notes:
        yield line(in_shell(printable(note, 10_000)))
    if found.proof is not None:
        tools = found.proof["tools"]
        yield f"proof: {found.proof['text']}" + (f"; the arithmetic of {', '.join(tools)}" if tools else "")
    yield f"{'made by' if found.complete else 'the nearest merge'}: {runnable(found.command)}"


def _ratio(ratio: float, error: float) -> str:
    text = f"{round(ratio, 5) + 0.0:.5f}"  # never −0.00000
    return f"{text} ± {error:.1g}" if error else text
