"""``sdsurgery map``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import printable
from ..settings import COMPUTING, READING, SHOWING
from .common import chosen, options, plain, print_json, print_lines
from .spelling import in_shell

if TYPE_CHECKING:
    from ..surgery.relations import Matrix, Relations

HELP = "how far several models are from each other, and what they share"

_SETTINGS = ("fix_names", *COMPUTING, *READING, *SHOWING)


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", help="two or more models of one family")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw distances and dendrogram (.png, .svg, .pdf; needs matplotlib)"
    )
    options(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    from ..api.analysis import relations
    from ..report import pictures
    from ..report.progress import display

    if args.plot is not None:
        pictures.check(args.plot, overwrite=args.overwrite)
    with display("map", quiet=args.quiet) as progress:
        found = relations(args.files, progress=progress, **chosen(args, _SETTINGS))
    if args.plot is not None:
        found.plot(args.plot, overwrite=args.overwrite)
    if args.json:
        print_json(found.to_dict())
    elif not args.quiet:
        print_lines(lines(found, verbose=args.verbose))
    return 0


def lines(found: Relations, *, verbose: bool = False) -> Iterator[str]:
    """The distances as a table, those of components (and, ``verbose``, of blocks), what is identical, the tree."""
    from ..report.formula import names_of

    short = dict(zip(found.files, names_of(found.files), strict=True))
    for number, path in enumerate(found.files, 1):
        yield f"{number}  {printable(path)}"
    yield f"family {found.family}, {found.tensors} weights; distances in % of the norm"
    yield from _table("all", found.distances)
    parts = {**found.components, **(found.blocks if verbose else {})}
    for name, matrix in parts.items():
        yield from _table(name, matrix)
    for group in found.identical:
        yield f"the same {group['component']}: {', '.join(short[path] for path in group['files'])}"
    yield f"root: {short[found.root]}"
    for link in found.tree:
        far = "-" if link["distance"] is None else f"{100 * link['distance']:.3g} %"
        rank = f", by an adapter of rank {link['rank']}" if link["low"] else ""
        yield f"  {short[link['from']]} → {short[link['to']]}  {far}{rank}"
    for number, cluster in enumerate(found.clusters, 1):
        yield f"cluster {number}: {', '.join(short[path] for path in cluster)}"
    for note in found.notes:
        yield f"note: {in_shell(printable(note, 400))}"


def _table(title: str, matrix: Matrix) -> Iterator[str]:
    rows = [[title, *(str(k + 1) for k in range(len(matrix)))]]
    rows += [[str(k + 1), *("-" if x is None else f"{100 * x:.3g}" for x in row)] for k, row in enumerate(matrix)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
