"""The values of a pickle as an arena of nodes, and the limits of what is read into it.

A node is an index, a container holds indices. Sharing through the memo costs nothing, cycles are harmless, and freeing
or walking a structure a million levels deep needs no recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputRefused, printable
from .pickle_names import modern_name

MAX_PICKLE = 64 << 20  # bytes of one pickle
MAX_OPCODES = 2_000_000  # also bounds the stack: an opcode pushes at most one value
MAX_NODES = 400_000
MAX_MEMO = 400_000
MAX_MARKS = 10_000
MAX_TEXT = 64 << 10  # bytes of one text that is kept; a longer one leaves a note of its length
MAX_TEXT_TOTAL = 24 << 20  # memory of all kept texts together
MAX_BYTES = 256  # bytes of one byte string that is kept
MAX_GLOBAL = 512  # bytes of a module or class name

# Kinds of nodes, and what ``Graph.values`` holds for each.
NONE, BOOL, INT, FLOAT, TEXT, BYTES = range(6)  # None, bool, int (64 bit), float, str, bytes
OMITTED = 6  # str: what was left out (a text too long to keep, an integer over 64 bit)
TUPLE, LIST, DICT, SET = range(7, 11)  # list[int]: nodes; of a DICT, keys and values in turn. A TUPLE's never changes.
GLOBAL = 11  # str: "module.name", a label and nothing more
OPAQUE = 12  # Opaque
STORAGE, TENSOR = 13, 14  # what torch_values makes of them

KIND_NAMES = (
    "None", "bool", "int", "float", "text", "bytes", "omitted value", "tuple", "list", "dict", "set",
    "class or function", "unknown object", "storage", "tensor",
)  # fmt: skip

NONE_NODE, FALSE_NODE, TRUE_NODE, EMPTY_TUPLE_NODE = range(4)

Handler = Callable[["Graph", "list[int]"], int]
"""A row of the closed table: (graph, argument nodes) -> node of the result."""


class TruncatedPickle(InputRefused):
    """The pickle goes on past the bytes given."""


class Opaque:
    """A value of a class that is not in the closed table: its name, arguments, state and items, as nodes."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: int | None) -> None:
        self.name = name
        self.args = args
        self.state: int | None = None
        self.items: list[int] | None = None  # what APPENDS and SETITEMS put in


class Graph:
    """The arena. ``kinds[node]`` and ``values[node]`` describe a node; ``root`` is the pickle's value."""

    def __init__(self) -> None:
        self.kinds = bytearray()
        self.values: list[Any] = []
        self.root = NONE_NODE
        self.globals: dict[str, int] = {}  # label -> times it was named
        self.called: dict[str, int] = {}  # label -> times it would have been called
        self._labels: dict[tuple[str, str], int] = {}
        self._small: dict[int, int] = {}
        self._work = MAX_OPCODES
        self._text = MAX_TEXT_TOTAL
        self.add(NONE, None)
        self.add(BOOL, False)
        self.add(BOOL, True)
        self.add(TUPLE, [])

    def add(self, kind: int, value: Any) -> int:
        """A new node."""
        node = len(self.values)
        if node >= MAX_NODES:
            raise InputRefused(f"pickle: more than {MAX_NODES} values")
        self.kinds.append(kind)
        self.values.append(value)
        return node

    def integer(self, value: int) -> int:
        """A node of an integer; equal small ones share one."""
        if not 0 <= value < 65536:
            return self.add(INT, value)
        node = self._small.get(value)
        if node is None:
            node = self._small[value] = self.add(INT, value)
        return node

    def text(self, raw: bytes | bytearray) -> int:
        """A node of a text from at most MAX_TEXT bytes of UTF-8; its memory is charged before it is decoded."""
        self._text -= len(raw) if raw.isascii() else 4 * len(raw)
        if self._text < 0:
            raise InputRefused(f"pickle: more than {MAX_TEXT_TOTAL >> 20} MiB of text")
        return self.add(TEXT, str(raw, "utf-8", "surrogatepass"))

    def label(self, module: str, name: str) -> int:
        """The node of a global name; Python 2's names are mapped to today's first."""
        node = self._labels.get((module, name))
        if node is None:
            node = self._labels[module, name] = self.add(GLOBAL, _label(module, name))
        label = self.values[node]
        self.globals[label] = self.globals.get(label, 0) + 1
        return node

    def opaque(self, name: str, args: int | None) -> int:
        """A node of an object that is only listed."""
        return self.add(OPAQUE, Opaque(name, args))

    def charge(self, work: int) -> None:
        """Account for ``work`` copied references, so that no handler can be made to copy without end."""
        self._work -= work
        if self._work < 0:
            raise InputRefused("pickle: too much copying between containers")

    def describe(self, node: int) -> str:
        """The kind of a node in words, with the name of a global or of an unknown object."""
        kind, value = self.kinds[node], self.values[node]
        if kind == GLOBAL:
            return f"{KIND_NAMES[kind]} {printable(value)}"
        if kind == OPAQUE:
            return f"{KIND_NAMES[kind]} ({printable(value.name)})"
        return KIND_NAMES[kind]


def _label(module: str, name: str) -> str:
    if "." in name:
        raise InputRefused(f"pickle: the dotted name {printable(module)}.{printable(name)} is not accepted")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise InputRefused(f"pickle: '{printable(module)}', '{printable(name)}' is not the name of a class or function")
    return modern_name(module, name)
