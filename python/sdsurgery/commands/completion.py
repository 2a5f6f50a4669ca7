"""``sdsurgery completion``: a script by which a shell completes commands, options and their words."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from ..errors import UsageError
from ..settings import OPTIONS
from . import NAMES, command
from .common import plain, print_json, print_lines

HELP = "print a script for the shell, which then completes commands, options and files"

_SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("FILE", "PATH", "OUT", "A", "B")
_FOLDERS = ("FOLDER",)


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("shell", choices=_SHELLS, help='as in: eval "$(sdsurgery completion bash)"')


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("shtab") is None:
        raise UsageError(
            "completion needs the package shtab, which is not installed: pip install 'sdsurgery[completion]'"
        )
    import shtab

    script = shtab.complete(_whole(), args.shell)
    return print_json({"shell": args.shell, "script": script}) if args.json else print_lines([script])


def _whole() -> argparse.ArgumentParser:
    """One parser of all commands, whose arguments say what they may be."""
    import shtab

    from ..methods.registry import registered

    parser = argparse.ArgumentParser(prog="sdsurgery")
    parser.add_argument("--version", action="store_true", help="show program's version number and exit")
    commands = parser.add_subparsers()
    for name in NAMES:
        own = commands.add_parser(name, help=command(name).HELP, description=command(name).HELP)
        command(name).arguments(own, [])
        for argument in own._actions:
            option = OPTIONS.get(argument.dest)
            if argument.dest == "method":
                argument.choices = sorted(registered())
            elif option is not None and option.words:
                argument.choices = option.words
            elif str(argument.metavar).startswith(_FOLDERS):
                argument.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif argument.metavar is not None and str(argument.metavar).partition(".")[0] in _FILES:
                argument.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser
