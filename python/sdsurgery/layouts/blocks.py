"""Block weights: ``IN04=0.3,OUT05-OUT08=0.8,BASE=0.5``, preset names, exchanged lists of numbers, rules over names.

Nothing here touches tensors: a block's weight replaces the method's ratio for the tensors of that block
(:meth:`Layout.block`), and a block that isn't set keeps the method's own ratio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple, NoReturn

from ..errors import UsageError, number_of, printable
from . import names
from .base import Layout, Network


def parse_blocks(text: str, layout: Layout) -> dict[str, float]:
    """Weights by block name, only those that ``text`` sets; VAE follows BASE unless set itself.

    ``text`` is a comma-separated list of assignments (``NAME=NUMBER`` or ``FIRST-LAST=NUMBER``, later ones win), a
    preset's name, or both, preset first; or only numbers, in the order in which other tools exchange them: the
    U-Net's 25 (19 for XL) blocks, with BASE in front of them (26 or 20), or with VAE behind them too (21, XL only).
    A preset has 25 values; for XL, IN09–IN11 and OUT09–OUT11 are left out, as supermerger does it.
    Raises UsageError for a block that the family doesn't have, a number that isn't finite, a list of another length.
    """
    if not layout.blocks:
        raise UsageError(f"block weights: {layout.title} has no merge blocks", code="bad_value")
    items = [item.strip() for item in text.split(",")]
    if items == [""]:
        raise UsageError(
            "block weights: the list is empty; give for instance IN04=0.3,OUT05-OUT08=0.8 or GRAD_V", code="bad_value"
        )
    if all("=" not in item and _is_number(item) for item in items):
        weights = _from_list([_number(item, item) for item in items], layout)
    else:
        weights = {}
        for place, item in enumerate(items):
            weights.update(_item(item, place, layout))
    if "BASE" in weights:
        weights.setdefault("VAE", weights["BASE"])
    return weights


def _item(item: str, place: int, layout: Layout) -> Iterator[tuple[str, float]]:
    target, equals, value = (part.strip() for part in item.partition("="))
    if equals:
        number = _number(value, item)
        return iter([(block, number) for block in _span(target, layout)])
    network = _require_network(layout)
    values = network.presets().get(item.upper())
    if values is None:
        _no_such_preset(item, network)
    if place:
        raise UsageError(
            f"block weights: the preset '{printable(item)}' must come first, assignments after it", code="bad_value"
        )
    return zip(network.blocks, values, strict=True)


def presets_of(layout: Layout) -> dict[str, dict[str, float]]:
    """Every preset of block weights that the family takes, by block. UsageError for a family without any."""
    network = _require_network(layout)
    found = {name: dict(zip(network.blocks, values, strict=True)) for name, values in network.presets().items()}
    if not found:
        raise UsageError(f"block weights: there are no presets for {layout.title}", code="unknown_name")
    return found


def _require_network(layout: Layout) -> Network:
    if layout.network is None:
        raise UsageError(
            f"block weights: {layout.title} has no U-Net; only {' and '.join(layout.blocks)} can be set",
            code="bad_value",
        )
    return layout.network


def _no_such_preset(item: str, network: Network) -> NoReturn:
    from ..suggest import did_you_mean

    parts = re.split(r"[\s;]+", item)
    if len(parts) > 1 and all(map(_is_number, parts)):
        shown = ",".join(parts[:4]) + (",…" if len(parts) > 4 else "")
        raise UsageError(
            f"block weights: '{printable(item)}': separate the numbers of a list with commas: {shown}",
            code="bad_value",
        )
    hint = did_you_mean(item.upper(), network.presets()) or "; expected NAME=NUMBER, a preset, or a list of numbers"
    raise UsageError(
        f"block weights: '{printable(item)}' is neither an assignment nor a preset{hint}", code="bad_value"
    )


def _span(target: str, layout: Layout) -> tuple[str, ...]:
    first, dash, last = target.partition("-")
    start = _index(first, layout)
    stop = _index(last, layout) if dash else start
    if stop < start:
        raise UsageError(
            f"block weights: '{printable(target)}' runs backwards; write {printable(last)}-{printable(first)}",
            code="bad_value",
        )
    return layout.blocks[start : stop + 1]


_NAME = re.compile(r"([A-Z]+)(\d{0,2})")


def _index(name: str, layout: Layout) -> int:
    word = name.strip().upper()
    match = _NAME.fullmatch(word)
    if match:
        stem, number = match.groups()
        word = f"{'M' if stem == 'MID' else stem}{int(number or 0):02d}" if number or stem in ("M", "MID") else word
    if word in layout.blocks:
        return layout.blocks.index(word)
    from ..suggest import did_you_mean

    side = [block for block in layout.blocks if block.rstrip("0123456789") == word]
    if side:
        raise UsageError(
            f"block weights: '{printable(name)}' is not a block; all of them are {side[0]}-{side[-1]}",
            code="unknown_name",
        )
    known = f"BASE, {layout.blocks[1]}–{layout.blocks[-2]}, VAE" if len(layout.blocks) > 2 else ", ".join(layout.blocks)
    raise UsageError(
        f"block weights: {layout.title} has no block '{printable(name)}'"
        f"{did_you_mean(word, layout.blocks) or f'; it has {known}'}",
        code="unknown_name",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, item: str) -> float:
    number = float(text) if _is_number(text) else float("nan")
    if not isfinite(number):
        raise UsageError(f"block weights: '{printable(item)}' needs a finite number, such as 0.3", code="bad_value")
    return number


def _from_list(numbers: list[float], layout: Layout) -> dict[str, float]:
    lists = _require_network(layout).lists
    if len(numbers) == 1 and lists:
        return dict.fromkeys(("BASE", *lists[0]), numbers[0])
    for blocks in lists:
        orders = [blocks, ("BASE", *blocks)]
        if _vae_last(blocks, layout):
            orders.append(("BASE", *blocks, "VAE"))
        for order in orders:
            if len(numbers) == len(order):
                return dict(zip(order, numbers, strict=True))
    counts = " or ".join(
        f"{len(blocks)} (without BASE), {len(blocks) + 1} (BASE first)"
        + (f", {len(blocks) + 2} (and VAE last)" if _vae_last(blocks, layout) else "")
        for blocks in lists
    )
    raise UsageError(
        f"block weights: {number_of(len(numbers), 'number')} given, {layout.title} needs {counts}", code="bad_value"
    )


_XL = 19  # U-Net blocks of XL, whose lists may end with the VAE


def _vae_last(blocks: tuple[str, ...], layout: Layout) -> bool:
    return len(blocks) == _XL or layout.vae_block == "VAE"


@dataclass(frozen=True)
class Rules:
    """Ratios by regular expression over tensor names; the last rule that matches anywhere in a name wins."""

    rules: tuple[tuple[re.Pattern[str], float], ...] = ()

    def match(self, key: str) -> int | None:
        """Index of the rule that decides about ``key``, None when none matches."""
        for index in range(len(self.rules) - 1, -1, -1):
            if self.rules[index][0].search(key):
                return index
        return None

    def ratio(self, key: str) -> float | None:
        """The ratio for ``key``, None when no rule matches."""
        index = self.match(key)
        return None if index is None else self.rules[index][1]

    def as_mapping(self) -> dict[str, float]:
        """Expression to ratio in the order of the rules; of two with the same expression only the last counts."""
        found: dict[str, float] = {}
        for pattern, number in self.rules:
            found.pop(pattern.pattern, None)
            found[pattern.pattern] = number
        return found


def rules_from(pairs: Iterable[tuple[str, float]]) -> Rules:
    """Rules from (expression, ratio) in order. UsageError as :func:`parse_rules` raises it."""
    return Rules(tuple(_compiled(expression, str(number), "rules") for expression, number in pairs))


def parse_rules(text: str) -> Rules:
    """Rules from lines ``REGEX = NUMBER``; blank lines and lines that start with ``#`` are skipped.

    The last ``=`` of a line separates. Raises UsageError with the line's number for a line of another form, an
    expression that doesn't compile, or a number that isn't finite.
    """
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            rules.append(_rule(line, number))
    return Rules(tuple(rules))


def _rule(line: str, number: int) -> tuple[re.Pattern[str], float]:
    expression, equals, value = line.rpartition("=")
    value = value.partition(" #")[0].strip()
    if not equals or not expression.strip():
        raise UsageError(
            f"rules, line {number}: expected REGEX = NUMBER, found '{printable(line.strip())}'", code="bad_value"
        )
    return _compiled(expression.strip(), value, f"rules, line {number}")


def _compiled(expression: str, value: str, where: str) -> tuple[re.Pattern[str], float]:
    if not _is_number(value) or not isfinite(float(value)):
        raise UsageError(f"{where}: '{printable(value)}' is not a finite number", code="bad_value")
    try:
        return re.compile(expression), float(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{where}: '{printable(expression)}': {error}", code="bad_value") from None
    except TypeError:
        raise UsageError(
            f"{where}: an expression must be text, not {type(expression).__name__}", code="bad_value"
        ) from None


class BlockRow(NamedTuple):
    """What ``layouts --blocks`` says about one module: ``block`` is ``-`` for a module outside all blocks."""

    block: str
    component: str
    tensors: int
    elements: int
    prefix: str


def block_rows(layout: Layout) -> list[BlockRow]:
    """The modules of a family by merge block, in block order. UsageError when the family's tensors are not known."""
    try:
        rows = layout.tensors()
    except ValueError as error:
        raise UsageError(str(error)) from None
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        place = (layout.block(row.key) or "-", row.component, _prefix(row.key))
        count = groups.setdefault(place, [0, 0])
        count[0] += 1
        count[1] += _elements(row.shape)
    order = {block: i for i, block in enumerate((*layout.blocks, "-"))}
    return [
        BlockRow(block, component, count[0], count[1], prefix)
        for (block, component, prefix), count in sorted(groups.items(), key=lambda item: order[item[0][0]])
    ]


def blocks_table(layout: Layout) -> Iterator[str]:
    """:func:`block_rows` as lines of tab-separated cells, with a header."""
    for row in (BlockRow._fields, *block_rows(layout)):
        yield "\t".join(map(str, row))


def _elements(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _prefix(key: str) -> str:
    """The module under which the table counts a key: one numbered network block, else the component's root."""
    head = names.UNET if key.startswith(names.UNET) else ""
    parts = key[len(head) :].split(".")
    depth = 1
    if parts[0] == "conditioner":
        depth = 3  # conditioner.embedders.0
    elif parts[0] in ("down_blocks", "up_blocks"):
        depth = 4  # down_blocks.0.resnets.1
    elif parts[0].endswith("_blocks"):
        depth = 2  # input_blocks.0
    return head + ".".join(parts[:depth]) + ("." if len(parts) > depth else "")
