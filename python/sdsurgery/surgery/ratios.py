"""Ratios by rule and by block: which of a method's numbers apply to which tensor.

A rule over the tensor's name wins over the weight of its block, and that over the method's own parameter. Each ratio (a
parameter that is one number) can have its own rules and block weights. The method's body is traced once; each
tensor's Formula is that program with the tensor's own numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputRefused, UsageError, printable
from ..files import require_found
from ..layouts import Layout
from ..methods.across import in_role, role_of
from ..methods.parameters import PerInput, require_fitting
from ..methods.registry import Method
from ..program import INPUT, Formula
from ..program.tracing import Body, body_of
from .preflight import letter

if TYPE_CHECKING:
    from ..layouts.blocks import Rules  # and its neighbours only for those who use them
    from .common import Input

BlockWeights = str | Sequence[float] | Mapping[str, float]
"""``IN04=0.3,OUT05-OUT08=0.8``, a preset's name, a list of numbers, or block name to number."""
RuleSet = str | os.PathLike[str] | Mapping[str, float]
"""A file with lines ``REGEX = NUMBER``, or regular expression to number (the last that matches wins)."""

_BASE = "BASE"
_LONGEST_RULES = 1_000_000  # bytes; a larger file is not a list of rules
_BLOCK = r"(?i)base|vae|(?:in|m|mid|out)\d+"
_WITH_RATIO = r"(?s)\s*([\w.]+)\s*:(.*)"


class Ratios:
    """The numbers of ``method`` for ``count`` inputs, tensor by tensor.

    ``blocks`` and ``rules`` are specifications for the method's only ratio or, for any method, ratio's name to
    specification; text may also carry the name in front (``alpha:GRAD_V``), and several such texts can be listed. The
    numbers of a list, one for each input, are ratios by the inputs' letters (``B:GRAD_V``).
    Raises UsageError for anything that isn't understood, InputRefused for a rules file that can't be read.
    """

    def __init__(
        self, method: Method, count: int, params: Mapping[str, Any], layout: Layout, *, blocks: Any, rules: Any,
        without: Callable[[frozenset[int]], tuple[Method, tuple[int, ...]] | None] = lambda absent: None,
    ) -> None:  # fmt: skip
        self.method, self.count, self.params, self.layout = method, count, params, layout
        self.lists = {n: v for n, v in params.items() if isinstance(method.params[n], PerInput) and v is not None}
        self.letters = _letters(method, params)
        given = by_ratio(method, params, "blocks=", blocks)
        self.blocks = {n: _weights(spec, layout) for n, spec in given.items() if spec is not _REST}
        if any(spec is _REST for spec in given.values()):
            self.blocks[letter(0)] = self._rest()
        self.rules = {n: _rules(spec) for n, spec in by_ratio(method, params, "rules=", rules).items()}
        asked = {*self.blocks, *self.rules}
        numbers = {name: params[name] for name in method.ratios if params[name] is not None}
        numbers |= {name: params[of][at] for name, (of, at) in self.letters.items() if name in asked}
        self.numbers: Mapping[str, float] = numbers
        self._unused = {(name, index) for name, rules in self.rules.items() for index in range(len(rules.rules))}
        self.bodies: dict[tuple[frozenset[int], str], tuple[Body, tuple[int, ...]] | None] = {
            (frozenset(), ""): (body_of(method, count, params), tuple(range(count)))
        }
        self._without = without
        self._drawing: dict[tuple[frozenset[int], str], bool] = {}
        self._known: dict[Any, tuple[Formula, Mapping[str, Any]]] = {}

    def _rest(self) -> dict[str, float]:
        """What the other inputs leave of 1, in every block in which one has a number."""
        blocks = dict.fromkeys(block for weights in self.blocks.values() for block in weights)
        return {block: 1 - sum(weights.get(block, 0.0) for weights in self.blocks.values()) for block in blocks}

    def inputs(self, absent: frozenset[int]) -> tuple[int, ...] | None:
        """The inputs that the formula for a tensor takes which the inputs ``absent`` lack; None where A's is kept."""
        found = self._body(absent, "")
        return None if found is None else found[1]

    def _body(self, absent: frozenset[int], role: str) -> tuple[Body, tuple[int, ...]] | None:
        if (absent, role) not in self.bodies:
            left = self._without(absent) if absent else (self.method, tuple(range(self.count)))
            if absent and self.method.stands_in and 0 not in absent:
                method = replace(self.method, body=self.method.stands_in(self.method.body, absent))
                left = (method, tuple(0 if at in absent else at for at in range(self.count)))
            made = None
            if left is not None:
                method = in_role(left[0], role if left[0].roles else "")
                made = (body_of(method, len(left[1]), self._of(method)), left[1])
            self.bodies[absent, role] = made
        return self.bodies[absent, role]

    def of(
        self, name: str, block: str | None, absent: frozenset[int] = frozenset()
    ) -> tuple[Formula, Mapping[str, Any]]:
        """The formula for the tensor ``name`` of ``block`` and what the report says about it: its block and ratios.

        A tensor of no block (depth estimator, image encoder, names that the family doesn't have) follows BASE.
        ``absent`` are inputs that lack the tensor (see ``inputs``).
        """
        block = (block or _BASE) if self.layout.blocks else None
        if self.method.block is not None and block is not None:
            block = self.method.block(self.layout.unwrap(name), block)
        role = self._role(name)
        tensor = self.layout.unwrap(name) if self._draws(absent, role) else ""
        if not self.rules:
            key: Any = (block, absent, role, tensor)
            found = self._known.get(key)
            if found is None:
                ratios = {ratio: self._by_block(ratio, block) for ratio in self.numbers}
                found = self._known[key] = self._made(block, ratios, (absent, role), tensor)
            return found
        ratios = {ratio: self._by_rule(ratio, name, block) for ratio in self.numbers}
        key = (block, absent, role, tensor, *(number.hex() for number in ratios.values()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(block, ratios, (absent, role), tensor)
        return found

    def leaves(self, name: str) -> bool:
        """Whether the method gives A's tensor of that name for what it is, whatever the numbers are."""
        role = self._role(name)
        if not role:
            return False
        found = self._body(frozenset(), role)
        program = None if found is None else found[0].program
        return program is not None and not program.steps and program.result == (INPUT, 0)

    def _role(self, name: str) -> str:
        return role_of(self.method, self.layout.unwrap(name), self.layout.name) if self.method.roles else ""

    @property
    def by_block(self) -> bool:
        """Whether tensors of one block, which no input lacks, have one formula whatever their names."""
        method = self.method
        return not (self.rules or method.block or method.roles or self._draws(frozenset(), ""))

    def _draws(self, absent: frozenset[int], role: str) -> bool:
        """Whether the formula's numbers depend on the tensor's name."""
        if (absent, role) not in self._drawing:
            found = self._body(absent, role)
            self._drawing[absent, role] = found is not None and found[0].draws(self._of(found[0].method))
        return self._drawing[absent, role]

    def _of(self, method: Method) -> dict[str, Any]:
        return {name: self.params[name] for name in method.params}

    def recipe(self) -> dict[str, Any]:
        """For the recipe: the weights by ratio and block, the rules by ratio in their order. Both can be given
        to ``merge`` again as ``blocks`` and ``rules``."""
        found: dict[str, Any] = {}
        if self.blocks:
            found["blocks"] = {ratio: dict(weights) for ratio, weights in self.blocks.items()}
        if self.rules:
            found["rules"] = {ratio: rules.as_mapping() for ratio, rules in self.rules.items()}
        return found

    def notes(self) -> list[str]:
        """Notes on rules that matched no tensor; to be called once every tensor has its formula."""
        return [
            f"the rule '{printable(self.rules[ratio].rules[index][0].pattern)}' ({ratio}) matches no merged tensor"
            for ratio, index in sorted(self._unused)
        ]

    def _made(
        self, block: str | None, ratios: Mapping[str, float], of: tuple[frozenset[int], str], tensor: str
    ) -> tuple[Formula, Mapping[str, Any]]:
        body, _ = self._body(*of)  # type: ignore[misc]  # asked for by ``inputs`` first
        formula = body.formula({**self._of(body.method), **self._set(body.method, ratios)}, tensor)
        return formula, {"block": block, "ratios": {**self.lists, **ratios}}

    def _set(self, method: Method, ratios: Mapping[str, float]) -> dict[str, Any]:
        """The parameters that the ratios of one tensor set. UsageError for a number out of its range."""
        found: dict[str, Any] = {}
        for ratio, number in ratios.items():
            name, at = self.letters.get(ratio, (ratio, None))
            if name not in method.params:
                continue
            require_fitting(method.name, ratio, number, method.params[name])
            if at is None:
                found[name] = number
            else:
                each = found.get(name, self.params[name])
                found[name] = (*each[:at], number, *each[at + 1 :])
        return found

    def _by_block(self, ratio: str, block: str | None) -> float:
        return self.blocks.get(ratio, {}).get(block or "", self.numbers[ratio])

    def _by_rule(self, ratio: str, name: str, block: str | None) -> float:
        rules = self.rules.get(ratio)
        index = rules.match(name) if rules else None
        if rules is None or index is None:
            return self._by_block(ratio, block)
        self._unused.discard((ratio, index))
        return rules.rules[index][1]


def bound(method: Method, inputs: Sequence[Input], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The method's parameters for these inputs. UsageError as of ``Method.bind``; InputRefused where the number of
    inputs is wrong and some of them are missing, which is why."""
    try:
        return method.bind(len(inputs), parameters)
    except UsageError as error:
        if error.code == "wrong_inputs":
            require_found(inputs)
        raise


def with_rest(method: Method, count: int, parameters: Mapping[str, Any], blocks: Any) -> tuple[dict[str, Any], Any]:
    """Of a weighted sum of several models without weights, in whose blocks others than A have numbers by their letters
    (``B:GRAD_V C:0.3``), the weights and block weights that give A what they leave; of others what was given."""
    own = next((name for name, each in method.params.items() if isinstance(each, PerInput) and each.instead_of), None)
    letters = [letter(number) for number in range(count)]
    if own is None or count <= len(method.inputs) or any(parameters.get(name) is not None for name in method.params):
        return dict(parameters), blocks
    named = _separate(blocks, letters)
    if not named or not {name for name, _ in named} <= set(letters[1:]) or len(dict(named)) < len(named):
        return dict(parameters), blocks
    return {**parameters, own: [1.0] + [0.0] * (count - 1)}, {**dict(named), letters[0]: _REST}


_REST: Any = object()
"""The block weights of A that are what the others leave of 1."""


def by_ratio(method: Method, params: Mapping[str, Any], option: str, given: Any) -> dict[str, Any]:
    """Ratio's name -> specification. UsageError for a ratio that the method lacks, or one that is set twice."""
    found: dict[str, Any] = {}
    ratios = tuple(name for name in method.ratios if params[name] is not None)
    letters = _letters(method, params)
    lists = [name for name, value in params.items() if isinstance(method.params[name], PerInput) and value is not None]
    also = {word: name for name in method.ratios for word in method.also(name)}
    for word, spec in _separate(given, (*method.ratios, *also, *letters)):
        asked = also.get(word or "", word)
        if lists and not ratios and (method.ratios if asked is None else asked in method.ratios):
            raise UsageError(
                f"{option} sets {' or '.join(method.ratios)}, one number for each block, and "
                f"{lists[0]}= one for each input; give only one of them, or say whose: {next(iter(letters))}:…",
                code="conflict",
            )
        ratio = _only(method, params, option) if asked is None else asked
        if ratio not in method.ratios and ratio not in letters:
            from ..suggest import did_you_mean

            known = (*method.ratios, *letters)
            hint = did_you_mean(ratio, known) or f"; it has {', '.join(known) or 'none'}"
            if re.fullmatch(_BLOCK, ratio):
                hint = f"; a block's weight is written {ratio}=NUMBER"
            raise UsageError(f"{method.name} has no ratio '{printable(ratio)}' for {option}{hint}", code="unknown_name")
        if ratio in found:
            raise UsageError(f"{option} is given twice for {ratio}; put all of it into one", code="conflict")
        found[ratio] = spec
    return found


def _letters(method: Method, params: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The inputs by letter, with the list and the place in it of the number that each has; of several lists the
    first."""
    for name, param in method.params.items():
        if isinstance(param, PerInput) and params.get(name) is not None:
            return {letter(param.after + at): (name, at) for at in range(len(params[name]))}
    return {}


def _only(method: Method, params: Mapping[str, Any], option: str) -> str:
    ratios = method.ratios
    if len(ratios) == 1:
        return ratios[0]
    if not ratios:
        lists = [name for name, param in method.params.items() if isinstance(param, PerInput)]
        hint = f"; say whose number of {lists[0]}= changes: B:…" if lists else ""
        if lists and params[lists[0]] is None:
            hint = f"; give {lists[0]}= too, and say whose number changes: B:…"
        raise UsageError(
            f"{method.name} has no ratio that can differ between tensors, which {option} needs{hint}", code="conflict"
        )
    raise UsageError(
        f'{method.name} has several ratios ({", ".join(ratios)}); say which: {option}{{"{ratios[0]}": …}}',
        code="conflict",
    )


def _separate(given: Any, ratios: Sequence[str]) -> list[tuple[str | None, Any]]:
    """(ratio or None, specification) of everything that was given."""
    if given is None or (isinstance(given, list | tuple) and not given):
        return []
    if isinstance(given, str):
        if re.match(r"[a-z]:", given) and given[0].upper() in ratios:  # b:GRAD_V
            given = given[0].upper() + given[1:]
        parts = given.split()
        if len(parts) > 1 and parts[0].partition(":")[0] in ratios and all(":" in part for part in parts):
            return _separate(parts, ratios)
        match = re.fullmatch(_WITH_RATIO, given)
        if match and len(match[1]) == 1 and match[2][:1] in ("/", "\\"):
            return [(None, given)]  # C:\rules.txt
        # Neither C:\rules.txt nor v1.5:rules.txt begins with a ratio; a block list has no colon of its own.
        shortest = 1 if any(len(ratio) == 1 for ratio in ratios) else 2
        if match and (match[1] in ratios or (len(match[1]) >= shortest and "." not in match[1])):
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
    raise UsageError(f"block weights: expected text, numbers or a mapping, not {type(spec).__name__}", code="bad_value")


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
        raise UsageError(f"rules: expected a file or a mapping, not {type(spec).__name__}", code="bad_value") from None
    try:
        return parse_rules(_text(path))
    except UsageError as error:
        raise error.within(printable(path), path=os.fspath(path)) from None


def _text(path: str) -> str:
    try:
        if not os.path.isfile(path):
            raise InputRefused(
                f"rules file {printable(path)}: " + ("not a regular file" if os.path.exists(path) else "no such file"),
                code="not_regular" if os.path.exists(path) else "not_found",
            )
        with open(path, "rb") as file:
            data = file.read(_LONGEST_RULES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputRefused(f"cannot read the rules file {printable(path)}: {reason}", code="io") from None
    if len(data) > _LONGEST_RULES:
        raise InputRefused(
            f"rules file {printable(path)}: longer than {_LONGEST_RULES} bytes, so it is not a list of rules",
            code="damaged",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputRefused(f"rules file {printable(path)}: not UTF-8 text", code="damaged") from None
