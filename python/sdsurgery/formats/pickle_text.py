"""Values of a pickle as short text, for metadata and listings: bounded in length and depth, without recursion."""

from __future__ import annotations

from ..errors import printable
from .numpy_values import ARRAY, array
from .pickle_graph import BOOL, DICT, FLOAT, GLOBAL, INT, LIST, NONE, OMITTED, OPAQUE, SET, TEXT, TUPLE, Graph

MAX_LENGTH = 4096  # characters of one value's text, about
MAX_DEPTH = 8
MAX_ITEMS = 100  # of one container


def render(graph: Graph, root: int, limit: int = MAX_LENGTH) -> str:
    """A value as JSON-like text of about ``limit`` characters; what is longer, wider or deeper is cut with an
    ellipsis.
    """
    out: list[str] = []
    length = 0
    stack: list[tuple[int | None, str, int]] = [(root, "", 0)]  # (node or None, text before it, depth)
    while stack:
        node, text, depth = stack.pop()
        if node is not None:
            text += _opening(graph, node, depth, limit)
            if depth < MAX_DEPTH:
                stack.extend(reversed(_inside(graph, node, depth + 1)))
        out.append(text)
        length += len(text)
        if length > limit:
            out.append("…")
            break
    return "".join(out)


def _opening(graph: Graph, node: int, depth: int, limit: int) -> str:
    """The text of a scalar, or the opening bracket of a container."""
    kind, value = graph.kinds[node], graph.values[node]
    if kind in (NONE, BOOL):
        return {None: "null", True: "true", False: "false"}[value]
    if kind in (INT, FLOAT):
        return repr(value)
    if kind == TEXT:
        return printable(value, limit) if depth == 0 else f'"{printable(value, limit)}"'
    if kind == GLOBAL:
        return printable(value)
    if kind == OMITTED:
        return f"<{value}>"
    if kind == OPAQUE:
        return str(array(graph, node) or f"<{printable(value.name)}>")
    if kind in (DICT, LIST, TUPLE, SET):
        left, right = "{}" if kind == DICT else "[]"
        return left if depth < MAX_DEPTH else f"{left}…{right}"
    return f"<{graph.describe(node)}>"


def _inside(graph: Graph, node: int, depth: int) -> list[tuple[int | None, str, int]]:
    """What follows the opening: children with the text before each, and the closing bracket."""
    kind, value = graph.kinds[node], graph.values[node]
    if kind == OPAQUE and value.name == ARRAY:
        return []
    if kind == OPAQUE:
        result = [(part, "", depth) for part in (value.args, value.state) if part is not None and graph.values[part]]
        if value.items:
            pairs = len(value.items) % 2 == 0 and all(
                graph.kinds[key] == TEXT for key in value.items[: 2 * MAX_ITEMS : 2]
            )
            result += [(None, "{" if pairs else "[", depth), *_listed(value.items, pairs, depth)]
        return result
    return _listed(value, kind == DICT, depth) if kind in (DICT, LIST, TUPLE, SET) else []


def _listed(items: list[int], pairs: bool, depth: int) -> list[tuple[int | None, str, int]]:
    step = 2 if pairs else 1
    shown = min(len(items), MAX_ITEMS * step)
    result: list[tuple[int | None, str, int]] = []
    for at in range(0, shown, step):
        result.append((items[at], ", " if at else "", depth))
        if pairs:
            result.append((items[at + 1], ": ", depth))
    more = f", … (+{(len(items) - shown) // step})" if shown < len(items) else ""
    return [*result, (None, more + ("}" if pairs else "]"), depth)]
