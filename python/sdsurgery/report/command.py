"""The command that makes a merge again, from its recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import printable
from ..methods.written import PREFIX

_QUOTED = r"""\"'\"|'([^']*)'"""
"""What ``shlex.quote`` puts around a word: single quotes, and a single quote in double ones between them."""
_USUAL = {"dtype": "keep", "overflow": "default", "compute": "fp32"}


def runnable(text: str) -> str:
    """A command of ``shlex.join`` whose control and bidi characters are escapes that bash and zsh read (``$'…'``): what
    is shown is safe and runs."""

    def escaped(found: re.Match[str]) -> str:
        if found[1] is None or printable(found[1], len(found[1])) == found[1]:
            return found[0]
        return f"$'{''.join(map(_escape, found[1]))}'"

    return re.sub(_QUOTED, escaped, text)


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if printable(char) == char:
        return char
    if "\udc80" <= char <= "\udcff":  # a byte of a name that isn't UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\U{ord(char):08x}"


def command(recipe: Mapping[str, Any], names: Sequence[str]) -> str:
    """``sdsurgery merge …`` for one of our own recipes; ``names`` are its models' without a suffix. Empty for what no
    command line says: a tree, rules, adapters of single inputs or with block weights, and verbs that do not merge."""
    adapters = recipe.get("loras", {})
    own = [each for given in adapters.values() for each in given]
    if "add_missing" not in recipe or "inputs" in recipe or "rules" in recipe:
        return ""
    if set(adapters) - {"result"} or any(set(each) - {"lora", "name", "strength", "te"} for each in own):
        return ""
    count = len(names) - len(own) - bool(recipe.get("vae"))
    words = [*(f"{name}.safetensors" for name in names[:count]), *_method(str(recipe["method"]), recipe["parameters"])]
    for ratio, weights in recipe.get("blocks", {}).items():
        words += ["--blocks", f"{ratio}:{','.join(f'{block}={number(each)}' for block, each in weights.items())}"]
    if used := recipe.get("use_ema"):
        words += ["--use-ema", ",".join(used)]
    for moved in recipe.get("map", ()):
        words += ["--map", moved]
    for name, each in zip(names[count:], own, strict=False):
        te = f",te={number(each['te'])}" if each.get("te") is not None else ""
        words += ["--lora", f"{name}.safetensors={number(each['strength'])}{te}"]
    if recipe.get("vae"):
        words += ["--vae", f"{names[-1]}.safetensors"]
    words += [f"--{name.replace('_', '-')}" for name in ("add_missing", "fix_clip", "fix_names") if recipe.get(name)]
    for name, usual in _USUAL.items():
        if recipe.get(name, usual) != usual:
            words += [f"--{name}", recipe[name]]
    return shlex.join(["sdsurgery", "merge", *words, "-o", "OUT.safetensors"])


def _method(name: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    if name.startswith(PREFIX):
        yield from ("--formula", name.removeprefix(PREFIX))
        for own, value in parameters.items():
            yield from ("--set", f"{own}={number(value)}")
        return
    yield from ("--method", name)
    yield from options(parameters)


def options(parameters: Mapping[str, Any], text: Callable[[float], str] | None = None) -> Iterator[str]:
    """A method's numbers as options; ``text`` writes a number, exactly where it isn't given."""
    for name, value in parameters.items():
        flag = "--" + name.replace("_", "-")
        each = value if isinstance(value, list | tuple) else (value,)
        yield flag if value is True else f"{flag}={','.join(map(text or number, each))}"


def number(value: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
