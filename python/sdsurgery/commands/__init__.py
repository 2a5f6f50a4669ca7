"""The commands of the command line, one file each, in the order in which ``--help`` lists them.

A command's module has ``HELP`` (one line), ``arguments(parser, argv)`` and ``run(args)``, which returns the exit code.
``argv`` are the command line's, for a command whose options depend on one of them (merge, on its method). It is
imported when its command is used; importing it costs next to nothing (``--help`` imports all of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

NAMES = (
    "merge",
    "bake",
    "extract-lora",
    "merge-lora",
    "resize-lora",
    "cast",
    "ema",
    "prune",
    "fix-clip",
    "extract",
    "replace",
    "convert",
    "inspect",
    "compare",
    "unmix",
    "map",
    "verify",
    "scan",
    "methods",
    "layouts",
    "info",
    "demo",
    "completion",
)


class Command(Protocol):
    """What a command's module offers."""

    HELP: str

    def arguments(self, parser: ArgumentParser, argv: Sequence[str]) -> None: ...
    def run(self, args: Namespace) -> int: ...


def command(name: str) -> Command:
    """The module of the command of that name (one of ``NAMES``)."""
    module: Any = import_module("." + name.replace("-", "_"), __name__)
    found: Command = module
    return found
