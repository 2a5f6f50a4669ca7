"""Methods beside the tools that they come from, on the same SD 1.5 files: TIES, DARE, slerp and model stock.

    pip install sd-mecha mergekit
    python bench/method_rivals.py --repeats 3 --folder /data    # three files and two outputs: 11 GB, removed at the end

All take turns, each as a process of its own; files are in the page cache, nothing is hashed or synced. Printed are
medians of the seconds of the work itself (without imports), as multiples of ours too, and the most memory that the
process held.

Each is called as its own documentation does it. mergekit's command reads no Stable Diffusion: its function for state
dicts is called, with float32 as what it computes in.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import machine
from make_checkpoints import file_name
from process import Measured, measure
from sdsurgery.testing import write_checkpoint

OURS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ties": (3, ("--density", "0.5")),
    "dare": (3, ("--probability", "0.5")),
    "slerp": (2, ("--alpha", "0.5")),
    "model-stock": (3, ()),
}
"""The inputs and the options of each method."""


def sd_mecha(method: str, out: str, paths: Sequence[str]) -> None:
    import logging

    import sd_mecha as tool
    import torch
    from sd_mecha.extensions.builtin.merge_methods.linear import add_difference  # 1.1.8's own wrapper fails on these

    logging.disable(logging.WARNING)
    first, *others = [tool.model(path) for path in paths]
    deltas = [tool.subtract(other, first) for other in others]
    recipes: dict[str, Callable[[], Any]] = {
        "ties": lambda: add_difference(first, tool.ties_sum(*deltas, k=0.5), alpha=1.0),
        "dare": lambda: tool.dropout(first, *others, probability=0.5, alpha=1.0, seed=0),
        "slerp": lambda: tool.slerp(first, *others, alpha=0.5),
        "model-stock": lambda: add_difference(first, tool.model_stock(*deltas), alpha=1.0),
    }
    tool.merge(recipes[method](), output_dtype=torch.float16, output=out)


def mergekit(method: str, out: str, paths: Sequence[str]) -> None:
    import torch
    from mergekit.merge_methods import merge_state_dicts
    from safetensors.torch import load_file, save_file

    weights = {"weight": [1.0] * (len(paths) - 1), "density": [0.5] * (len(paths) - 1)}
    called: dict[str, tuple[str, dict[str, Any]]] = {
        "ties": ("ties", weights),
        "dare": ("dare_linear", weights),
        "slerp": ("slerp", {"t": 0.5}),
        "model-stock": ("model_stock", {}),
    }
    name, parameters = called[method]
    models = [load_file(path) for path in paths]
    kinds = {key for key, tensor in models[0].items() if tensor.is_floating_point() and tensor.dim() > 0}
    with torch.no_grad():
        result = merge_state_dicts(
            [{key: model[key] for key in model if key in kinds} for model in models], name,
            parameters=parameters, base=0, dtype=torch.float32, out_dtype=torch.float16,
        )  # fmt: skip
    save_file({**models[0], **result}, out, metadata={"format": "pt"})


RIVALS = {"sd-mecha": ("sd_mecha", sd_mecha), "mergekit": ("mergekit", mergekit)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where to make the files")
    parser.add_argument("--size", default="full", choices=["full", "tiny"], help="tiny: to try the script")
    parser.add_argument("--only", default=None, help="methods, separated by commas")
    parser.add_argument("--run", nargs="+", metavar=("RIVAL METHOD OUT", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return run(*args.run[:3], args.run[3:])
    rivals = [name for name, (module, _) in RIVALS.items() if importlib.util.find_spec(module)]
    with tempfile.TemporaryDirectory(prefix="sdsurgery-bench-", dir=args.folder) as folder:
        files = [os.path.join(folder, file_name("sd1", "fp16", seed, ema=False, size=args.size)) for seed in range(3)]
        for seed, path in enumerate(files):
            write_checkpoint(path, "sd1", seed=seed, size=args.size)
        print(", ".join(f"{key} {value}" for key, value in machine.describe(folder).items()))
        print(f"\nMedians of {args.repeats} rounds.\n")
        print("| method | program | seconds | times ours | memory |\n|---|---|---|---|---|", flush=True)
        for method in args.only.split(",") if args.only else OURS:
            rounds = [
                {name: once(name, method, files, folder) for name in ("ours", *rivals)} for _ in range(args.repeats)
            ]
            for name in rounds[0]:
                print(row(method, name, rounds), flush=True)
    return 0


def run(name: str, method: str, out: str, files: Sequence[str]) -> int:
    """One rival in this process; prints its seconds."""
    module, merge = RIVALS[name]
    importlib.import_module(module)
    started = time.perf_counter()
    merge(method, out, files)
    print(json.dumps({"seconds": time.perf_counter() - started}))
    return 0


def once(name: str, method: str, files: Sequence[str], folder: str) -> Measured:
    """The process, with the seconds of the work itself in the place of its own."""
    count, options = OURS[method]
    out = os.path.join(folder, "out.safetensors")
    inputs = files[:count]
    if name == "ours":
        command = ["-m", "sdsurgery", "merge", "--method", method, *inputs, *options, "-o", out]
        command += ["--no-hash", "--no-sync", "--json", "-q"]
    else:
        command = [os.path.abspath(__file__), "--run", name, method, out, *inputs]
    found = measure([sys.executable, *command])
    os.unlink(out)
    seconds = json.loads(found.stdout.strip().splitlines()[-1] if name != "ours" else found.stdout)["seconds"]
    return Measured(seconds, found.anonymous, found.resident, "")


def row(method: str, name: str, rounds: Sequence[dict[str, Measured]]) -> str:
    seconds = statistics.median(each[name].seconds for each in rounds)
    ratio = statistics.median(each[name].seconds / each["ours"].seconds for each in rounds)
    memory = max(each[name].anonymous or 0 for each in rounds) / 1e6
    return f"| {method} | {name} | {seconds:.2f} | {ratio:.1f} | {memory:,.0f} MB |"


if __name__ == "__main__":
    sys.exit(main())
