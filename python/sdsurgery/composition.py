"""A recipe's tree as one method of its leaves, so that a merge of merges runs in one pass.

The bodies of the calls, one in the other, are evaluated in float32 and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .adapters.lora import Lora
from .errors import UsageError
from .methods.registry import Method, Param, Parameter, Whole
from .methods.written import letter


class Part(NamedTuple):
    """A call within a tree. ``prefix`` is the path of input names to it; ``inputs`` are parts, or numbers of leaves."""

    method: Method
    prefix: str
    inputs: tuple[Part | int, ...]

    def value(self, leaves: Mapping[int, Any], numbers: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
        """The bodies of the tree, one in the other; ``roles`` by path, where a method asks for the tensor's."""
        inputs = [
            item.value(leaves, numbers, roles) if isinstance(item, Part) else leaves[item] for item in self.inputs
        ]
        own = {"role": roles[self.prefix]} if self.prefix in roles else {}
        return self.method.body(*inputs, **own, **{name: numbers[self.prefix + name] for name in self.method.params})

    def methods(self) -> dict[str, Method]:
        """All methods of the tree, by path."""
        found = {self.prefix: self.method}
        for item in self.inputs:
            found |= item.methods() if isinstance(item, Part) else {}
        return found

    def parameters(self) -> dict[str, Parameter]:
        """All parameters of the tree, by path and name; so are the other names that they have."""
        found: dict[str, Parameter] = {}
        for name, param in self.method.params.items():
            found[self.prefix + name] = param._replace(also=" ".join(self.prefix + each for each in param.also.split()))
        for item in self.inputs:
            found |= item.parameters() if isinstance(item, Part) else {}
        return found

    def lettered(self) -> dict[str, Any]:
        inputs = [item.lettered() if isinstance(item, Part) else letter(item) for item in self.inputs]
        return {"method": self.method.name, "inputs": inputs}

    def leaves(self) -> set[int]:
        return {n for item in self.inputs for n in (item.leaves() if isinstance(item, Part) else {item})}

    def plain(self) -> set[int]:
        """Those that enter otherwise than through a difference."""
        names = (*self.method.inputs, *([""] * len(self.inputs)))
        others = [item for name, item in zip(names, self.inputs, strict=False) if name not in self.method.differences]
        return {n for item in others for n in (item.plain() if isinstance(item, Part) else {item})}

    def without(self, absent: frozenset[int]) -> Part | int | None:
        """What is left for a tensor that these leaves lack: a call whose first input lacks it has no result, one of
        whose other inputs lacks it leaves the first unchanged."""
        left = [
            item.without(absent) if isinstance(item, Part) else None if item in absent else item for item in self.inputs
        ]
        kept = [item for item in left if item is not None]
        return Part(self.method, self.prefix, tuple(kept)) if len(kept) == len(left) else left[0]


class Composition(NamedTuple):
    """A call as one method of its leaves, which are models of a recipe. A file that is used twice is one of them.
    Parameters are named by path: ``alpha`` of the root's input B is ``B.alpha``."""

    leaves: tuple[Any, ...]
    method: Method
    params: Mapping[str, Any]
    blocks: Any
    rules: Any
    root: Part
    loras: tuple[Lora, ...] = ()  # applied to the result

    @property
    def is_tree(self) -> bool:
        """Whether it is more than one call of different files."""
        return self.root.inputs != tuple(range(len(self.leaves)))

    def lettered(self) -> list[Any]:
        """The root's inputs in JSON types, files by their letters: what the output's metadata say."""
        return [item.lettered() if isinstance(item, Part) else letter(item) for item in self.root.inputs]

    def numbers(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with other numbers for some of them, or lists of numbers. UsageError for an unknown one, one
        that the recipe gives a list of weights instead, and what is not a finite number."""
        ratios = {name: param for name, param in self.method.params.items() if isinstance(param, Param | Whole)}
        found = dict(self.params)
        for name, value in replace(self.method, params=ratios).named(given).items():
            several = isinstance(value, list | tuple)
            numbers = [
                ratios[name].bound(self.method.name, name, each, len(self.leaves))
                for each in (value if several else [value])
            ]
            if self.params[name] is None:
                text = f"the recipe has weights= instead of '{name}'; change them in the recipe"
                raise UsageError(text, code="conflict")
            found[name] = numbers if several else numbers[0]
        return found

    def without(self, absent: frozenset[int]) -> tuple[Method, tuple[int, ...]] | None:
        """The method for a tensor that the leaves ``absent`` lack, and the leaves that it takes; None where the first
        is left unchanged."""
        left = self.root.without(absent)
        return as_method(left, self.params) if isinstance(left, Part) else None


def as_method(part: Part, params: Mapping[str, Any]) -> tuple[Method, tuple[int, ...]]:
    taken = tuple(sorted(part.leaves()))

    methods = part.methods()
    with_roles = {prefix: method.roles for prefix, method in methods.items() if method.roles}

    def body(*inputs: Any, role: str = "", **numbers: float) -> Any:
        roles = dict(zip(with_roles, role.split("\n"), strict=True)) if role else {}
        return part.value(dict(zip(taken, inputs, strict=True)), {**params, **numbers}, roles)

    def roles(name: str, family: str) -> str:
        """Those that a tensor has for the tree's methods; empty where it is an ordinary one for all."""
        found = [of(name, family) for of in with_roles.values()]
        return "\n".join(found) if any(found) else ""

    names = tuple(letter(number) for number in taken)
    plain = {letter(number) for number in part.plain()}
    return Method(
        part.method.name, names, part.parameters(), body, frozenset(names) - plain,
        roles=roles if with_roles else None, block=block_table(methods.values()),
    ), taken  # fmt: skip


def block_table(methods: Iterable[Method], weights: bool = False) -> Callable[[str, str | None], str | None] | None:
    """How all methods of a tree count merge blocks; UsageError where there are block weights and they differ."""
    tables = {method.block for method in methods}
    if len(tables) > 1 and weights:
        names = ", ".join(method.name for method in methods)
        raise UsageError(
            f"{names} count merge blocks in different ways; save the result of one first, and merge that file by the "
            "other",
            code="conflict",
        )
    return tables.pop() if len(tables) == 1 else None
