"""Placeholders in an output's name: ``mix-{alpha}.safetensors``, ``mix-{alpha:.2f}.safetensors``.

Each is filled with a number of the run, or refused: a file that is called ``mix-{alhpa}.safetensors`` is never what
was meant. Doubled braces are braces. What is no word, as in ``{1}``, stays as it is, and so do folders that exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..adapters.lora import Lora
from ..errors import UsageError, number_of, printable
from ..methods.registry import Flag, Method, Param, Parameter, PerInput, Whole
from ..suggest import did_you_mean

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}:]*)(?::([^{}]*))?\}")
_WORD = re.compile(r"[^\W\d]\w*(?:\.\w+)*(?:!\w)?")


class Template(NamedTuple):
    """An output's name: a folder that exists, whose braces mean nothing, and the rest, with its placeholders."""

    folder: str
    rest: str

    def words(self) -> set[str]:
        """What stands in braces."""
        return {_plain(found[1]) for found in _BRACES.finditer(self.rest) if found[1] is not None}

    def filled(self, numbers: Mapping[str, Any]) -> str:
        """The name with the numbers in it."""

        def text(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0][0]
            name, spec = _plain(found[1]), found[2] or ""
            if name not in numbers:
                return found[0]
            number = float(numbers[name])
            try:
                return format(number, spec) if spec else repr(number).removesuffix(".0")
            except ValueError:
                wrong = f"'{printable(self.rest)}': '{printable(spec)}' does not format a number"
                raise UsageError(wrong, code="bad_output") from None

        return self.folder + _BRACES.sub(text, self.rest)


def template(out: str | os.PathLike[str] | None) -> Template:
    """The name that was given, empty for none."""
    text = "" if out is None else os.fsdecode(out)
    rest = os.path.basename(text) if os.path.isdir(os.path.dirname(text)) else text
    return Template(text.removesuffix(rest), rest)


def _plain(word: str) -> str:
    """``max-iter``, as the command line spells it, as the parameter is called."""
    return word.replace("-", "_")


def numbers_of(method: Method | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for ``{alpha}`` and the like, None for what has no number; ``method`` is None of a bake."""
    if method is None:
        return {}
    params = method.params.items()
    own = {name: param.default for name, param in params if isinstance(param, Param | Whole)}
    own |= {name: parameters[name] for name in own if parameters.get(name) is not None}
    own |= dict.fromkeys(_replaced(method, parameters))
    return {**{also: number for name, number in own.items() for also in method.also(name)}, **own}


def _replaced(method: Method, parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters in whose place a list is given, with its name."""
    lists = {name: param for name, param in method.params.items() if isinstance(param, PerInput) and param.instead_of}
    return {param.instead_of: name for name, param in lists.items() if parameters.get(name) is not None}


def strengths_of(loras: Sequence[Lora], only: int) -> dict[str, float]:
    """What stands for ``{lora1}`` and the like, and for ``{lora}``."""
    found = {f"lora{number}": lora.strength for number, lora in enumerate(loras, 1)}
    return {**found, "lora": found[f"lora{only}"]} if only else found


def require_filled(
    name: Template, known: Mapping[str, Any], method: Method | None, parameters: Mapping[str, Any], adapters: int
) -> None:
    """UsageError for a placeholder that nothing fills, with the reason."""
    for word in sorted(name.words()):
        if known.get(word) is None and _WORD.fullmatch(word):
            why = _reason(word, known, method, parameters, adapters)
            shown, braces = printable(name.folder + name.rest), f"{{{{{printable(word)}}}}}"
            text = f"nothing fills {{{printable(word)}}} in the output's name '{shown}': {why}"
            raise UsageError(f"{text} (braces that are meant are doubled: {braces})", code="bad_output")


def _reason(
    word: str, known: Mapping[str, Any], method: Method | None, parameters: Mapping[str, Any], adapters: int
) -> str:
    params: Mapping[str, Parameter] = {} if method is None else method.params
    names = {also: each for each in params for also in (method.also(each) if method else ())} | {p: p for p in params}
    own = names.get(word, word)
    if isinstance(params.get(own), PerInput):
        return f"{own} is a list with a number for each input, which is not a sweep"
    if isinstance(params.get(own), Flag):
        return f"{own} is yes or no, not a number"
    if method is not None and own in params:
        instead = _replaced(method, parameters).get(own)
        return f"{own} has no number" + (f" where {instead}= is given" if instead else "")
    if re.fullmatch(r"lora\d*", word):
        numbered = "; they are {lora1}, {lora2}, …" if adapters > 1 else ""
        return f"the run has {number_of(adapters, 'adapter')}{numbered}"
    return f"{'bake' if method is None else printable(method.name)} has no such number{did_you_mean(word, known)}"
