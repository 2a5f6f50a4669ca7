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
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import InputRefused, printable
from . import names

CONFIG = "adapter_config.json"
BESIDE = ("adapter_model.safetensors", "adapter_model.bin")
_MOST = 1 << 20  # bytes of a configuration
_LARGE = 1e30  # no alpha or rank; Inf and NaN are none either
_ALPHAS = ("lora_alpha", "alpha")  # of LoRA, of LoHa and LoKr
_SLOW = re.compile(r"\)[*+?{]|(?:[*+{].*){5}", re.DOTALL)
"""A repeated group, or many repetitions: matching may take exponential time, or a high power of the name's length."""


@dataclass(frozen=True)
class PeftSettings:
    """``values`` are those of the file, ``where`` it is."""

    where: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def alpha(self, module: str) -> float | None:
        """Alpha of a module; None where nothing is said. InputRefused for what is no number."""
        return self._number(module, "alpha_pattern", *_ALPHAS)

    def rank(self, module: str) -> float | None:
        """The rank of a module, as ``alpha``."""
        return self._number(module, "rank_pattern", "r")

    def is_rescaled(self, module: str) -> bool:
        """Whether alpha is divided by √rank (rs-LoRA)."""
        return bool(self._value(module, "use_rslora"))

    def _value(self, module: str, name: str) -> Any:
        component = names.component_of(module) or names.UNET
        return self.values.get(f"{component}.{name}", self.values.get(name))

    def _number(self, module: str, pattern: str, *defaults: str) -> float | None:
        """As peft looks it up: the first pattern that fits the end of the module's name, else the value for all."""
        patterns = self._value(module, pattern) or {}
        if not isinstance(patterns, dict):
            raise self._refused(pattern, "an object", patterns)
        for expression, value in patterns.items():
            if self._fits(expression, module):
                return self._checked(pattern, value)
        for name in defaults:
            value = self._value(module, name)
            if value is not None:
                return self._checked(name, value)
        return None

    def _fits(self, expression: str, module: str) -> bool:
        try:
            if _SLOW.search(expression):
                raise re.error("too much is repeated in it")
            return re.fullmatch(rf"(.*\.)?({expression})", module) is not None
        except re.error as error:
            raise self._refused("a pattern of modules", f"a plain regular expression ({error})", expression) from None

    def _checked(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGE:
            raise self._refused(name, "a number", value)
        return float(value)

    def _refused(self, name: str, expected: str, found: Any) -> InputRefused:
        return InputRefused(
            f"{printable(self.where)}: {name} must be {expected}, not {printable(json.dumps(found))}",
            code="damaged",
            path=self.where,
        )


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
    return PeftSettings(where, found if isinstance(found, dict) else {})
