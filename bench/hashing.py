"""What hashing costs: the default merge of two SD 1.5 files, as multiples of hashing its output once on one core.

    python bench/hashing.py --repeats 7 --folder /data      # 9 GB of disk, removed at the end

The four take turns in every round: one core that hashes as many bytes as the output has, in memory; the merge with
nothing remembered (three files' worth of SHA-256), with the inputs' hashes remembered (one), and without hashes. All
files are in the page cache, nothing waits for the disk. Printed are medians of each round's own ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import machine
from process import measure
from sdsurgery.testing import write_checkpoint

# Hashes the file in one thread, once it is in memory and mapped.
ONE_CORE = """
import mmap, sys, time
from sdsurgery import _native
with open(sys.argv[1], "rb") as file:
    content = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
started = time.perf_counter()
_native.sha256([memoryview(content)])
print(time.perf_counter() - started)
"""
MERGES = {"nothing remembered": (), "inputs remembered": (), "no hashes": ("--no-hash",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", default=None, help="where to make the files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdsurgery-bench-", dir=args.folder) as folder:
        inputs = [os.path.join(folder, f"{name}.safetensors") for name in "ab"]
        for seed, path in enumerate(inputs):
            write_checkpoint(path, "sd1", seed=seed)
        time.sleep(3)  # hashes of files younger than that are not remembered
        print(", ".join(f"{key} {value}" for key, value in machine.describe(folder).items()), flush=True)
        rounds = [one_round(folder, inputs) for _ in range(args.repeats + 1)][1:]
    once = statistics.median(found["one core"][0] for found in rounds)
    print(f"\none core, {os.cpu_count()} in all: {once:.2f} s; multiples of it (medians of {len(rounds)} rounds):\n")
    print("| merge | whole process | the work itself | least of it, over the least of one core |\n|---|---|---|---|")
    least = min(found["one core"][0] for found in rounds)
    for name in MERGES:
        whole, inner = (
            statistics.median(found[name][which] / found["one core"][0] for found in rounds) for which in (0, 1)
        )
        print(f"| {name} | {whole:.2f} | {inner:.2f} | {min(found[name][1] for found in rounds) / least:.2f} |")
    return 0


def one_round(folder: str, inputs: list[str]) -> dict[str, tuple[float, float]]:
    """Seconds of the process and of the work inside it, by what ran."""
    for path in inputs:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    seconds = float(subprocess.run([sys.executable, "-c", ONE_CORE, inputs[0]], check=True, capture_output=True).stdout)
    found = {"one core": (seconds, seconds)}
    for name, options in MERGES.items():
        settle(folder, inputs)
        if name == "nothing remembered":
            shutil.rmtree(os.path.join(folder, "cache"), ignore_errors=True)
        found[name] = merge(folder, inputs, *options)
    print("  ".join(f"{name} {whole:.2f} ({inner:.2f})" for name, (whole, inner) in found.items()), flush=True)
    return found


def merge(folder: str, inputs: list[str], *options: str) -> tuple[float, float]:
    cache, out = os.path.join(folder, "cache"), os.path.join(folder, "out.safetensors")
    command = ["merge", "--method", "weighted-sum", *inputs, "--no-sync", "--json", "-q", *options, "-o", out]
    ran = measure([sys.executable, "-m", "sdsurgery", *command], env={**os.environ, "SDS_CACHE": cache})
    os.unlink(out)
    return ran.seconds, json.loads(ran.stdout)["seconds"]


def settle(folder: str, inputs: list[str]) -> None:
    """Merge without hashes until that takes no longer than usual.

    On a virtual machine memory that has lain free belongs to the host again, and whoever comes to it first pays for
    fetching it.
    """
    for _ in range(8):
        seconds = merge(folder, inputs, "--no-hash")[0]
        usual.append(seconds)
        if seconds < 1.25 * min(usual) and len(usual) > 1:
            return


usual: list[float] = []


if __name__ == "__main__":
    sys.exit(main())
