"""Ratios by rule and by block: which of a method's numbers apply to which tensor.

A rule over the tensor's name wins over the weight of its block, and that over the method's own parameter. Each ratio (a
parameter that is one number) can have its own rules and block weights. The method's body is traced once; each
tensor's Formula is that program with the tensor's own numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from ..errors import InputRefused, UsageError, printable
from ..layouts import Layout
from ..methods import Method, PerInput
from ..program import Formula, body_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..layouts.blocks import Rules  # and its neighbours only for those who use them

BlockWeights = str | Sequence[float] | Mapping[str, float]
"""``IN04=0.3,OUT05-OUT08=0.8``, a preset's name, a list of numbers, or block name to number."""
RuleSet = str | os.PathLike[str] | Mapping[str, float]
"""A file with lines ``REGEX = NUMBER``, or regular expression to number (the last that matches wins)."""

_BASE = "BASE"
_LONGEST_RULES = 1_000_000  # bytes; a larger file is not a list of rules
_WITH_RATIO = r"(?s)\s*(\w+)\s*:(.*)"


class Ratios:
    """The numbers of ``method`` for ``count`` inputs, tensor by tensor.

    ``blocks`` and ``rules`` are specifications for the method's only ratio or, for any method, ratio's name to
    specification; text may also carry the name in front (``alpha:GRAD_V``), and several such texts can be listed.
    Raises UsageError for anything that isn't understood, InputRefused for a rules file that can't be read.
    """

    def __init__(
        self, method: Method, count: int, params: Mapping[str, Any], layout: Layout, *, blocks: Any, rules: Any
    ) -> None:  # fmt: skip
        self.method, self.count, self.params, self.layout = method, count, params, layout
        self.lists = {n: v for n, v in params.items() if isinstance(method.params[n], PerInput) and v is not None}
        self.names = () if self.lists else method.ratios
        self.blocks = {name: _weights(spec, layout) for name, spec in self._by_ratio("--blocks", blocks).items()}
        self.rules = {name: _rules(spec) for name, spec in self._by_ratio("--rules", rules).items()}
        self._unused = {(name, index) for name, rules in self.rules.items() for index in range(len(rules.rules))}
        self.body = body_of(method, count, params)
        self._known: dict[Any, tuple[Formula, Mapping[str, Any]]] = {}

    def of(self, name: str, block: str | None) -> tuple[Formula, Mapping[str, Any]]:
        """The formula for the tensor ``name`` of ``block`` and what the report says about it: its block and ratios.

        A tensor of no block (depth estimator, image encoder, names that the family doesn't have) follows BASE.
        """
        block = (block or _BASE) if self.layout.blocks else None
        if not self.rules:
            found = self._known.get(block)
            if found is None:
                found = self._known[block] = self._made(block, {n: self._by_block(n, block) for n in self.names})
            return found
        ratios = {ratio: self._by_rule(ratio, name, block) for ratio in self.names}
        key = (block, *(number.hex() for number in ratios.values()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(block, ratios)
        return found

    def recipe(self) -> dict[str, Any]:
        """What the recipe tells: the weights by ratio and block, the rules by ratio in their order. Both can be given
        to ``merge`` again as ``blocks`` and ``rules``."""
        told: dict[str, Any] = {}
        if self.blocks:
            told["blocks"] = {ratio: dict(weights) for ratio, weights in self.blocks.items()}
        if self.rules:
            told["rules"] = {ratio: rules.as_mapping() for ratio, rules in self.rules.items()}
        return told

    def notes(self) -> list[str]:
        """Rules that decided about no tensor; ask once every tensor has its formula."""
        return [
            f"the rule '{printable(self.rules[ratio].rules[index][0].pattern)}' ({ratio}) applies to no merged tensor"
            for ratio, index in sorted(self._unused)
        ]

    def _made(self, block: str | None, ratios: Mapping[str, float]) -> tuple[Formula, Mapping[str, Any]]:
        return self.body.formula({**self.params, **ratios}), {"block": block, "ratios": {**self.lists, **ratios}}

    def _by_block(self, ratio: str, block: str | None) -> float:
        number: float = self.blocks.get(ratio, {}).get(block or "", self.params[ratio])
        return number

    def _by_rule(self, ratio: str, name: str, block: str | None) -> float:
        rules = self.rules.get(ratio)
        index = rules.match(name) if rules else None
        if rules is None or index is None:
            return self._by_block(ratio, block)
        self._unused.discard((ratio, index))
        return rules.rules[index][1]

    def _by_ratio(self, option: str, given: Any) -> dict[str, Any]:
        """Ratio's name -> specification. UsageError for a ratio that the method lacks, or one that is set twice."""
        found: dict[str, Any] = {}
        for asked, spec in _separate(given, self.method.ratios):
            if self.lists:
                raise UsageError(
                    f"{option} sets {' or '.join(self.method.ratios)}, one number for each block, and "
                    f"--{next(iter(self.lists))} one for each input; give only one of them"
                )
            ratio = self._only(option) if asked is None else asked
            if ratio not in self.method.ratios:
                from ..suggest import did_you_mean

                hint = did_you_mean(ratio, self.method.ratios) or f"; it has {', '.join(self.method.ratios) or 'none'}"
                raise UsageError(f"{option}: {self.method.name} has no ratio '{printable(ratio)}'{hint}")
            if ratio in found:
                raise UsageError(f"{option} is given twice for {ratio}; put all of it into one")
            found[ratio] = spec
        return found

    def _only(self, option: str) -> str:
        ratios = self.method.ratios
        if len(ratios) == 1:
            return ratios[0]
        if not ratios:
            raise UsageError(f"{option}: {self.method.name} has no ratio that could differ between tensors")
        raise UsageError(
            f"{option}: {self.method.name} has several ratios ({', '.join(ratios)}); say which: {option} {ratios[0]}:…"
        )


def _separate(given: Any, ratios: Sequence[str]) -> list[tuple[str | None, Any]]:
    """(ratio or None, specification) of everything that was given."""
    if given is None or (isinstance(given, list | tuple) and not given):
        return []
    if isinstance(given, str):
        match = re.fullmatch(_WITH_RATIO, given)
        # C:\rules.txt is not a ratio; a block list has no colon of its own.
        if match and (match[1] in ratios or len(match[1]) > 1):
            return [(match[1], match[2].strip())]
        return [(None, given)]
    if isinstance(given, list | tuple) and all(isinstance(item, str) for item in given):
        return [pair for item in given for pair in _separate(item, ratios)]
    if isinstance(given, Mapping) and given and not any(isinstance(value, int | float) for value in given.values()):
        return list(given.items())
    return [(None, given)]


def _weights(spec: BlockWeights, layout: Layout) -> dict[str, float]:
    from ..layouts.blocks import parse_blocks

    if isinstance(spec, str):
        return parse_blocks(spec, layout)
    if isinstance(spec, Mapping):
        return parse_blocks(",".join(f"{block}={_number(value)}" for block, value in spec.items()), layout)
    if isinstance(spec, Sequence):
        return parse_blocks(",".join(map(_number, spec)), layout)
    raise UsageError(f"block weights: expected text, numbers or a mapping, not {type(spec).__name__}")


def _number(value: Any) -> str:
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return printable(str(value))


def _rules(spec: RuleSet) -> Rules:
    from ..layouts.blocks import parse_rules, rules_from

    if isinstance(spec, Mapping):
        return rules_from(spec.items())
    try:
        path = os.fspath(spec)
    except TypeError:
        raise UsageError(f"rules: expected a file or a mapping, not {type(spec).__name__}") from None
    try:
        return parse_rules(_text(path))
    except UsageError as error:
        raise UsageError(f"{printable(path)}: {error}") from None


def _text(path: str) -> str:
    try:
        if not os.path.isfile(path):
            raise InputRefused(
                f"rules file {printable(path)}: " + ("not a regular file" if os.path.exists(path) else "no such file")
            )
        with open(path, "rb") as file:
            data = file.read(_LONGEST_RULES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputRefused(f"cannot read the rules file {printable(path)}: {reason}") from None
    if len(data) > _LONGEST_RULES:
        raise InputRefused(f"rules file {printable(path)}: longer than {_LONGEST_RULES} bytes, so no list of rules")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputRefused(f"rules file {printable(path)}: not UTF-8 text") from None
