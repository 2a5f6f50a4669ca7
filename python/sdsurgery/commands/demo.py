"""``sdsurgery demo``: three small checkpoints in the SD 1.5 layout, an add-difference merge, a check of all bytes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import VerificationDiffers
from ..report.progress import say
from .common import plain, print_json, print_lines

if TYPE_CHECKING:
    from ..surgery.report import Report

HELP = "make three small SD 1.5 checkpoints, merge them, check the result"


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    plain(parser)


def run(args: argparse.Namespace) -> int:
    from ..report import console

    found = demonstrate(quiet=args.quiet or args.json)
    if args.json:
        return print_json(found.to_dict())
    return 0 if args.quiet else print_lines(console.report_lines(found, verbose=args.verbose))


def demonstrate(*, quiet: bool = False) -> Report:
    """Make, merge and check; everything happens in a temporary folder that is removed at the end.

    Raises VerificationDiffers when the native engine and the NumPy reference do not give the same file.
    """
    import tempfile

    from ..api.merging import merge
    from ..testing import write_checkpoint

    def note(text: str) -> None:
        if not quiet:
            say([text])

    with tempfile.TemporaryDirectory(prefix="sdsurgery-demo-") as folder:
        paths = [os.path.join(folder, f"{name}.safetensors") for name in ("a", "b", "c")]
        for seed, path in enumerate(paths):
            write_checkpoint(path, "sd1", size="tiny", seed=seed)
        note("made three checkpoints with the SD 1.5 layout (all names, small tensors)")
        note("merge --method add-diff a.safetensors b.safetensors c.safetensors --alpha 0.7 -o merged.safetensors")
        outputs = {}
        for backend in ("cpu", "reference"):
            out = os.path.join(folder, backend, "merged.safetensors")
            os.mkdir(os.path.dirname(out))
            report = merge("add-diff", paths, alpha=0.7, out=out, backend=backend, sync=False)
            with open(out, "rb") as file:
                outputs[backend] = (file.read(), report)
        if outputs["cpu"][0] != outputs["reference"][0]:
            raise VerificationDiffers("the native engine and the NumPy reference gave different files")
        report = outputs["cpu"][1]
        report.output = "merged.safetensors"
        report.notes.append("checked: every byte equals what the NumPy reference writes")
        report.notes.append("all files were in a temporary folder, which is removed again")
        return report
