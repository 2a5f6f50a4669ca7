"""Block weights of adapters: the lists and presets of the web UI's block-weight extension, and our own assignments.

Source: hako-mikan/sd-webui-lora-block-weight b403cb7. Its lists name BASE (the text encoders) and those blocks that a
LoRA of the family has; what they don't name gets 0 there and 1 from kohya's ``--lbws``. Here that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import NamedTuple

from ..errors import UsageError, number_of, printable
from ..layouts import Layout
from ..layouts.blocks import parse_blocks


def _numbered(stem: str, *numbers: int) -> Iterator[str]:
    return (f"{stem}{number:02d}" for number in numbers)


_IN = (1, 2, 4, 5, 7, 8)
LISTS: dict[int, tuple[str, ...]] = {
    12: ("BASE", *_numbered("IN", 4, 5, 7, 8), "M00", *_numbered("OUT", *range(6))),
    17: ("BASE", *_numbered("IN", *_IN), "M00", *_numbered("OUT", *range(3, 12))),
    20: ("BASE", *_numbered("IN", *range(9)), "M00", *_numbered("OUT", *range(9))),
    26: ("BASE", *_numbered("IN", *range(12)), "M00", *_numbered("OUT", *range(12))),
}
"""Length of a list -> the blocks that its numbers are for."""


def _ones(*places: int) -> tuple[float, ...]:
    return tuple(1.0 if place in places else 0.0 for place in range(17))


PRESETS: dict[str, tuple[float, ...]] = {
    "NONE": _ones(),
    "ALL": _ones(*range(17)),
    "INS": _ones(*range(4)),
    "IND": _ones(0, 4, 5, 6),
    "INALL": _ones(*range(7)),
    "MIDD": _ones(0, *range(4, 12)),
    "OUTD": _ones(0, *range(8, 12)),
    "OUTS": _ones(0, *range(12, 17)),
    "OUTALL": _ones(0, *range(8, 17)),
    "ALL0.5": (0.5,) * 17,
}
"""Lists of 17 by name, for SD 1 and 2."""


class BlockWeights(NamedTuple):
    """``named`` by block; ``others`` is the weight of the blocks that aren't, None where that must be said."""

    named: Mapping[str, float]
    others: float | None

    def of(self, block: str | None) -> float:
        """The weight of a block (None: a module of no block). UsageError for one that is not named."""
        if block is None:
            return 1.0
        found = self.named.get(block, self.others)
        if found is None:
            raise UsageError(
                f"block weights: the adapter changes {block}, which a list of {len(self.named)} numbers doesn't name; "
                "say others=0 or others=1 for such blocks (--lora-others), or give a longer list",
                code="bad_value",
            )
        return found


def parse(text: str, layout: Layout, others: float | None = None) -> BlockWeights:
    """Block weights for the adapter of a checkpoint of that family. UsageError as ``layouts.blocks.parse_blocks``, and
    for a list that the family's adapters don't have."""
    words = [word.strip() for word in text.split(",")]
    if len(words) == 1 and words[0].upper() in PRESETS:
        return _listed(
            list(PRESETS[words[0].upper()]), layout, others, f"the preset {words[0]} is a list of 17 numbers"
        )
    numbers = _numbers(words)
    if numbers is not None:
        return _listed(numbers, layout, others, f"{number_of(len(numbers), 'number')} given")
    return BlockWeights(parse_blocks(text, layout), 1.0 if others is None else others)


def _numbers(words: list[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    if not all(map(isfinite, numbers)):
        raise UsageError("block weights: all numbers must be finite", code="bad_value")
    return numbers


def _listed(numbers: list[float], layout: Layout, others: float | None, given: str) -> BlockWeights:
    fitting = [length for length, blocks in LISTS.items() if set(blocks) <= set(layout.blocks)]
    if len(layout.blocks) > len(LISTS[20]) + 1:  # the longer U-Net has lists of its own, whose blocks are all in it
        fitting = [length for length in fitting if length in (17, 26)]
    if len(numbers) not in fitting:
        raise UsageError(
            f"block weights: {given}; adapters for {printable(layout.title)} have lists of "
            f"{' or '.join(map(str, fitting))}",
            code="bad_value",
        )
    return BlockWeights(dict(zip(LISTS[len(numbers)], numbers, strict=True)), others)
