"""Write synthetic checkpoints with the true layouts, for benchmarks and tries: a command line over sdsurgery.testing.

    python bench/make_checkpoints.py --family sd1 --seeds 0,1,2 --folder /data

The same arguments give the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from sdsurgery.dtypes import BY_OPTION
from sdsurgery.errors import SdsError
from sdsurgery.layouts import all_layouts
from sdsurgery.testing import write_checkpoint


def file_name(family: str, dtype: str, seed: int, *, ema: bool, size: str) -> str:
    """Such as ``sd1-fp16-0.safetensors`` or ``sdxl-base-fp32-ema-tiny-3.safetensors``."""
    parts = [family, dtype, *(["ema"] if ema else []), *(["tiny"] if size == "tiny" else []), str(seed)]
    return "-".join(parts) + ".safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    os.makedirs(args.folder, exist_ok=True)
    for seed in args.seeds:
        path = os.path.join(args.folder, file_name(args.family, args.dtype, seed, ema=args.ema, size=args.size))
        started = time.perf_counter()
        try:
            written = write_checkpoint(
                path, args.family, dtype=args.dtype, seed=seed, ema=args.ema, size=args.size, overwrite=args.force
            )
        except SdsError as error:
            print(f"make_checkpoints: {error}", file=sys.stderr)
            return error.exit_code
        seconds = time.perf_counter() - started
        print(f"{path}: {written / 1e9:.3f} GB in {seconds:.2f} s, {written / 1e9 / seconds:.2f} GB/s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--family", default="sd1", choices=[layout.name for layout in all_layouts()], metavar="NAME",
        help="a name from `sdsurgery layouts` (default sd1)")  # fmt: skip
    add("--dtype", default="fp16", choices=list(BY_OPTION), help="of the weights (default fp16)")
    add("--ema", action="store_true", help="with the EMA twin of every UNet weight")
    add("--size", default="full", choices=("full", "tiny"), help="true shapes, or all names with small tensors")
    add("--seeds", type=_seeds, default=[0], metavar="N,N,…", help="one file for each (default 0)")
    add("--folder", default=".", help="where to write (default: here)")
    add("--force", action="store_true", help="replace existing files")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers like 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main())
