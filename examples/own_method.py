"""A merge method of one's own: one decorated function, whose body is the formula.

It is traced into a small program and runs in the native engine, file to file, like the methods that come with the
package. Run: ``python examples/own_method.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sdsurgery
from sdsurgery.methods import Param, method
from sdsurgery.testing import write_checkpoint


@method(
    "two-differences",
    inputs="A B C D",
    beta=Param(0.5, "how much of B − D is added"),
    gamma=Param(0.5, "how much of C − D is added"),
)
def two_differences(a: Any, b: Any, c: Any, d: Any, *, beta: float, gamma: float) -> Any:
    """A + β·(B − D) + γ·(C − D): what B and C each learned beyond their common base D."""
    return a + beta * (b - d) + gamma * (c - d)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{name}.safetensors")) for name in "abcd"]
        for seed, path in enumerate(paths):
            write_checkpoint(path, "sd1", size="tiny", seed=seed)
        out = str(Path(folder, "out.safetensors"))
        report = sdsurgery.merge("two-differences", paths, beta=0.75, out=out, dtype="fp32")
        print(f"{report.recipe['method']} {report.recipe['parameters']}: {report.counts}")

    values = [np.float32([1, 2]), np.float32([3, 5]), np.float32([5, 4]), np.float32([1, 1])]
    print(sdsurgery.apply("two-differences", *values))  # the same kernels on arrays


if __name__ == "__main__":
    main()
