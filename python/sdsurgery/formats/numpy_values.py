"""NumPy's scalars and arrays in a pickle: small ones as plain numbers. NumPy itself is not needed, and never asked.

A dtype is stored as ``dtype('f8', False, True)`` with the state (3, '<', …), a scalar as ``scalar(dtype, bytes)``, an
array as ``_reconstruct(…)`` with the state (1, shape, dtype, Fortran order, bytes), or under protocol 5 as
``_frombuffer(bytes, dtype, shape, order)`` (NumPy's ``__reduce__`` and ``__reduce_ex__``).
"""

from __future__ import annotations

from math import prod
from struct import unpack
from typing import NamedTuple

from .pickle_graph import BOOL, BYTES, FLOAT, INT, OPAQUE, TEXT, TUPLE, Graph

ARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"  # names of the opaque values
MAX_RANK = 64

_CODES = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
    "u1": "B", "b1": "?",
}  # fmt: skip


class Array(NamedTuple):
    """An array: its dtype (``f4``; ``?`` for one that is not a number's) and shape. ``numbers``, row by row, are those
    of a small one, None where they were not kept.
    """

    code: str
    shape: tuple[int, ...]
    numbers: tuple[float, ...] | None

    @property
    def brief(self) -> str:
        return f"NumPy array {self.code} {list(self.shape)}"

    def __str__(self) -> str:
        if self.numbers is None:
            return f"<{self.brief}>"
        texts = [repr(number).lower() for number in self.numbers]
        if not texts:
            return "[]"
        for size in reversed(self.shape):
            texts = [f"[{', '.join(texts[at : at + size])}]" for at in range(0, len(texts), size)]
        return texts[0]


def scalar(graph: Graph, args: list[int]) -> int:
    """scalar(dtype('f8'), bytes): the number. Of any other dtype it stays opaque."""
    if len(args) == 2 and graph.kinds[args[1]] == BYTES:
        order, code = _dtype(graph, args[0])
        if code and len(graph.values[args[1]]) == int(code[1:]):
            value = unpack(order + _CODES[code], graph.values[args[1]])[0]
            return graph.add(BOOL if code == "b1" else FLOAT if code[0] == "f" else INT, value)
    return graph.opaque("numpy.generic", None)


def array(graph: Graph, node: int) -> Array | None:
    """The array that a node holds, None for any other value."""
    if graph.kinds[node] != OPAQUE or graph.values[node].name != ARRAY:
        return None
    state, args = (_items(graph, part) for part in (graph.values[node].state, graph.values[node].args))
    if len(state) == 5:
        _, shape_node, dtype, turned, data = state
        fortran = graph.values[turned] is not False
    elif len(args) == 4:
        data, dtype, shape_node, order_node = args
        fortran = graph.values[order_node] != "C"
    else:
        return Array("?", (), None)
    shape = tuple(graph.values[item] for item in _items(graph, shape_node) if graph.kinds[item] == INT)
    order, code = _dtype(graph, dtype)
    kept = graph.values[data] if graph.kinds[data] == BYTES else b""
    count = prod(shape) if len(shape) <= MAX_RANK and min(shape, default=0) >= 0 else -1
    if not code or (fortran and len(shape) > 1) or count < 0 or len(kept) != count * int(code[1:]):
        return Array(code or "?", shape[:MAX_RANK], None)
    return Array(code, shape, unpack(f"{order}{count}{_CODES[code]}", kept))


def _items(graph: Graph, node: int | None) -> list[int]:
    return graph.values[node] if node is not None and graph.kinds[node] == TUPLE else []


def _dtype(graph: Graph, node: int) -> tuple[str, str]:
    """Byte order and code of a dtype; the code is empty when it is not one of a number."""
    if graph.kinds[node] != OPAQUE or graph.values[node].name != DTYPE:
        return "<", ""
    args, state = _items(graph, graph.values[node].args), _items(graph, graph.values[node].state)
    if not args or graph.kinds[args[0]] != TEXT or graph.values[args[0]] not in _CODES:
        return "<", ""
    return ">" if len(state) > 1 and graph.values[state[1]] == ">" else "<", graph.values[args[0]]
