"""Single-linkage clusters of a map's files as a drawing: rows of leaves, and joins at their distances.

The clusters are those of the shortest tree that joins all (Gower & Ross, 1969), which ``map`` has found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..surgery.relations import Relations


class Node(NamedTuple):
    """A leaf or join: its distance (0 for a leaf) and its row."""

    height: float
    row: float


class Dendrogram(NamedTuple):
    """``order``: the files' numbers from the first row to the last. ``joins``: each with the two nodes that it joins,
    the upper first. ``longest``: the largest distance. Files that share no weight with others are not joined."""

    order: list[int]
    joins: list[tuple[Node, Node, Node]]
    longest: float


class _Cluster(NamedTuple):
    members: list[int]
    below: tuple[_Cluster, _Cluster] | None
    height: float


def dendrogram(found: Relations) -> Dendrogram:
    """Of the map's tree."""
    number = {path: k for k, path in enumerate(found.files)}
    clusters: dict[int, _Cluster] = {k: _Cluster([k], None, 0.0) for k in range(len(found.files))}
    links = sorted((link for link in found.tree if link["distance"] is not None), key=lambda link: link["distance"])
    for link in links:
        pair = sorted(
            (clusters[number[link["from"]]], clusters[number[link["to"]]]), key=lambda each: min(each.members)
        )
        joined = _Cluster(pair[0].members + pair[1].members, (pair[0], pair[1]), float(link["distance"]))
        for k in joined.members:
            clusters[k] = joined
    roots = list({id(each): each for each in clusters.values()}.values())
    order = [k for root in roots for k in root.members]
    rows = {k: float(row) for row, k in enumerate(order)}
    joins: list[tuple[Node, Node, Node]] = []

    def placed(cluster: _Cluster) -> Node:
        if cluster.below is None:
            return Node(0.0, rows[cluster.members[0]])
        low, high = (placed(each) for each in cluster.below)
        node = Node(cluster.height, (low.row + high.row) / 2)
        joins.append((node, low, high))
        return node

    for root in roots:
        placed(root)
    return Dendrogram(order, joins, max((node.height for node, _, _ in joins), default=0.0))
