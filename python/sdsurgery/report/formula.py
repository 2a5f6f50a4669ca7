"""What a verb does, as a formula in file names: ``0.6 × DreamMix_v8 + 0.4 × anything-V3``.

A method whose body only adds, subtracts, multiplies and divides is written as that sum; every other one by its name:
``slerp(A, B; alpha 0.3)``. Everything is read from the recipe, which may be a stranger's: what cannot be understood of
it is left out, and nothing raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import SdsError, printable
from ..methods.parameters import Param
from ..methods.registry import Method, get
from ..methods.written import PREFIX, letter, substituted
from ..program import CONSTANT, INPUT, TEMP, Formula
from ..program.tracing import trace

MOST_INPUTS = 12
"""Of a formula that is written out; of more, the first are named."""
_MOST_STEPS = 2 * MOST_INPUTS
_LEVELS = {"add": 1, "sub": 1, "mul": 2, "div": 2}
_SIGNS = {"add": " + ", "sub": " − ", "mul": " × ", "div": "/"}
_ATOM = 3
_UNSAID = ("fused", "names", "loras")  # how a method rounds, how an adapter spells, and what is an input


class Text(NamedTuple):
    """A formula, and how tightly its outermost operation binds. ``number`` is set for a number."""

    text: str
    level: int = _ATOM
    number: float | None = None

    def within(self, level: int) -> str:
        """With brackets where an operation that binds that tightly needs them."""
        return self.text if self.level >= level else f"({self.text})"


def names_of(paths: Sequence[str], limit: int = 60) -> list[str]:
    """The files' names, as short as they differ: without suffix, with it, or with their folder in front. Of those that
    are longer than ``limit`` the rest is counted."""
    different = len(set(paths))
    for short in (_stem, os.path.basename, _in_folder):
        found = [printable(short(path), limit) for path in paths]
        if len(set(found)) == different:
            return found
    return [printable(path, limit) for path in paths]


def formula(verb: str, recipe: Mapping[str, Any], names: Sequence[str]) -> str:
    """The formula of what ``verb`` makes by ``recipe`` of the files with these names. ``recipe`` is what the output's
    metadata hold (docs/recipes.md)."""
    try:
        made = _VERBS[verb](recipe, names) if verb in _VERBS else _merged(recipe, names)
    except (SdsError, TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError):
        made = Text(_called(verb, names, []))
    return made.text


# ---- merges


def _merged(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    averaged = recipe.get("use_ema", ())
    adapters = recipe.get("loras", {})
    leaves = []
    for number, name in enumerate(names):
        which = letter(number)
        text = f"{name} (EMA)" if which in averaged else name
        leaves.append(_adapted(Text(text), adapters.get(which, ())))
    made = _adapted(_node(recipe, leaves, "", recipe), adapters.get("result", ()))
    vae = recipe.get("vae")
    return Text(f"{made.text}, VAE of {printable(_stem(vae), 60)}", 0) if vae else made


def _node(node: Mapping[str, Any], leaves: Sequence[Text], path: str, recipe: Mapping[str, Any]) -> Text:
    """A call, and the calls within it; ``path`` is that of its parameters' names."""
    method = get(str(node["method"]))
    given = recipe["parameters"]
    inputs = [
        leaves[_number(item)] if isinstance(item, str) else _node(item, leaves, f"{path}{letter(at)}.", recipe)
        for at, item in enumerate(node.get("inputs") or map(letter, range(_count(method, recipe, leaves))))
    ]
    params = {name: given[path + name] for name in method.params if given.get(path + name) is not None}
    varied = _varied(method, path, recipe)
    if not varied and len(inputs) <= MOST_INPUTS:
        written = _written_out(method, inputs, params)
        if written is not None:
            return written
    rows = [
        _both(name, params.get(name), varied.get(name))
        for name, param in method.params.items()
        if name in varied or _is_said(name, param, params.get(name))
    ]
    rows += [f"{name} {text}" for name, text in varied.items() if name not in method.params]
    if method.name.startswith(PREFIX):
        if len(inputs) <= MOST_INPUTS:
            return Text(substituted(method.name, [each.within(_ATOM) for each in inputs], {}) + _behind(rows), 0)
        return Text(_called("formula", [each.text for each in inputs], rows))
    return Text(_called(method.name, [each.text for each in inputs], rows))


def _count(method: Method, recipe: Mapping[str, Any], leaves: Sequence[Text]) -> int:
    """How many of the files are inputs of the method; behind them stand those of adapters and of a VAE."""
    others = sum(map(len, recipe.get("loras", {}).values())) + bool(recipe.get("vae"))
    return len(method.inputs) if not method.variadic else len(leaves) - others


def _written_out(method: Method, inputs: Sequence[Text], params: Mapping[str, Any]) -> Text | None:
    """The method's body as a sum of products; None for one that is more than that."""
    if method.roles is not None:
        return None  # it differs between tensors
    bound = method.bind(len(inputs), params)
    if method.name.startswith(PREFIX):
        numbers = {name: _short(value) for name, value in params.items()}
        return Text(substituted(method.name, [each.within(_ATOM) for each in inputs], numbers), 0)
    made: Formula = trace(method, len(inputs), bound)
    program = made.program
    if program.in_stages or len(program.steps) > _MOST_STEPS or any(op not in _LEVELS for op, *_ in program.steps):
        return None
    temps: dict[int, Text] = {}

    def of(ref: tuple[int, int]) -> Text:
        kind, index = ref
        if kind == CONSTANT:
            number = made.numbers[index]
            return Text(_short(number), _ATOM if number >= 0 else 1, number)
        return {INPUT: inputs, TEMP: temps}[kind][index]  # type: ignore[index]

    for op, args, to in program.steps:
        temps[to] = _operation(op, of(args[0]), of(args[1]))
    return of(program.result)


def _operation(op: str, left: Text, right: Text) -> Text:
    if op == "mul" and left.number is None and right.number is not None:
        left, right = right, left
    if (op == "mul" and left.number == 1) or (op == "add" and left.number == 0):
        return right
    if op in ("add", "sub") and right.text.startswith("−"):
        return _operation({"add": "sub", "sub": "add"}[op], left, right._replace(text=right.text[1:].lstrip()))
    level = _LEVELS[op]
    tighter = level + (op in ("sub", "div"))
    first = left.text if left.number is not None and op == "mul" else left.within(level)
    return Text(f"{first}{_SIGNS[op]}{right.within(tighter)}", level)


def _varied(method: Method, path: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """What to say of ratios that differ between tensors: ``0–0.8 by block``, beside the number of the others."""
    found: dict[str, list[str]] = {}
    for kind, word in (("blocks", "by block"), ("rules", "by rule")):
        for ratio, weights in recipe.get(kind, {}).items():
            front, _, name = ratio.rpartition(".")
            if front == path.rstrip("."):
                numbers = sorted(set(map(float, weights.values())))
                span = "–".join(_short(each) for each in dict.fromkeys((numbers[0], numbers[-1])))
                found.setdefault(name, []).append(f"{span} {word}")
    return {name: " and ".join(texts) for name, texts in found.items()}


def _is_said(name: str, param: object, value: Any) -> bool:
    """Whether a parameter is worth a word: what has a range of its own, and what differs from the usual."""
    if value is None or name in _UNSAID:
        return False
    usual = getattr(param, "default", None)
    if isinstance(value, list | tuple) and set(value) == {usual}:
        return False
    return value != usual or (isinstance(param, Param) and name in ("alpha", "beta"))


# ---- adapters


def _adapted(model: Text, adapters: Iterable[Mapping[str, Any]]) -> Text:
    """A model with adapters, each times its strength."""
    for each in adapters:
        strength = float(each["strength"])
        how = [f"te {_short(each['te'])}"] if each.get("te") is not None else []
        how += ["by block"] if each.get("blocks") else []
        name = printable(each["name"], 60) + (f" ({', '.join(how)})" if how else "")
        model = _operation("add", model, _scaled(strength, name))
    return model


def _scaled(strength: float, name: str) -> Text:
    return _operation("mul", Text(_short(strength), number=strength), Text(name))


# ---- other verbs


def _bake(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    return _adapted(Text(names[0]), recipe["parameters"]["loras"])


def _cast(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    dtype = recipe.get("dtype", "keep")
    return Text(f"cast({names[0]}{'' if dtype == 'keep' else f', {printable(dtype)}'})")


def _replace(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    components = recipe["parameters"]["components"]
    rows = [f"{printable(part)} of {donor}" for part, donor in zip(components, names[1:], strict=False)]
    return Text(_called("replace", names[:1], rows))


def _extract_lora(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    tuned, base = names[:2]
    rows = [_row(name, value) for name, value in recipe["parameters"].items() if value and name not in _UNSAID]
    return Text(_called("extract-lora", [f"{tuned} − {base}"], rows))


def _merge_lora(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
    first, *others = recipe["parameters"]["loras"]
    total = _adapted(_scaled(float(first["strength"]), printable(first["name"], 60)), others)
    return Text(f"merge-lora({total.text})")


def _of_one(verb: str) -> Callable[[Mapping[str, Any], Sequence[str]], Text]:
    """A verb of one file, with what it was asked for."""

    def text(recipe: Mapping[str, Any], names: Sequence[str]) -> Text:
        rows = [
            _row(name, value)
            for name, value in recipe["parameters"].items()
            if name not in _UNSAID and value not in (None, False, [], ())
        ]
        if recipe.get("dtype") not in (None, "keep"):
            rows.append(str(recipe["dtype"]))
        return Text(_called(verb, names[:1], rows))

    return text


def _row(name: str, value: Any) -> str:
    word = name.replace("_", "-")
    return word if value is True else _value(value) if name in ("preset", "component") else f"{word} {_value(value)}"


_VERBS: Mapping[str, Callable[[Mapping[str, Any], Sequence[str]], Text]] = {
    "bake": _bake,
    "cast": _cast,
    "replace": _replace,
    "extract-lora": _extract_lora,
    "merge-lora": _merge_lora,
    **{verb: _of_one(verb) for verb in ("convert", "ema", "extract", "fix-clip", "prune", "resize-lora")},
}
"""How the recipes of verbs that are not merges are said."""


# ---- words


def _called(verb: str, inputs: Sequence[str], rows: Sequence[str]) -> str:
    shown = list(inputs)
    if len(shown) > MOST_INPUTS:
        shown = [*shown[:3], f"… ({len(shown)} in all)"]
    return f"{verb}({', '.join(shown)}{_behind(rows)})"


def _behind(rows: Sequence[str]) -> str:
    return f"; {', '.join(rows)}" if rows else ""


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value[:MOST_INPUTS])) + (" …" if len(value) > MOST_INPUTS else "")
    return _short(value) if isinstance(value, int | float) and not isinstance(value, bool) else printable(value, 60)


def _both(name: str, value: Any, varied: str | None) -> str:
    """A parameter with the number that it has, and those that it has by block or rule."""
    if varied is None:
        return _worded(name, value)
    return f"{name} {varied}" if value is None else f"{_worded(name, value)} ({varied})"


def _worded(name: str, value: Any) -> str:
    """A parameter and its value; of a flag only the name."""
    return ("" if value else "not ") + name if isinstance(value, bool) else f"{name} {_value(value)}"


def _short(number: float) -> str:
    return f"{number:.6g}".replace("-", "−")


def _number(which: str) -> int:
    return ord(which) - ord("A") if len(which) == 1 else int(which[1:])


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _in_folder(path: str) -> str:
    return os.path.join(os.path.basename(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
