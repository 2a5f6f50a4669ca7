"""JSON and texts of metadata: what is written must be readable everywhere, and what is read is a stranger's."""

from __future__ import annotations

import json
from math import isinf
from typing import Any

from .errors import UsageError

_MAX_PARSED = 4_000_000
_MAX_DEPTH = 100


def clean(text: str) -> str:
    """``text`` in a form that can be written: a file name that is not valid Unicode holds lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_text(value: object) -> bool:
    return isinstance(value, str) and (value.isascii() or clean(value) == value)


def dump(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise UsageError(
            "a parameter is not a finite number, so that the recipe cannot be stored", code="bad_value"
        ) from None


def cost(value: object) -> int:
    """Bytes that a value takes in the header, where the JSON text is a string itself."""
    return len(json.dumps(json.dumps(value))) + 2


def parse(text: object) -> Any:
    """A JSON value from an untrusted text; None when it is not strict JSON, too long or nested too deeply."""
    if not isinstance(text, str) or len(text) > _MAX_PARSED:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return None if _is_deep(value) else value


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _integer(text: str) -> int:
    if len(text) > 40:  # converting a long number costs quadratic time
        raise ValueError("a number of too many digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise ValueError("a number out of range")
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
