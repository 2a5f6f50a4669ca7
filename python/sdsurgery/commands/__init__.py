"""The commands of the command line, one file each, in the order in which ``--help`` lists them.

A command's module has ``HELP`` (one line), ``arguments(parser)`` and ``run(args)``, which returns the exit code. It is
imported when its command is used; importing it costs next to nothing (``--help`` imports all of them).
"""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple

NAMES = (
    "merge",
    "cast",
    "ema",
    "prune",
    "fix-clip",
    "extract",
    "replace",
    "inspect",
    "verify",
    "methods",
    "layouts",
    "info",
    "demo",
)


class Command(NamedTuple):
    """One command: its name, its line in ``--help``, and what it takes and does."""

    name: str
    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def command(name: str) -> Command:
    """The command of that name (one of ``NAMES``)."""
    module = importlib.import_module("." + name.replace("-", "_"), __name__)
    return Command(name, module.HELP, module.arguments, module.run)
