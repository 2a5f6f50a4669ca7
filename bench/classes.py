"""What the classes of methods cost, as multiples of a weighted sum of the same number of inputs.

    python bench/classes.py --repeats 7 --folder /data      # four SD 1.5 files and an output: 11 GB, removed at the end
    python bench/classes.py --only ties,dare --data /data   # files sd1-fp16-0.safetensors … that are there already

Each method and the weighted sum beside it take turns; all files are in the page cache, nothing waits for the disk and
nothing is hashed (with --hash: all inputs and the output, as the command does by default). Printed are medians of each
pair's own ratios: of the time of the work itself (with --hash: of the whole command), and of the processor time (user
and system) of the whole process, which other work on the machine disturbs less. On a virtual machine that gives free
memory back to its host, a run may pay several times over for pages that lay free for a second or two; the ratio of the
least times is that of runs which had theirs at once. Where a case has more inputs than there are files, files are
given twice, under other names; each file is hashed once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import machine
from make_checkpoints import file_name
from process import measure
from sdsurgery.testing import write_checkpoint


@dataclass(frozen=True)
class Case:
    """A method with its options, on so many inputs; the limit is that of its class."""

    kind: str
    limit: float
    method: str
    inputs: int
    options: tuple[str, ...] = ()
    beside: int = 0  # inputs of the sum that it is compared with, if not as many

    @property
    def name(self) -> str:
        return " ".join((self.method, *self.options))


class Times(NamedTuple):
    """Seconds of one run: of its work (or of the whole command), and of the processors."""

    work: float
    cpu: float


class Pair(NamedTuple):
    """A case's run, and that of the sum beside it."""

    ours: Times
    beside: Times


CASES = [
    Case("sums", 1.7, "n-sum", 4, beside=2),
    Case("sums", 3.0, "n-sum", 8, beside=2),
    Case("sums", 7.0, "n-sum", 20, beside=2),  # the line through 2, 4 and 8
    Case("E", 1.15, "train-diff", 3),
    Case("E", 1.15, "tensor-sum", 2),
    Case("E", 1.15, "clamp", 3),
    Case("E", 1.15, "add-diff.clamped", 3),
    Case("E", 1.15, "ram", 3),
    Case("powers", 3.5, "multiply-diff", 3),
    Case("powers", 3.5, "multiply-quotient", 3),
    Case("powers", 3.5, "geometric-sum", 2),
    Case("R", 1.75, "slerp", 2),
    Case("R", 1.75, "model-stock", 3),
    Case("R", 1.75, "karcher", 5),
    Case("R", 1.75, "add-cosine-b", 2),
    Case("R", 1.75, "channel-cosine-gate", 2),
    Case("R", 1.75, "norm-direction", 2),
    Case("Q", 2.8, "ties", 3, ("--density", "0.5")),
    Case("Q", 2.8, "sparse-top-k", 2, ("--beta", "0.5")),
    Case("Q", 2.8, "breadcrumbs", 3, ("--density", "0.7")),
    Case("S", 1.6, "dare", 3, ("--probability", "0.5")),
    Case("S", 1.6, "add-noise", 1, beside=2),
    Case("G", 2.5, "cosine-channel", 2),
    Case("G", 2.5, "add-cosine-a", 2),
    Case("G", 2.5, "cosine-a", 2),
    Case("G", 2.5, "cosine-b", 2),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", default=None, help="where to make the files")
    parser.add_argument("--data", default=None, help="a folder that has the files")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--size", default="full", choices=["full", "tiny"], help="tiny: to try the script")
    parser.add_argument("--only", default=None, help="methods or classes, separated by commas")
    parser.add_argument("--hash", action="store_true", help="compute the hashes too, with none remembered")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else None
    cases = [case for case in CASES if wanted is None or {case.method, case.kind} & set(wanted)]
    with data(args) as files, tempfile.TemporaryDirectory(prefix="sdsurgery-bench-", dir=args.folder) as folder:
        links = [os.path.join(folder, f"{k}.safetensors") for k in range(max(case.inputs for case in cases))]
        for k, link in enumerate(links):
            os.symlink(os.path.abspath(files[k % len(files)]), link)
        print(", ".join(f"{key} {value}" for key, value in machine.describe(folder).items()))
        timed = "the whole command" if args.hash else "the work itself"
        print(f"\nMedians of {args.repeats} pairs; of {timed} the range and the ratio of the least times too.\n")
        print(f"| class | method | inputs | {timed} | processor time | range | least times | limit |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        pair(cases[0], links, folder, hash=args.hash)
        for case in cases:
            pairs = [pair(case, links, folder, hash=args.hash) for _ in range(args.repeats)]
            print(row(case, pairs), flush=True)
    return 0


@contextlib.contextmanager
def data(args: argparse.Namespace) -> Iterator[list[str]]:
    names = [file_name("sd1", "fp16", seed, ema=False, size=args.size) for seed in range(args.files)]
    if args.data:
        yield [os.path.join(args.data, name) for name in names]
        return
    with tempfile.TemporaryDirectory(prefix="sdsurgery-bench-", dir=args.folder) as folder:
        files = [os.path.join(folder, name) for name in names]
        for seed, path in enumerate(files):
            write_checkpoint(path, "sd1", seed=seed, size=args.size)
        yield files


def pair(case: Case, files: list[str], folder: str, *, hash: bool) -> Pair:
    ours = merge(folder, case.method, files[: case.inputs], case.options, hash=hash)
    beside = merge(folder, "n-sum", files[: case.beside or case.inputs], (), hash=hash)
    return Pair(ours, beside)


def merge(folder: str, method: str, inputs: list[str], options: tuple[str, ...], *, hash: bool) -> Times:
    out = os.path.join(folder, "out.safetensors")
    switches = ["--no-sync", *([] if hash else ["--no-hash"])]
    command = ["merge", "--method", method, *inputs, *options, *switches, "--json", "-q", "-o", out]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="sdsurgery-bench-cache-") as cache:  # an earlier run's hashes don't count
        ran = measure([sys.executable, "-m", "sdsurgery", *command], env={**os.environ, "SDS_CACHE": cache})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.unlink(out)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(ran.seconds if hash else json.loads(ran.stdout)["seconds"], cpu)


def row(case: Case, pairs: list[Pair]) -> str:
    work = [ours.work / beside.work for ours, beside in pairs]
    cpu = [ours.cpu / beside.cpu for ours, beside in pairs]
    least = min(ours.work for ours, _ in pairs) / min(beside.work for _, beside in pairs)
    inputs = f"{case.inputs} ÷ {case.beside}" if case.beside else str(case.inputs)
    return (
        f"| {case.kind} | {case.name} | {inputs} | {statistics.median(work):.2f} | {statistics.median(cpu):.2f} |"
        f" {min(work):.2f} … {max(work):.2f} | {least:.2f} | {case.limit} |"
    )


if __name__ == "__main__":
    sys.exit(main())
