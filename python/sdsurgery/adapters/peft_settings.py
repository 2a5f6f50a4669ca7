"""What peft's settings say of a module's scale: ``adapter_config.json`` beside an adapter, or ``lora_adapter_metadata``
in its metadata, as diffusers writes it (the same, by component: ``unet.lora_alpha``).

They come with files of strangers: a value of the wrong type is refused, and so is a pattern that could take for ever.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ..checkpoint import Checkpoint
from ..errors import InputRefused, printable
from . import names

T = TypeVar("T")

CONFIG = "adapter_config.json"
BESIDE = ("adapter_model.safetensors", "adapter_model.bin")
_MOST = 1 << 20  # bytes of a configuration
_LARGE = 1e30  # no alpha or rank; Inf and NaN are none either
_ALPHAS = ("lora_alpha", "alpha")  # of LoRA, of LoHa and LoKr
_PATTERNS = ("alpha_pattern", "rank_pattern")
_SLOW = re.compile(r"\)[*+?{]|(?:[*+{].*){5}", re.DOTALL)
"""A repeated group, or many repetitions: matching may take exponential time, or a high power of the name's length."""


_PLAIN = re.compile(r"[\w.-]+")  # the end of a module's name, as diffusers writes it for each of hundreds of modules


class Patterns(NamedTuple):
    """Numbers by pattern of modules, each with its place in the file: ends of names, and regular expressions."""

    ends: dict[str, tuple[int, float]]
    others: tuple[tuple[int, re.Pattern[str], float], ...]

    def first(self, module: str) -> float | None:
        """The number of the first pattern that fits the end of the module's name, as peft looks it up; None of none."""
        parts = module.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts)))
        found = [self.ends[end] for end in ends if end in self.ends]
        found += [(place, value) for place, pattern, value in self.others if pattern.fullmatch(module)]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class PeftSettings:
    """Those settings of a file that scale modules, checked: by name, or by component and name."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    patterns: Mapping[str, Patterns] = field(default_factory=dict)
    rescaled: Mapping[str, bool] = field(default_factory=dict)

    def alpha(self, module: str) -> float | None:
        """Alpha of a module; None where nothing is said."""
        return self._number(module, "alpha_pattern", *_ALPHAS)

    def rank(self, module: str) -> float | None:
        """The rank of a module; None where nothing is said."""
        return self._number(module, "rank_pattern", "r")

    def is_rescaled(self, module: str) -> bool:
        """Whether alpha is divided by √rank (rs-LoRA)."""
        return bool(_of(self.rescaled, module, "use_rslora"))

    def _number(self, module: str, pattern: str, *defaults: str) -> float | None:
        patterns = _of(self.patterns, module, pattern)
        found = None if patterns is None else patterns.first(module)
        stated = (_of(self.numbers, module, name) for name in defaults)
        return next((value for value in stated if value is not None), None) if found is None else found


def _of(values: Mapping[str, T], module: str, name: str) -> T | None:
    """The value for the component that the module is of, or for all."""
    component = names.component_of(module) or names.UNET
    return values.get(f"{component}.{name}", values.get(name))


def settings_of(checkpoint: Checkpoint) -> PeftSettings:
    """The settings in the file's metadata, or in the file beside it; none of a file without. InputRefused when they are
    not JSON."""
    stated, where = checkpoint.metadata().get("lora_adapter_metadata"), checkpoint.path
    beside = os.path.join(os.path.dirname(checkpoint.path), CONFIG)
    if stated is None and os.path.basename(checkpoint.path) in BESIDE and os.path.isfile(beside):
        where = beside
        with open(beside, "rb") as file:
            stated = file.read(_MOST).decode("utf-8", "replace")
    if stated is None:
        return PeftSettings()
    try:
        found = json.loads(stated)
    except (ValueError, RecursionError) as error:
        raise InputRefused(
            f"{printable(where)}: peft's settings are not JSON: {printable(error)}", code="damaged", path=where
        ) from None
    return _Reader(where).settings(found if isinstance(found, dict) else {})


class _Reader(NamedTuple):
    where: str

    def settings(self, found: Mapping[str, Any]) -> PeftSettings:
        stated = {key: (key.rpartition(".")[2], value) for key, value in found.items() if value is not None}
        return PeftSettings(
            {key: self.number(name, value) for key, (name, value) in stated.items() if name in (*_ALPHAS, "r")},
            {key: self.patterns(name, value) for key, (name, value) in stated.items() if name in _PATTERNS},
            {key: bool(value) for key, (name, value) in stated.items() if name == "use_rslora"},
        )

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGE:
            raise self.refused(name, "a number", value)
        if name in ("r", "rank_pattern") and value <= 0:
            raise self.refused(name, "a rank above 0", value)
        return float(value)

    def patterns(self, name: str, value: Any) -> Patterns:
        if not isinstance(value, dict):
            raise self.refused(name, "an object", value)
        found = [(place, text, self.number(name, number)) for place, (text, number) in enumerate(value.items())]
        others = [(place, self.pattern(text), number) for place, text, number in found if not _PLAIN.fullmatch(text)]
        return Patterns({text: (at, number) for at, text, number in found if _PLAIN.fullmatch(text)}, tuple(others))

    def pattern(self, text: str) -> re.Pattern[str]:
        try:
            if _SLOW.search(text):
                raise re.error("too much is repeated in it")
            return re.compile(rf"(.*\.)?({text})")
        except re.error as error:
            raise self.refused("a pattern of modules", f"a plain regular expression ({error})", text) from None

    def refused(self, name: str, expected: str, found: Any) -> InputRefused:
        return InputRefused(
            f"{printable(self.where)}: {name} must be {expected}, not {printable(json.dumps(found))}",
            code="damaged",
            path=self.where,
        )
