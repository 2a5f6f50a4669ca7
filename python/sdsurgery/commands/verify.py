"""``sdsurgery verify``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Failure, UsageError, VerificationDiffers, printable
from ..settings import OPTIONS, READING
from . import batch
from .common import chosen, error_dict, options, plain, print_json, print_lines
from .spelling import in_shell

if TYPE_CHECKING:
    from ..surgery.verify import Verification

_SETTINGS = ("threads", *READING)

HELP = "check structure, non-finite values and hashes"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)
    parser.add_argument("inputs", metavar="FILE", nargs="+")
    text = "a digest that the file should have: AutoV1, AutoV2, AutoV3, SHA-256, BLAKE3 or CRC-32, by length or name"
    parser.add_argument("--expect", metavar="[NAME:]DIGEST", action="append", default=[], help=text)
    options(parser, _SETTINGS)
    parser.add_argument(OPTIONS["hash"].off, dest="hash", action="store_false", help="don't compute hashes")


def run(args: argparse.Namespace) -> int:
    from ..api.analysis import verify
    from ..report import console
    from ..report.progress import display

    if args.expect and len(args.inputs) > 1:
        raise UsageError("expect= goes with one file", code="conflict")

    def work(path: str) -> Verification:
        return verify(path, expect=args.expect, progress=progress, hash=args.hash, **chosen(args, _SETTINGS))

    with display("verify", quiet=args.quiet) as progress:
        if len(args.inputs) > 1:
            return _many(args, *batch.each(args.inputs, work, "cannot be read"))
        found = work(args.inputs[0])
    error = _differs(found)
    if args.json:
        print_json(found.to_dict(), error)
    elif not args.quiet:
        print_lines(console.verification_lines(found))
    if error is not None:
        raise error
    return 0


def _differs(found: Verification) -> VerificationDiffers | None:
    path = found.path
    return VerificationDiffers(f"{path}: {'; '.join(found.differs)}", path=path) if found.differs else None


def _many(args: argparse.Namespace, rows: Sequence[tuple[str, Verification | Failure]], failed: Failure | None) -> int:
    from ..report import console

    judged = [(path, found, found if isinstance(found, Failure) else _differs(found)) for path, found in rows]
    wrong = [reason for _, _, reason in judged if isinstance(reason, VerificationDiffers)]
    if failed is None and wrong:
        failed = wrong[0].within(f"{len(wrong)} of {len(rows)} files differ, the first")
    if args.json:
        print_json({"files": [
            {"path": path, "verification": None if isinstance(found, Failure) else found.to_dict(),
             "error": reason and error_dict(reason)}
            for path, found, reason in judged
        ]}, failed)  # fmt: skip
    elif not args.quiet:
        for _, found, reason in judged:
            if not isinstance(found, Failure):
                print_lines(console.verification_lines(found))
            if reason is not None:
                print(f"failed: {in_shell(printable(reason, 1000))}", file=sys.stderr)
    if failed is not None:
        raise failed
    return 0
