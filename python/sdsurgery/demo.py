"""demo: three small checkpoints with the true SD 1.5 layout, an add-difference merge, and a check of every byte."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from .errors import VerificationDiffers
from .progress import say

if TYPE_CHECKING:
    from .surgery.report import Report


def run(*, quiet: bool = False) -> Report:
    """Make, merge and check; everything happens in a temporary folder that is removed at the end.

    Raises VerificationDiffers when the native engine and the NumPy reference do not give the same file.
    """
    from .api import merge
    from .testing import write_checkpoint

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
        report.output = "merged.safetensors (in a temporary folder, removed again)"
        report.notes.append("checked: every byte equals what the NumPy reference writes")
        return report
