"""The structure of a pickle as a value: what lies around the tensors, so that an output can have it too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..structure import FLAT, NESTED, Ref, Structure
from .pickle_graph import BOOL, DICT, FLOAT, INT, LIST, NONE, OPAQUE, TENSOR, TEXT, TUPLE, Graph

MAX_NODES = 20_000
"""Of a tree that is kept; what is larger is a state dict, which is flat."""
MAX_DEPTH = 16
_PLAIN = (NONE, BOOL, INT, FLOAT, TEXT)


class _TooLargeError(Exception):
    pass


def structure_of(
    graph: Graph, base: int, path: list[str], names: Collection[str], children: Callable[[int], dict[str, int] | None]
) -> Structure | None:
    """The structure of a file whose tensors, by these ``names``, lie below ``base``, to which ``path`` leads.

    ``children`` gives the named children of a container. None where the file holds one bare tensor.
    """
    below = children(base)
    if below is None:
        return None
    if path and path[0] == "state_dict":
        return NESTED
    if all(graph.kinds[child] == TENSOR for child in below.values()):
        return Structure(tuple(path)) if path else FLAT
    try:
        tree = _Reader(graph, names, children).tree(base, "", 0)
    except _TooLargeError:
        tree = None
    return Structure(tuple(path), tree)


class _Reader:
    def __init__(self, graph: Graph, names: Collection[str], children: Callable[[int], dict[str, int] | None]) -> None:
        self.graph, self.names, self.children, self.left = graph, names, children, MAX_NODES

    def tree(self, node: int, name: str, depth: int) -> Any:
        """A node with everything below it; ``name`` is what its tensors' names begin with."""
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise _TooLargeError
        kind, value = self.graph.kinds[node], self.graph.values[node]
        if kind == TENSOR:
            return Ref(name) if name in self.names else None
        if kind in _PLAIN:
            return value
        if kind in (LIST, TUPLE):
            items = [self.tree(child, _below(name, str(index)), depth + 1) for index, child in enumerate(value)]
            return items if kind == LIST else tuple(items)
        if kind == DICT:
            return self._dict(value, name, depth)
        if kind == OPAQUE:
            below = self.children(node)
            if below is not None:
                return {key: self.tree(child, _below(name, key), depth + 1) for key, child in below.items()}
        return None

    def _dict(self, items: list[int], name: str, depth: int) -> dict[Any, Any]:
        found = {}
        for at in range(0, len(items), 2):
            if self.graph.kinds[items[at]] in (TEXT, INT):
                key = self.graph.values[items[at]]
                found[key] = self.tree(items[at + 1], _below(name, str(key)), depth + 1)
        return found


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
