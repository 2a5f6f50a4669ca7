"""A JSON text read step by step, exactly as serde_json reads it, over which the reference safetensors is built.

Used instead of ``json.loads``: a hostile text can then neither exhaust the stack nor build millions of objects that
nothing needs, and serde_json's rules (depth, numbers, surrogates) hold exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import NoReturn

from ..errors import InputRefused, printable

U64_MAX = 2**64 - 1
UINT = "(?:0|[1-9][0-9]{0,18})"
"""A whole number that is always below 2**64, as a regular expression."""

_I32_MAX = 2**31 - 1
_MAX_DEPTH = 127  # serde_json opens at most this many arrays and objects inside one another

_BLANKS = r"[ \t\n\r]*"
_NUMBER = r"-?(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?"
_WORD = "true|false|null"
_SIZES = r"[0-9, \t\n\r]*"
_LONG_SIZE = "[0-9]{21}"
_SURROGATE = "[\ud800-\udfff]"

_pattern = cache(re.compile)  # an ordinary header needs hardly any of them

# Runs of plain items inside an array and inside an object: what makes passing over a large ignored value cheap. The
# repetition is bounded because the regex engine keeps a little memory for each round.
_TEXT = r'"[^"\\\x00-\x1f]*"'
_PLAIN_VALUE = rf"(?:{_TEXT}|-?{UINT}|true|false|null|\[\]|\{{\}})"
_GAP = _BLANKS
_PLAIN = {
    "]": rf"(?:{_GAP}{_PLAIN_VALUE}{_GAP},){{1,256}}",
    "}": rf"(?:{_GAP}{_TEXT}{_GAP}:{_GAP}{_PLAIN_VALUE}{_GAP},){{1,256}}",
}


class Cursor:
    """A position in a JSON text that accepts exactly what serde_json accepts and builds only what is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, what: str) -> NoReturn:
        raise InputRefused(f"header is not valid JSON at character {self.at}: {what}")

    def found(self) -> str:
        """What stands here, for messages."""
        return f"'{printable(self.text[self.at])}'" if self.at < len(self.text) else "its end"

    def peek(self) -> str:
        """The next character that is not a blank; empty at the end."""
        char = self.text[self.at : self.at + 1]
        if char and char in " \t\n\r":
            self.at = _pattern(_BLANKS).match(self.text, self.at).end()  # type: ignore[union-attr]
            char = self.text[self.at : self.at + 1]
        return char

    def take(self, char: str) -> None:
        if self.peek() != char:
            self.fail(f"expected '{char}', found {self.found()}")
        self.at += 1

    def string(self) -> str:
        """A string, unescaped. Unlike the json module's, it may not contain half a surrogate pair."""
        self.take('"')
        start = self.at
        try:
            value, self.at = scanstring(self.text, start, True)
        except ValueError as error:
            self.at = getattr(error, "pos", start)
            self.fail(getattr(error, "msg", "bad string").lower().removesuffix(" at").removesuffix(" starting"))
        if self.text.find("\\u", start, self.at) >= 0 and _pattern(_SURROGATE).search(value):
            self.at = start
            self.fail("a string holds half a surrogate pair")
        return value

    def word(self) -> str:
        """``true``, ``false`` or ``null`` if one stands here, else an empty text."""
        self.peek()
        word = _pattern(_WORD).match(self.text, self.at)
        if not word:
            return ""
        self.at = word.end()
        return word.group()

    def number(self) -> None:
        """Check and pass a number. One that is too large for a double is refused, as serde_json does."""
        number = _pattern(_NUMBER).match(self.text, self.at)
        if not number:
            self.fail(f"expected a value, found {self.found()}")
        if _beyond_double(*number.groups(default="")):
            self.fail("a number is out of range")
        self.at = number.end()

    def members(self, of: str) -> Iterator[str]:
        """The keys of an object, one by one; the caller takes each value before it asks for the next key."""
        if self.peek() != "{":
            self.fail(f"expected '{{' to begin {of}, found {self.found()}")
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            yield self._key()
            if self.peek() == "}":
                self.at += 1
                return
            self.take(",")

    def _key(self) -> str:
        key = self.string()
        self.take(":")
        return key

    def sizes(self, name: str, field: str) -> tuple[int, ...]:
        """A list of whole numbers below 2**64."""
        end = -1 if self.peek() != "[" else self.text.find("]", self.at)
        wanted = f"{field} of tensor '{printable(name)}' is not a list of whole numbers below 2^64"
        if (
            end < 0
            or not _pattern(_SIZES).fullmatch(self.text, self.at + 1, end)
            or _pattern(_LONG_SIZE).search(self.text, self.at, end)
        ):
            raise InputRefused(wanted)
        try:
            values = tuple(json.loads(self.text[self.at : end + 1]))
        except ValueError:
            raise InputRefused(wanted) from None
        if values and max(values) > U64_MAX:
            raise InputRefused(wanted)
        self.at = end + 1
        return values

    def skip(self, depth: int) -> None:
        """Check one value of any kind and forget it. ``depth`` arrays and objects are open around it."""
        closers: list[str] = []
        while True:
            if closers:
                if depth + len(closers) < _MAX_DEPTH:
                    self._skip_plain(_pattern(_PLAIN[closers[-1]]))
                if closers[-1] == "}":
                    self._key()
            char = self.peek()
            if char in ("{", "["):
                if depth + len(closers) >= _MAX_DEPTH:
                    self.fail(f"more than {_MAX_DEPTH} arrays and objects inside one another")
                self.at += 1
                closer = "}" if char == "{" else "]"
                if self.peek() != closer:
                    closers.append(closer)
                    continue
                self.at += 1
            elif char == '"':
                self.string()
            elif not self.word():
                self.number()
            while closers:  # a value has ended: the next one, or the end of what holds it
                if self.peek() == ",":
                    self.at += 1
                    break
                self.take(closers.pop())
            else:
                return

    def _skip_plain(self, items: re.Pattern[str]) -> None:
        while run := items.match(self.text, self.at):
            self.at = run.end()


def _beyond_double(whole: str, fraction: str, sign: str, exponent: str) -> bool:
    """Whether serde_json calls this number out of range.

    It keeps the leading digits that fit into 64 bits and scales once by a power of ten, so that the border differs by
    a few units in the last place from that of correct rounding.
    """
    kept = len(whole) if len(whole) < 20 else 20 if int(whole[:20]) <= U64_MAX else 19
    significand, scale = int(whole[:kept]), len(whole) - kept
    if not significand:
        significant = fraction.lstrip("0")
        scale -= len(fraction) - len(significant)
        fraction = significant
    for digit in fraction[:20]:
        longer = significand * 10 + int(digit)
        if longer > U64_MAX:
            break
        significand, scale = longer, scale - 1
    if not significand:
        return False
    exponent = exponent.lstrip("0")
    if len(exponent) > 10 or int(exponent or "0") > _I32_MAX:
        return sign != "-"
    scale += -int(exponent or "0") if sign == "-" else int(exponent or "0")
    return scale > 308 or (scale >= 0 and float(significand) * float(f"1e{scale}") == float("inf"))
