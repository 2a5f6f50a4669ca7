"""The command line: arguments in, a verb, a report out.

Text for people goes to stderr while a file is written, and to stdout for the verbs whose text is the result; ``--json``
prints one object on stdout. Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 an input was refused,
4 verification differs, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NoReturn

from . import __version__, commands
from .commands.common import error_dict, flush_stdout, print_json
from .commands.spelling import in_shell
from .errors import Failure, Interrupted, RunFailed, UsageError, printable
from .report.fitting import fitted
from .report.fitting import width as line_width
from .suggest import did_you_mean

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_NO_ROOM = "failed to map segment"  # how the system's loader says that there is no memory for a library
_LITTLE_MEMORY = 1 << 30
_NUMPY_MEMORY = 144 << 20  # 82 MiB for its libraries, 32 for the first product, and some for what it is loaded for
EPILOG = "exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 input refused, 4 differs, 130 interrupted"


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; prints one line on stderr for any failure."""
    _keep_standard_streams()
    _expect_little_memory()
    caught: list[int] = []
    try:
        _catch_signals(caught)
        chosen, args = parse(argv)
        code = chosen.run(args)
        flush_stdout()
        return code
    except (Exception, KeyboardInterrupt) as error:
        if caught and not isinstance(error, Interrupted):
            error = Interrupted("interrupted")  # some C code wraps the KeyboardInterrupt that hits it in its own error
        if os.environ.get("SDS_DEBUG") and not isinstance(error, Failure | KeyboardInterrupt):
            raise
        return _fail(_failure(error), json="--json" in takewhile("--".__ne__, argv))


def _expect_little_memory() -> None:
    """NumPy's OpenBLAS ends the process where it gets no memory for its buffers: with a limit on memory it has one
    thread, and NumPy is loaded only where there is room for it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if any(0 <= limit < _LITTLE_MEMORY for limit in limits):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        sys.meta_path.insert(0, _RoomForNumPy())


class _RoomForNumPy:
    """Finds no module; but when NumPy is looked for, RunFailed where there is too little memory for it."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "numpy":
            import mmap

            sys.meta_path.remove(self)
            try:
                mmap.mmap(-1, _NUMPY_MEMORY).close()
            except (OSError, MemoryError):
                raise RunFailed(f"out of memory: NumPy needs {_NUMPY_MEMORY >> 20} MiB", code="memory") from None


def _failure(error: BaseException) -> Failure:
    if isinstance(error, Failure):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and _NO_ROOM in str(error)):
        return RunFailed("out of memory", code="memory")
    if isinstance(error, OSError):
        where = f"{printable(error.filename)}: " if error.filename else ""
        return RunFailed(f"{where}{error.strerror or error}", code="io")
    text = f"internal error: {type(error).__name__}: {error} (SDS_DEBUG=1 shows where; please report it)"
    return RunFailed(text, code="internal")


def _fail(error: Failure, *, json: bool) -> int:
    """One line on stderr and, with ``--json``, ``{"error": …}`` on stdout, unless a result has it already."""
    if json and not error.in_json:
        with contextlib.suppress(RunFailed):  # stdout is closed; the line below says more
            print_json({"error": error_dict(error)})
            flush_stdout()
    try:
        print(f"sdsurgery: {in_shell(printable(error, 2000))}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (stderr is closed; the exit code remains)
    return error.exit_code


def _keep_standard_streams() -> None:
    """A closed descriptor 0, 1 or 2 would be given to the next file that is opened: the output, say.

    And where text cannot be written as UTF-8 (a Windows pipe, an old locale) ``α`` is ``\\u03b1``, as it is on stderr.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _catch_signals(caught: list[int]) -> None:
    import signal

    def interrupt(signum: int, frame: object) -> NoReturn:
        caught.append(signum)
        raise KeyboardInterrupt

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)

    def raise_again(unraisable: Any) -> None:
        """An interruption that struck inside a destructor or a weak reference's callback is lost there."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        import threading

        later = threading.Timer(0.01, signal.raise_signal, caught[-1:])  # once the callback is over
        later.daemon = True
        later.start()

    sys.unraisablehook = raise_again


def ignore_signals() -> None:
    """For a process that only has to end: an interruption would print a traceback while the interpreter exits."""
    import signal

    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


# ---- arguments


class _Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake (UsageError), "did you mean", and options between the files."""

    def __init__(
        self, prog: str, description: str, usage: str | None = None, examples: Sequence[str] = (),
        belongs: Callable[[str, Sequence[str]], str] | None = None,
    ) -> None:  # fmt: skip
        shown = ["examples:", *(f"  {line}" for line in examples), ""] if examples else []
        epilog = "\n".join([*shown, EPILOG])
        # argparse asks for the terminal's width at every argument, and imports what unpacks archives to do so.
        shape = partial(argparse.RawDescriptionHelpFormatter, width=(line_width(sys.stdout) or 80) - 2)
        super().__init__(prog, usage, description, epilog, formatter_class=shape, allow_abbrev=False)
        self.register("action", None, _Once)
        self.register("type", int, partial(_number, int, "a whole number"))
        self.register("type", float, partial(_number, float, "a number like 0.5"))
        self._words: Sequence[str] = ()
        self._belongs = belongs  # says of an option that is unknown here where it is known

    def format_help(self) -> str:
        text = super().format_help()
        return "\n".join(fitted(text.split("\n"), line_width(sys.stdout), hang=4))

    def error(self, message: str) -> NoReturn:
        # Of a mistyped option argparse says that the right one is missing, or nothing.
        self._refuse_unknown(word for word in self._words if word.startswith("--"))
        bad_value = message.startswith("argument ") and "expected" not in message
        code = "conflict" if "not allowed with" in message else "bad_value" if bad_value else None
        raise UsageError(f"{message} (see {self.prog} --help)", code=code)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        self._words = list(takewhile("--".__ne__, argv))
        # argparse forgets that what follows a "--" are files when it reads options between files; "./-a" is one still.
        files = [
            os.path.join(os.curdir, word) if word.startswith("-") else word for word in argv[len(self._words) + 1 :]
        ]
        args, unknown = self.parse_known_intermixed_args([*_joined(self._words), *files])
        self._refuse_unknown(word for word in unknown if word.startswith("-") and word != "-")
        if unknown:
            what = "no option" if unknown[0].startswith("--") else "one file too many:"
            self.error(f"{what} '{printable(unknown[0])}'")
        return args

    def option_strings(self) -> set[str]:
        """The long options that it knows."""
        return {text for action in self._actions for text in action.option_strings if text.startswith("--")}

    def _refuse_unknown(self, words: Iterable[str]) -> None:
        known: set[str] = set()
        for word in words:
            name = word.partition("=")[0]
            known = known or {"--help", *self.option_strings()}
            if name not in known:
                # Without the dashes, by which all options are alike.
                meant = _MEANT.get(name.lstrip("-").replace("_", "-"), "")
                hint = (
                    f"; did you mean '{meant}'?"
                    if meant.split(" ")[0] in known
                    else did_you_mean(name.lstrip("-"), sorted(each.lstrip("-") for each in known)).replace(
                        " '", " '--"
                    )
                )
                hint = (f": {why}" if self._belongs and (why := self._belongs(name, self._words)) else "") or hint
                text = f"no option '{printable(word)}'{hint} (see {self.prog} --help)"
                raise UsageError(text, code="unknown_name")


def _number(kind: type, what: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not {what}") from None


class _Once(argparse.Action):
    """What argparse does by default, but of two values that differ it takes the last: they are refused here."""

    _given: Any = None

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if self.option_strings and self._given not in (None, values):
            first, *others = self.option_strings
            names = f"{first} (or {', '.join(others)})" if others else first
            raise UsageError(f"{names} is given twice, with different values", code="conflict")
        self._given = values
        setattr(namespace, self.dest, values)


_MEANT = {
    **dict.fromkeys(("half", "fp16", "save-half", "save-as-half", "float16"), "--dtype fp16"),
    **dict.fromkeys(("bf16", "bfloat16", "save-bf16"), "--dtype bf16"),
    **dict.fromkeys(("fp32", "full", "float32", "no-half"), "--dtype fp32"),
    **dict.fromkeys(("precision", "save-precision", "saving-precision", "data-type"), "--dtype"),
    **dict.fromkeys(("overwrite", "yes", "replace"), "--force"),
    **dict.fromkeys(("device", "gpu", "use-gpu"), "--backend"),
    **dict.fromkeys(("save-to", "output-path", "out-file", "output-file", "destination", "save-path"), "--out"),
    **dict.fromkeys(("block-weights", "mbw", "weights-alpha", "lbw"), "--blocks"),
    **dict.fromkeys(("mode", "interp", "interp-method", "merge-mode", "type"), "--method"),
    **dict.fromkeys(("bake-vae", "bake-in-vae"), "--vae"),
    **dict.fromkeys(("ema-only", "use-ema-weights"), "--preset ema-only"),
    **dict.fromkeys(("component", "remove", "without"), "--drop"),
    "force-merge": "--allow-unlike",
}  # fmt: skip
"""What other programs call the options."""
_MEANT_COMMANDS = {
    **dict.fromkeys(("mix", "blend", "combine", "merger"), "merge"),
    **dict.fromkeys(("hash", "hashes", "check", "validate", "sha256"), "verify"),
    **dict.fromkeys(("show", "metadata", "list", "keys", "view"), "inspect"),
    **dict.fromkeys(("quantize", "quantise", "fp16", "bf16", "fp8", "half"), "cast"),
    **dict.fromkeys(("shrink", "clean", "trim"), "prune"),
    "help": "--help",
    "version": "--version",
    "diff": "compare",
    "swap": "replace",
    "bake-vae": "replace",
}
"""And the commands."""


def _joined(words: Sequence[str]) -> list[str]:
    """Words that belong together as one. ``--alpha -1e-3`` as ``--alpha=-1e-3``: argparse takes -0.5 for a number, but
    not -1e-3, -inf and -0.5,1.5, nor the formula -A. And what follows ``--blocks B:GRAD_V`` for C, D, …"""
    joined: list[str] = []
    for word in words:
        option = joined[-1] if joined else ""
        negative = _NEGATIVE_FORMULA if option == "--formula" else _NEGATIVE
        if negative.match(word) and option.startswith("--") and "=" not in option:
            joined[-1] = f"{option}={word}"
        elif joined[-2:-1] == ["--blocks"] and _OF_INPUT.match(option) and _OF_INPUT.match(word):
            joined[-1] = f"{option} {word}"
        else:
            joined.append(word)
    return joined


_NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)
_OF_INPUT = re.compile(r"[A-Z]:(?![/\\])")  # and no path of Windows
_NEGATIVE_FORMULA = re.compile(r"-(?![a-z]?$|-)")  # an option is one small letter


def parse(argv: Sequence[str]) -> tuple[commands.Command, argparse.Namespace]:
    """The command and its arguments (``verb`` is the command's name). UsageError for what cannot be understood."""
    if not argv or argv[0].startswith("-"):
        parser = _overall(argv)
        if not argv:
            parser.print_help()
            raise SystemExit(UsageError.exit_code)
        parser.parse(argv)
        parser.error("no command given")
    name = argv[0]
    if name not in commands.NAMES:
        meant = _MEANT_COMMANDS.get(name.lower())
        hint = f"; did you mean '{meant}'?" if meant else did_you_mean(name, commands.NAMES)
        raise UsageError(f"no command '{printable(name)}'{hint} (see sdsurgery --help)", code="unknown_name")
    args = command_parser(name, argv[1:]).parse(argv[1:])
    args.verb = name
    return commands.command(name), args


def command_parser(name: str, words: Sequence[str] = ()) -> _Parser:
    """The parser of one command's arguments; ``words`` are those that it will parse."""
    command = commands.command(name)
    parser = _Parser(f"sdsurgery {name}", command.HELP, examples=getattr(command, "EXAMPLES", ()),
                     belongs=getattr(command, "belongs", None))  # fmt: skip
    command.arguments(parser, list(takewhile("--".__ne__, words)))
    return parser


def _overall(argv: Sequence[str]) -> _Parser:
    """The parser of a command line without a command. The overview imports every command: not for ``--version``."""
    overview = "" if argv[:1] == ["--version"] else _overview()
    parser = _Parser(prog="sdsurgery", usage="%(prog)s [-h] [--version] COMMAND …", description=overview)
    parser.add_argument("--version", action="version", version=f"sdsurgery {__version__}")
    return parser


def _overview() -> str:
    columns = line_width(sys.stdout)
    width = max(map(len, commands.NAMES))
    rows = [f"  {name:<{width}}  {commands.command(name).HELP}" for name in commands.NAMES]
    head = "Exact, flat-memory surgery on Stable Diffusion checkpoints."
    return "\n".join([*fitted([head, "", "commands:"], columns), *fitted(rows, columns, hang=width + 2)])
