"""The command line: arguments in, a verb, a report out.

Text for people goes to stderr while a file is written, and to stdout for the verbs whose text is the result; ``--json``
prints one object on stdout. Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 an input was refused,
4 verification differs, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import Interrupted, RunFailed, SdsError, UsageError, printable

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
EPILOG = "exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 input refused, 4 differs, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # argparse takes -0.5 for a number, but -1e-3 and -0.5,1.5 for options that it doesn't know.
        self._negative_number_matcher = re.compile(r"-\.?\d|-(inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; prints one line on stderr for any failure."""
    _keep_standard_streams()
    caught: list[int] = []
    try:
        _catch_signals(caught)
        args = _parser().parse_args(argv)
        code: int = args.command(args)
        _flush_stdout()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if caught and not isinstance(error, Interrupted):
            return _fail("interrupted", 130)  # some C code wraps the KeyboardInterrupt that hits it in its own error
        if os.environ.get("SDS_DEBUG") and not isinstance(error, SdsError):
            raise
        return _fail(*_failure(error))


def _failure(error: Exception) -> tuple[str, int]:
    if isinstance(error, SdsError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", 1
    if isinstance(error, OSError):
        return str(error), 1
    return f"internal error: {type(error).__name__}: {error} (SDS_DEBUG=1 shows where; please report it)", 1


def _fail(message: str, code: int) -> int:
    line = printable(message, 2000)
    try:
        print(f"sdsurgery: {line}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (nobody listens any more; the exit code still tells)
    return code


def _keep_standard_streams() -> None:
    """A closed descriptor 0, 1 or 2 would be given to the next file that is opened: the output, say."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _catch_signals(caught: list[int]) -> None:
    import signal

    def interrupt(signum: int, frame: object) -> NoReturn:
        caught.append(signum)
        raise KeyboardInterrupt

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


def ignore_signals() -> None:
    """For a process that only has to end: an interruption would be a traceback out of the interpreter's own end."""
    import signal

    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def emit(text: str) -> None:
    """Print on stdout. RunFailed with one line when stdout is closed or broken."""
    if sys.stdout is None:
        raise RunFailed("cannot write to standard output: it is closed")
    try:
        sys.stdout.write(text + "\n")
    except (OSError, ValueError) as error:
        _stdout_failed(error)


def _flush_stdout() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _stdout_failed(error)


def _stdout_failed(error: Exception) -> NoReturn:
    # The interpreter flushes stdout once more at exit, and would complain a second time.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise RunFailed(f"cannot write to standard output: {getattr(error, 'strerror', None) or error}") from None


# ---- arguments


def _one_of(option: str, allowed: Iterable[str]) -> Callable[[str], str]:
    known = list(allowed)

    def parse(text: str) -> str:
        if text in known:
            return text
        from .suggest import did_you_mean

        hint = did_you_mean(text, known) or f"; known: {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is no value for {option}{hint}")

    return parse


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is no list of numbers like 0.5,0.3,0.2") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sdsurgery",
        description="Exact, flat-memory surgery on Stable Diffusion checkpoints.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"sdsurgery {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    merge = _writing(verbs, "merge", _merge, "merge checkpoints into one")
    merge.add_argument("inputs", nargs="+", metavar="FILE", help="A B [C …], in the method's order")
    merge.add_argument("--method", required=True, help="see `sdsurgery methods`")
    merge.add_argument("--add-missing", action="store_true", help="add tensors that only B (or C) has")
    merge.add_argument("--use-ema", default="", metavar="A,B", help="merge the EMA weights of these inputs")
    _method_options(merge)

    cast = _writing(verbs, "cast", _cast, "write a checkpoint in another dtype")
    cast.add_argument("input", metavar="FILE")

    ema = _writing(verbs, "ema", _ema, "put the EMA weights in the U-Net's place")
    ema.add_argument("input", metavar="FILE")
    ema.add_argument("--keep-counters", action="store_true", help="keep model_ema.decay and model_ema.num_updates")
    ema.add_argument("--to-ema", action="store_true", help="the reverse: add EMA twins made from the weights")

    prune = _writing(verbs, "prune", _prune, "drop what isn't needed: training leftovers, EMA, components")
    add = prune.add_argument
    add("input", metavar="FILE")
    add("--preset", default="full", metavar="WORD", help="full (default), no-ema, ema-only or inference")
    add("--drop", type=lambda text: text.split(","), default=[], metavar="NAMES", help="components, as ema,buffers,vae")
    add("--keep-keys", metavar="REGEX", help="keep tensors whose name it finds, whatever else says drop")
    add("--drop-keys", metavar="REGEX", help="drop tensors whose name it finds")
    add("--strict", action="store_true", help="drop tensors of no known component too")

    fix_clip = _writing(verbs, "fix-clip", _fix_clip, "repair the text encoders' position_ids")
    fix_clip.add_argument("input", metavar="FILE")

    extract = _writing(verbs, "extract", _extract, "write one component to a file of its own")
    extract.add_argument("input", metavar="FILE")
    extract.add_argument("--component", required=True, metavar="NAME", help="vae, unet, text_encoder, …")
    extract.add_argument("--strip-prefix", action="store_true", help="leave out the prefix of the component's names")

    replace = _writing(verbs, "replace", _replace, "put other files' components in: bake a VAE")
    add = replace.add_argument
    add("input", metavar="FILE")
    add("--component", action="append", required=True, metavar="NAME", help="vae, unet, …; once for every --with")
    add("--with", dest="donors", action="append", required=True, metavar="FILE", help="where it comes from")
    add("--allow-missing", action="store_true", help="accept a donor with absent or extra tensors")

    for name, command, text in (
        ("inspect", _inspect, "what a file is: family, components, dtypes, EMA, metadata, recipe"),
        ("verify", _verify, "check structure, non-finite values and hashes"),
    ):
        reading = _command(verbs, name, command, text)
        reading.add_argument("input", metavar="FILE")
        if name == "verify":
            reading.add_argument("--threads", type=int, default=0, metavar="N", help="0: all processors")
            reading.add_argument("--no-hash", dest="hash", action="store_false", help="skip the hashes")
    _command(verbs, "methods", _methods, "the merge methods and their formulas")
    _command(verbs, "layouts", _layouts, "the families of checkpoints that are recognised")
    _command(verbs, "info", _info, "version, CPU targets, backends")
    _command(verbs, "demo", _demo, "make three small SD 1.5 checkpoints, merge them, check the result")
    return parser


def _command(verbs: Any, name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, epilog=EPILOG)
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("-q", "--quiet", action="store_true", help="nothing but errors")
    noise.add_argument("-v", "--verbose", action="store_true", help="more about how it ran; every tensor in a dry run")
    return parser


def _writing(verbs: Any, name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
    """A verb that writes a file: the shared options."""
    from .verbs.common import CHOICES

    parser = _command(verbs, name, command, text)
    add = parser.add_argument
    add("-o", "--out", metavar="OUT", help="the output file (.safetensors)")
    for option, help_text in (
        ("dtype", "dtype of the output's weights (default keep: A's, tensor by tensor)"),
        ("overflow", "a value too large for the dtype: default (Inf; fp8 saturates), inf, saturate, error"),
        ("on_nonfinite", "NaN or Inf in an input: keep (carry through, count) or error"),
        ("compute", "precision of the arithmetic: fp32 or fp64"),
        ("io", "how inputs are read: auto, mmap or pread"),
    ):
        flag = "--" + option.replace("_", "-")
        add(flag, type=_one_of(flag, CHOICES[option]), default=CHOICES[option][0], metavar="WORD", help=help_text)
    add("--backend", default="auto", metavar="NAME", help="auto, cpu or reference")
    add("--threads", type=int, default=0, metavar="N", help="0: all processors")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add("--force", action="store_true", help="replace an existing output; merge models with little in common")
    add("--no-hash", dest="hash", action="store_false", help="don't compute SHA-256 of inputs and output")
    add("--no-sync", dest="sync", action="store_false", help="don't wait for the disk before the rename")
    return parser


def _method_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every parameter of every registered method."""
    from .methods import PerInput, registered

    params: dict[str, list[tuple[str, Any]]] = {}
    for method in registered("merge").values():
        for name, param in method.params.items():
            params.setdefault(name, []).append((method.name, param))
    for name, uses in params.items():
        text = "; ".join(
            f"{method}: {param.help}" + ("" if param.default is None else f" (default {param.default:g})")
            for method, param in uses
        )
        listed = isinstance(uses[0][1], PerInput)
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=f"param_{name}", type=_numbers if listed else float, metavar="NUMBERS"
            if listed else "NUMBER", help=text.replace("%", "%%"),
        )  # fmt: skip


def _settings(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    names = (
        "dtype",
        "threads",
        "backend",
        "overflow",
        "on_nonfinite",
        "compute",
        "io",
        "hash",
        "sync",
        "force",
        "dry_run",
    )
    return {**{name: getattr(args, name) for name in names}, "progress": progress}


# ---- verbs


def _merge(args: argparse.Namespace) -> int:
    from .verbs.merge import merge

    params = {
        name.removeprefix("param_"): value
        for name, value in vars(args).items()
        if name.startswith("param_") and value is not None
    }
    return _written(
        args,
        lambda progress: merge(
            args.method,
            args.inputs,
            out=args.out,
            add_missing=args.add_missing,
            use_ema=args.use_ema,
            **_settings(args, progress),
            **params,
        ),
    )


def _cast(args: argparse.Namespace) -> int:
    from .verbs.cast import cast

    return _written(args, lambda progress: cast(args.input, out=args.out, **_settings(args, progress)))


def _ema(args: argparse.Namespace) -> int:
    from .verbs.ema import ema

    options = {"keep_counters": args.keep_counters, "to_ema": args.to_ema}
    return _written(args, lambda progress: ema(args.input, out=args.out, **options, **_settings(args, progress)))


def _prune(args: argparse.Namespace) -> int:
    from .verbs.prune import prune

    options = {name: getattr(args, name) for name in ("preset", "drop", "keep_keys", "drop_keys", "strict")}
    return _written(args, lambda progress: prune(args.input, out=args.out, **options, **_settings(args, progress)))


def _fix_clip(args: argparse.Namespace) -> int:
    from .verbs.fix_clip import fix_clip

    return _written(args, lambda progress: fix_clip(args.input, out=args.out, **_settings(args, progress)))


def _extract(args: argparse.Namespace) -> int:
    from .verbs.components import extract

    strip = args.strip_prefix
    return _written(
        args,
        lambda progress: extract(
            args.input, args.component, out=args.out, strip_prefix=strip, **_settings(args, progress)
        ),
    )


def _replace(args: argparse.Namespace) -> int:
    from .verbs.components import replace

    if len(args.component) != len(args.donors) or len(set(args.component)) != len(args.component):
        raise UsageError("every --component needs its own --with FILE, and each component can be given once")
    donors = dict(zip(args.component, args.donors, strict=True))
    missing = args.allow_missing
    return _written(
        args,
        lambda progress: replace(args.input, donors, out=args.out, allow_missing=missing, **_settings(args, progress)),
    )


def _written(args: argparse.Namespace, work: Callable[[Any], Any]) -> int:
    """Run a writing verb under a progress display and report."""
    from . import console

    if args.out is None and not args.dry_run:
        raise UsageError("no output given (-o FILE, or --dry-run)")
    with console.progress(args.verb, quiet=args.quiet) as progress:
        report = work(progress)
    if args.json:
        _print_json(report.to_dict())
    if not args.quiet and not (args.json and args.dry_run):
        lines = console.report_lines(report, verbose=args.verbose)
        if args.dry_run:
            emit("\n".join(lines))
        else:
            print("\n".join(lines), file=sys.stderr)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from . import console
    from .verbs.inspect import inspect

    found = inspect(args.input)
    return _print_json(found.to_dict()) if args.json else _print(console.inspection_lines(found, args.verbose))


def _verify(args: argparse.Namespace) -> int:
    from . import console
    from .errors import VerificationDiffers
    from .verbs.verify import verify

    with console.progress("verify", quiet=args.quiet) as progress:
        found = verify(args.input, threads=args.threads, hash=args.hash, progress=progress)
    if args.json:
        _print_json(found.to_dict())
    elif not args.quiet:
        _print(console.verification_lines(found))
    if found.differs:
        raise VerificationDiffers(f"{args.input}: {'; '.join(found.differs)}")
    return 0


def _methods(args: argparse.Namespace) -> int:
    from . import console
    from .methods import registered

    rows = [
        {
            "name": method.name,
            "inputs": list(method.inputs),
            "any_number_of_inputs": method.variadic,
            "verb": method.verb,
            "formula": method.summary,
            "parameters": {name: {"default": p.default, "help": p.help} for name, p in method.params.items()},
        }
        for method in registered().values()
    ]
    return _print_json({"methods": rows}) if args.json else _print(console.method_lines(rows))


def _layouts(args: argparse.Namespace) -> int:
    from .layouts import all_layouts

    rows = [
        {"name": layout.name, "title": layout.title, "architecture": layout.architecture} for layout in all_layouts()
    ]
    if args.json:
        return _print_json({"layouts": rows})
    return _print(f"{row['name']:<18} {row['title']}" for row in rows)


def _info(args: argparse.Namespace) -> int:
    from . import console, info

    found = info.collect()
    return _print_json(found) if args.json else _print(console.info_lines(found))


def _demo(args: argparse.Namespace) -> int:
    from . import console, demo

    found = demo.run(quiet=args.quiet or args.json)
    if args.json:
        return _print_json(found.to_dict())
    return 0 if args.quiet else _print(console.report_lines(found, verbose=args.verbose))


def _print(lines: Iterable[str]) -> int:
    emit("\n".join(lines))
    return 0


def _print_json(value: dict[str, Any]) -> int:
    import json

    emit(json.dumps(value, indent=2, ensure_ascii=True))
    return 0
