"""``sdsurgery compare``"""

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
    from ..surgery.adapter_likeness import Effects
    from ..surgery.compare import Comparison
    from ..surgery.likeness import Likeness

HELP = "compare two checkpoints by component and block, or two adapters by what they change"

_DIFFERS = 4
_SETTINGS = ("fix_names", *COMPUTING, *READING, *SHOWING)
_HEAD: tuple[str, ...] = ("component", "block", "tensors", "equal", "cosine", "‖A−B‖/‖A‖", "max |A−B|")
_EFFECTS_HEAD: tuple[str, ...] = ("component", "changes", "cosine", "‖ΔA−ΔB‖/‖ΔA‖", "‖ΔB‖/‖ΔA‖")


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    add = parser.add_argument
    add("a", metavar="A", help="the file to which the distance is relative")
    add("b", metavar="B")
    add(
        "--plot",
        metavar="FILE.png",
        help="draw a heat map, blocks × kinds of layer (.png, .svg, .pdf; needs matplotlib)",
    )
    add(
        "--base",
        metavar="FILE",
        help="for two adapters: their base model, for kinds whose change depends on the weight (DoRA, …)",
    )
    options(parser, _SETTINGS)


def run(args: argparse.Namespace) -> int:
    from ..api.analysis import compare
    from ..report import pictures
    from ..report.progress import display

    if args.plot is not None:
        pictures.check(args.plot, overwrite=args.overwrite)
    with display("compare", quiet=args.quiet) as progress:
        found = compare(args.a, args.b, base=args.base, progress=progress, **chosen(args, _SETTINGS))
    if args.plot is not None:
        found.plot(args.plot, overwrite=args.overwrite)
    if args.json:
        print_json(found.to_dict())
    elif not args.quiet:
        print_lines(lines(found, verbose=args.verbose))
    return 0 if found.equal or (found.effects is not None and found.effects.equal) else _DIFFERS


def lines(found: Comparison, *, verbose: bool = False) -> Iterator[str]:
    """The comparison as text: a table by component and block, then what only one file has, then the verdict."""
    from ..report.console import some

    yield f"A {printable(found.a)} (family {found.a_family})"
    yield f"B {printable(found.b)} (family {found.b_family})"
    if found.effects is not None:
        yield from _effects(found.effects, verbose)
        odd = _odd_effects(found.effects)
    else:
        yield from _table(found)
        odd = _odd_tensors(found)
        if verbose:
            yield from _tensors(found)
    for what, names in odd:
        if names:
            yield f"{what}: {some(names, verbose)}"
    total = found.total
    if total.a_nonfinite or total.b_nonfinite:
        yield f"NaN or Inf, left out of the numbers: {total.a_nonfinite} in A, {total.b_nonfinite} in B"
    for note in found.notes:
        yield f"note: {in_shell(printable(note, 400))}"
    yield found.verdict


def _odd_tensors(found: Comparison) -> Sequence[tuple[str, list[str]]]:
    return (
        ("only in A", found.only_in_a),
        ("only in B", found.only_in_b),
        ("shape differs", [f"{n} {a} {b}" for n, (a, b) in found.shape_differs.items()]),
        ("dtype differs", [f"{n} {a} {b}" for n, (a, b) in found.dtype_differs.items()]),
    )


def _odd_effects(found: Effects) -> Sequence[tuple[str, list[str]]]:
    return (
        ("changed by A only", found.only_in_a),
        ("changed by B only", found.only_in_b),
        *((f"not compared ({reason})", [name for name, why in found.left_out.items() if why == reason])
          for reason in dict.fromkeys(found.left_out.values())),
    )  # fmt: skip


def _effects(found: Effects, verbose: bool) -> Iterator[str]:
    """What two adapters change: by component, then the modules in which they differ most, or all."""
    rows = [(name, *_of_changes(own)) for name, own in found.by_component().items()]
    yield from table(_EFFECTS_HEAD, [*rows, ("total", *_of_changes(found.total()))], width(sys.stdout), left=1, names=1)
    layers = sorted(found.layers, key=lambda layer: -(layer.likeness.relative_l2 or 0.0))
    shown = found.layers if verbose else [layer for layer in layers if layer.likeness.relative_l2 != 0][:3]
    for layer in shown:
        _, cosine, distance, _ = _of_changes(layer.likeness)
        sides = str(layer.a) if layer.a == layer.b else f"{layer.a} and {layer.b}"
        yield f"{printable(layer.name)}  cosine {cosine}  ‖ΔA−ΔB‖/‖ΔA‖ {distance}  {sides}"
    if shown and len(shown) < len(layers):
        yield f"({len(layers) - len(shown)} more changes, which differ no more than these; -v lists all)"


def _of_changes(likeness: Likeness) -> tuple[str, str, str, str]:
    a, b = likeness.a_squared**0.5, likeness.b_squared**0.5
    return str(likeness.tensors), *_numbers(likeness), f"{b / a:.4g}" if a else "-"


def _table(found: Comparison) -> Iterator[str]:
    blocks = found.by("component", "block")
    rows: list[tuple[str, ...]] = []
    for (component,), likeness in found.by("component").items():
        rows.append((component, "", *_cells(likeness)))
        own = [(block, inner) for (owner, block), inner in blocks.items() if owner == component]
        if len(own) > 1:
            rows += [("", block, *_cells(inner)) for block, inner in own]
    rows.append(("total", "", *_cells(found.total)))
    yield from table(_HEAD, rows, width(sys.stdout), left=2, names=2)


def _cells(likeness: Likeness) -> tuple[str, ...]:
    peak = f"{likeness.difference_max:.3g}" if likeness.weights else "-"
    return str(likeness.tensors), str(likeness.equal), *_numbers(likeness), peak


def _numbers(likeness: Likeness) -> tuple[str, str]:
    cosine, distance = likeness.cosine, likeness.relative_l2
    return "-" if cosine is None else f"{cosine:.6f}", "-" if distance is None else f"{distance:.4g}"


def _tensors(found: Comparison) -> Iterator[str]:
    for tensor in found.tensors:
        dtype = tensor.a_dtype if tensor.a_dtype == tensor.b_dtype else f"{tensor.a_dtype}/{tensor.b_dtype}"
        start = f"{printable(tensor.name)}  {dtype} {list(tensor.shape)}  "
        if tensor.equal:
            yield start + "equal"
            continue
        likeness = tensor.likeness
        cosine, distance = _numbers(likeness)
        same = f"{likeness.equal_elements} of {likeness.elements} elements equal" if likeness.weights else "differs"
        yield f"{start}cosine {cosine}  ‖A−B‖/‖A‖ {distance}  max |A−B| {likeness.difference_max:.3g}  {same}"
