"""Merge two checkpoints, read the result back, and check one tensor against NumPy.

Makes its own inputs: every name of the SD 1.5 layout, with small tensors. Run: ``python examples/merge_and_check.py``
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import sdsurgery
from sdsurgery.testing import write_checkpoint

ALPHA = 0.3
TENSOR = "model.diffusion_model.middle_block.0.in_layers.2.weight"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        a, b, out = (str(Path(folder, f"{name}.safetensors")) for name in ("a", "b", "out"))
        write_checkpoint(a, "sd1", size="tiny", seed=1)
        write_checkpoint(b, "sd1", size="tiny", seed=2)

        report = sdsurgery.merge("weighted-sum", [a, b], alpha=ALPHA, out=out)
        print(f"family {report.family}, tensors {report.counts}")

        with sdsurgery.open(a) as first, sdsurgery.open(b) as second, sdsurgery.open(out) as merged:
            x, y = (checkpoint.numpy(TENSOR).astype(np.float32) for checkpoint in (first, second))
            expected = (np.float32(1 - ALPHA) * x + np.float32(ALPHA) * y).astype(np.float16)
            same = np.array_equal(expected, merged.numpy(TENSOR))
            print(f"{TENSOR} {merged.info(TENSOR).shape}: {'equal to NumPy, bit for bit' if same else 'DIFFERS'}")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
