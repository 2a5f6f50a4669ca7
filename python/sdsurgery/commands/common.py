"""What commands share: options that many of them take, and the way to standard output."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

from ..errors import Failure, RunFailed, UsageError, printable
from ..settings import DEFAULTS, OPTIONS, OUTPUT, WRITING, dtype_word
from .spelling import in_shell

_CLOSED = "cannot write to standard output: it is closed"


# ---- options


class Arguments(Protocol):
    """A parser, or a group of its arguments."""

    @property
    def add_argument(self) -> Callable[..., argparse.Action]: ...
    @property
    def add_mutually_exclusive_group(self) -> Callable[..., Arguments]: ...


def group(parser: argparse.ArgumentParser, title: str) -> Arguments:
    """The group of that title, under which ``--help`` lists what is added to it; made when it is first asked for."""
    made = next((each for each in parser._action_groups if each.title == title), None)
    return made or parser.add_argument_group(title)


def plain(parser: argparse.ArgumentParser) -> None:
    """Options of every command."""
    shown = group(parser, "what is printed")
    shown.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    noise = shown.add_mutually_exclusive_group()
    noise.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    noise.add_argument(
        "-v", "--verbose", action="store_true", help="print how the work was done; in a dry run, every tensor"
    )


def options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """The settings of these names, as ``Settings`` describes them; ``chosen`` collects them."""
    for name in names:
        option = OPTIONS[name]
        into = group(parser, option.group)
        if not option.metavar:
            action = "store_false" if DEFAULTS[name] else "store_true"
            into.add_argument(option.flag, dest=name, action=action, help=option.help)
            continue
        if isinstance(DEFAULTS[name], tuple):
            into.add_argument(
                option.flag, dest=name, action="append", default=[], metavar=option.metavar, help=option.help
            )
            continue
        kind = one_of(option.flag, option.words, _WORDS.get(name)) if option.words else _KINDS.get(name, str)
        text = f"{option.help} ({', '.join(option.words)})" if option.words else option.help
        into.add_argument(option.flag, dest=name, type=kind, default=DEFAULTS[name], metavar=option.metavar, help=text)
        if option.off:
            into.add_argument(option.off, dest=name, action="store_false", help=option.off_help)


def chosen(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """What ``options`` has found, as keywords of the verb."""
    return {name: getattr(args, name) for name in names}


def writing(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that write a checkpoint."""
    group(parser, OUTPUT).add_argument(
        "-o", "--out", "--output", metavar="OUT", help="the output: .safetensors, or .ckpt / .pt for torch's form"
    )
    options(parser, WRITING)
    plain(parser)


def one_of(option: str, allowed: Iterable[str], synonym: Callable[[str], str] | None = None) -> Callable[[str], str]:
    """An argument type: one of some words, or a ``synonym`` of one, with "did you mean" for the others."""
    known = list(allowed)

    def parse(text: str) -> str:
        text = text if synonym is None else synonym(text)
        if text in known:
            return text
        from ..suggest import did_you_mean

        hint = did_you_mean(text, known) or f"; known: {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a valid value for {option}{hint}")

    return parse


def size(text: str) -> int:
    """An argument type: bytes, with K, M or G for the powers of 1024."""
    digits, factor = text, 1
    if text[-1:].upper() in ("K", "M", "G"):
        digits, factor = text[:-1], 1024 ** ("KMG".index(text[-1].upper()) + 1)
    if not digits.isdecimal() or not digits.isascii():
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a size; expected for example 512M or 2G")
    return int(digits) * factor


def words(text: str) -> list[str]:
    """An argument type: words with commas between them."""
    return [word.strip() for word in text.split(",")]


def numbers(text: str) -> list[float]:
    """An argument type: numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a list of numbers like 0.5,0.3,0.2") from None


_WORDS: dict[str, Callable[[str], str]] = {"dtype": dtype_word}
_KINDS: dict[str, Callable[[str], Any]] = {"threads": int, "gpu_memory": size}


# ---- writing commands


def meant_as_output(args: argparse.Namespace) -> str:
    """A hint where the last of several files, which doesn't exist, looks like the output's name."""
    files: list[str] = getattr(args, "inputs", [])
    if args.out is None and len(files) > 1 and not os.path.lexists(files[-1]):
        return f"; {printable(files[-1])} does not exist: did you mean -o {printable(files[-1])}?"
    return ""


def written(args: argparse.Namespace, work: Callable[..., Any]) -> int:
    """Run a writing verb under a progress display and report: ``work(out=…, …)`` gets the shared settings, and gives a
    report, or a list of them."""
    from ..report.progress import display

    if args.out is None and not args.dry_run:
        raise UsageError(f"no output given (out=FILE, or dry_run=True){meant_as_output(args)}", code="no_output")
    if args.json:
        require_stdout()
    with display(args.verb, quiet=args.quiet) as progress:
        found = work(out=args.out, progress=progress, **chosen(args, WRITING))
    reports = found if isinstance(found, list) else [found]
    refused = next((report.refusal for report in reports if report.refusal is not None), None)
    if args.json:
        try:
            value = {"outputs": [report.to_dict() for report in reports]} if found is reports else found.to_dict()
            print_json(value, refused)
            flush_stdout()
        except RunFailed as error:
            if args.dry_run:
                raise
            raise RunFailed(f"{error}; the output was written", code=error.code) from None
    for report in reports:
        show(args, report)
    if refused is not None:
        raise refused
    return 0


def show(args: argparse.Namespace, report: Any) -> None:
    """A report for people, unless ``--quiet`` or ``--json`` excludes it."""
    from ..report.console import report_lines
    from ..report.progress import say

    if not args.quiet and not (args.json and args.dry_run):
        lines = report_lines(report, verbose=args.verbose)
        if args.dry_run:
            print_lines(lines)
        else:
            say(lines)


# ---- standard output


def require_stdout() -> None:
    """Before work whose result goes there: RunFailed when stdout is closed, or a pipe without a reader."""
    if sys.stdout is None:
        raise RunFailed(_CLOSED, code="stdout")
    import select

    if not hasattr(select, "poll"):
        return  # Windows, where only the write shows it
    with contextlib.suppress(OSError, ValueError):  # no file, but an object that replaces it
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            _stdout_failed(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))


def print_lines(lines: Iterable[str]) -> int:
    """Print lines on stdout, in the width of a terminal; returns 0. RunFailed with one line when stdout is closed or
    broken."""
    from ..report.fitting import shown

    _write("\n".join(shown(lines, sys.stdout)))
    return 0


SCHEMA = 1
"""Of the answers of ``--json``: another number means that a program must look again (docs/json.md)."""


def print_json(value: dict[str, Any], error: Failure | None = None, *, foreign: bool = False) -> int:
    """Print one JSON object on stdout, with the number of its schema; returns 0. RunFailed as ``print_lines``.

    ``error``: what the caller raises next, for a result that is a failure too; it becomes the object's ``error``.
    ``foreign``: the object has a schema that is not ours.
    """
    import json

    if not foreign:
        value = {"schema": SCHEMA, **value}
    if error is not None:
        value = {**value, "error": error_dict(error)}
        error.in_json = True
    _write(json.dumps(value, indent=2, ensure_ascii=True, default=str))
    return 0


def error_dict(error: Failure) -> dict[str, Any]:
    """An error in JSON types, its options spelled as the command line takes them."""
    return {**error.to_dict(), "message": in_shell(str(error))}


def flush_stdout() -> None:
    """Make sure that what was printed has arrived. RunFailed as ``print_lines``."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _stdout_failed(error)


def _write(text: str) -> None:
    if sys.stdout is None:
        raise RunFailed(_CLOSED, code="stdout")
    try:
        sys.stdout.write(text + "\n")
    except (OSError, ValueError) as error:
        _stdout_failed(error)


def _stdout_failed(error: Exception) -> NoReturn:
    # The interpreter flushes stdout once more at exit, and would complain a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise RunFailed(
        f"cannot write to standard output: {getattr(error, 'strerror', None) or error}", code="stdout"
    ) from None
