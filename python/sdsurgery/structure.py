"""How tensors lie in a pickle: nested under a key, flat, or in a tree of dicts and lists with plain values between.

Readers of torch files look for a certain structure: a checkpoint's is ``{"state_dict": {name: tensor}}``, a diffusers
``.bin`` is flat, an embedding of the web UI has ``string_to_param``, a hypernetwork integer keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Ref(NamedTuple):
    """A tensor's place in a tree, by its name in the table."""

    name: str


class Structure(NamedTuple):
    """Where the tensors of a file lie.

    ``path``: the keys that lead to them. ``tree``: dicts (with text or integer keys), lists, tuples, plain values and
    :class:`Ref`; None where they lie side by side under their own names.
    """

    path: tuple[str, ...] = ("state_dict",)
    tree: Any = None

    @property
    def nested(self) -> bool:
        """Whether it is a checkpoint's, in which metadata have a place beside the tensors."""
        return self == NESTED

    def names(self) -> set[str]:
        """The tensors that the tree has places for."""
        found: set[str] = set()
        _walk(self.tree, found.add)
        return found

    def value(self, names: Collection[str]) -> Any:
        """The file's value with a ``Ref`` for each of ``names``; what the tree has beside them stays, other tensors'
        places go."""
        value = {name: Ref(name) for name in names} if self.tree is None else _kept(self.tree, frozenset(names))
        for key in reversed(self.path):
            value = {key: value}
        return value


NESTED, FLAT = Structure(), Structure(())


def _walk(item: Any, found: Callable[[str], None]) -> None:
    if isinstance(item, Ref):
        found(item.name)
    elif isinstance(item, dict):
        for value in item.values():
            _walk(value, found)
    elif isinstance(item, list | tuple):
        for value in item:
            _walk(value, found)


def _kept(item: Any, names: frozenset[str]) -> Any:
    if isinstance(item, dict):
        return {key: _kept(value, names) for key, value in item.items() if _stays(value, names)}
    if isinstance(item, list | tuple) and not isinstance(item, Ref):
        return type(item)(_kept(value, names) for value in item if _stays(value, names))
    return item


def _stays(item: Any, names: frozenset[str]) -> bool:
    return not isinstance(item, Ref) or item.name in names


# What readers look for, from the names of an output, its title, and the plain values that it had beside its tensors.

Beside = Mapping[str, Any]


def flat(names: Sequence[str], title: str, beside: Beside) -> Structure:
    """Side by side under their own names: diffusers, transformers, adapters."""
    return FLAT


def by_head(names: Sequence[str], title: str, beside: Beside) -> Structure:
    """A dict for each first segment of the names: IP adapters."""
    tree: dict[str, dict[str, Ref]] = {}
    for name in names:
        head, _, rest = name.partition(".")
        tree.setdefault(head, {})[rest] = Ref(name)
    return Structure((), tree)


def embedding(names: Sequence[str], title: str, beside: Beside) -> Structure:
    """Textual inversion as AUTOMATIC1111's ``modules/textual_inversion`` writes it; two encoders' vectors are flat."""
    if len(names) != 1:
        return FLAT
    usual = {"name": title, "step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    tree = {"string_to_token": {"*": 265}, "string_to_param": {"*": Ref(names[0])}, **usual}
    return Structure((), {**tree, **{key: value for key, value in beside.items() if key in usual and key != "name"}})


def hypernetwork(names: Sequence[str], title: str, beside: Beside) -> Structure:
    """Integer widths, each with the networks for keys and values: AUTOMATIC1111's ``modules/hypernetworks``."""
    tree: dict[Any, Any] = {}
    for name in names:
        width, _, rest = name.partition(".")
        half, _, key = rest.partition(".")
        if not (width.isdecimal() and half in ("0", "1")):
            return NESTED
        tree.setdefault(int(width), ({}, {}))[int(half)][key] = Ref(name)
    return Structure((), {**tree, **beside})
