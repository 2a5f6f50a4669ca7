"""Imports go one way: no circle, and nothing imports what stands before it in the row (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "sdsurgery"

ROWS = {
    "command line": "__main__ cli commands report.ancestry report.bars report.console report.inspection",
    "library": "api interop.calls interop.saving",
    "recipe": "composition recipe",
    "surgery": "surgery report.command report.formula report.heatmap report.html report.distances testing",
    "inputs": "checkpoint encodings formats layouts interop adapters",
    "outline": "outline placing metadata ancestors",
    "engine": "engine file_hashes hashing",
    "backends": "backends gpu",
    "plan": "operands plan program functions definitions methods",
    "ground floor": "discovery dtypes errors files log report report.fitting report.progress report.warnings "
    "settings strict_json structure suggest",
}
"""A module imports its own row and those below. The Plan goes from the outline to the backends: engine and backends
read it, and it knows none of them. Only a registry imports what it finds by name, so that is not in the text."""


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del found[""]  # the public names, each imported on first use
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules that ``name`` imports, at once or within a function; importing ``a.b`` imports ``a`` too."""
    path = MODULES[name]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("sdsurgery")):
            parts = (node.module or "").split(".") if node.module else []
            base = [*package[: len(package) - node.level + 1], *parts] if node.level else parts[1:]
            found |= {target for alias in node.names if (target := known(".".join([*base, alias.name])))}
        elif isinstance(node, ast.Import):
            found |= {target for alias in node.names if (target := known(alias.name.removeprefix("sdsurgery.")))}
    parents = {parent for target in found if (parent := target.rpartition(".")[0]) and not within(name, parent)}
    return (found | parents) - {name}


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers see."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children: list[ast.AST] = [*node.orelse]
    else:
        children = [*ast.iter_child_nodes(node)]
    for child in children:
        yield from nodes(child)


def known(name: str) -> str:
    """The module that an imported name is, or lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports."""
    return {name: imported(name) for name in MODULES}


def row(name: str) -> int:
    """The row of the longest entry that the module lies in."""
    entries = {entry: number for number, words in enumerate(ROWS.values()) for entry in words.split()}
    around = [entry for entry in entries if within(name, entry)]
    assert around, f"{name} is in no row"
    return entries[max(around, key=len)]


def test_there_is_no_circle() -> None:
    left = dict(imports())
    while leaves := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in leaves:
            del left[name]
    # A module that only imports a circle isn't part of it.
    while tops := [name for name in left if not any(name in needed for needed in left.values())]:
        for name in tops:
            del left[name]
    assert {name: sorted(needed & left.keys()) for name, needed in left.items()} == {}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_nothing_that_stands_before_it(name: str) -> None:
    assert [target for target in imports()[name] if row(target) < row(name)] == []


def test_every_entry_of_the_table_is_a_module() -> None:
    entries = [entry for words in ROWS.values() for entry in words.split()]
    assert [entry for entry in entries if entry not in MODULES] == []
    assert len(entries) == len(set(entries))


def test_imports_are_found_wherever_they_stand() -> None:
    assert "recipe" in imports()["api.merging"]  # in a function
    assert "surgery.merge" in imports()["recipe"]
    assert "composition" not in imports()["surgery.merge"]  # for type checkers
    assert {"formats", "formats.strangers"} <= imports()["checkpoint"]


def test_nothing_reaches_into_the_internals_of_another_package() -> None:
    """No private module, and no private name of a module from elsewhere (``os._exit``, ``argparse._…``)."""
    found = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        foreign = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                foreign |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
                private = [
                    word for word in ((node.module or ""), *(each.name for each in node.names)) if word[:1] == "_"
                ]
            else:
                continue
            found += [f"{name}: {word}" for word in private]
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        private = [f"{node.value.id}.{node.attr}" for node in used if node.value.id in foreign and node.attr[:1] == "_"]
        found += [f"{name}: {word}" for word in private if "__" not in word]
    # The renamed modules of Python 2, by which an unpickler goes: the table has no public name.
    assert set(found) <= {"formats.pickle_names: _compat_pickle"}, found


def test_public_functions_name_the_types_of_their_keywords() -> None:
    """No ``**given: Any``: a mistyped keyword must fail under mypy."""
    found = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None:
                kind = node.args.kwarg.annotation
                if kind is None or ast.unparse(kind) in ("Any", "object"):
                    found.append(f"{name}.{node.name}")
    assert not found, found
