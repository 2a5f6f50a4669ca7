"""The values that ``pickle_follow`` keeps in place of objects, which are never made."""

from __future__ import annotations

from typing import Any


class Name:
    """A class or function that the pickle named; ``plain`` when the name has no dot."""

    __slots__ = ("label", "plain")

    def __init__(self, label: str, plain: bool) -> None:
        self.label, self.plain = label, plain


class Made:
    """The result of a call of ``label``, or an unknown value (no label). ``blank``: made without arguments."""

    __slots__ = ("blank", "label")

    def __init__(self, label: str = "", blank: bool = False) -> None:
        self.label, self.blank = label, blank


class Blob:
    """A byte string, by its place in the source."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int) -> None:
        self.offset, self.size = offset, size


class LongText(Made):
    """A text too long for a name, by its place in the source; ``text`` itself where the source has it escaped."""

    __slots__ = ("offset", "size", "text")

    def __init__(self, offset: int, size: int, text: str | None = None) -> None:
        super().__init__(blank=True)
        self.offset, self.size, self.text = offset, size, text


class Pairs:
    """A dict: ``odd`` says why setting its items as attributes could make the unpickler call one of them. ``held`` are
    its keys and values in turn, where a reader needs them; None when they are too many."""

    __slots__ = ("held", "odd")

    def __init__(self) -> None:
        self.odd = ""
        self.held: tuple[Any, ...] | None = ()


UNKNOWN = Made(blank=True)
