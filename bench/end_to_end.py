"""End to end: merges and casts of whole checkpoints against ``cp``, a plain floor, a torch loop and sd-mecha.

    python bench/end_to_end.py                              # SD 1.5 and SDXL, full size: up to 28 GB of disk
    python bench/end_to_end.py --family sd1 --repeats 9 --folder /data
    python bench/end_to_end.py --table bench/results/NAME.json

Every contender runs as a whole process, in turn (A B C, B C A, …), on the same inputs. README.md says what is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import machine
import report
from contenders import CONTENDERS, Job, build_floor
from process import Measured, ProcessFailed, measure
from sdsurgery.errors import SdsError
from sdsurgery.testing import write_checkpoint

MOST_DISK = 30_000_000_000
_MOST_SETTLING, _USUAL = 20.0, 1.25  # seconds; times the least
_settled: dict[Job, float] = {}  # the least seconds that a case's output took to write
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


@dataclass(frozen=True)
class Case:
    """What is done to how many files of which dtype."""

    name: str
    operation: str
    inputs: int
    dtype: str
    alpha: float
    ema: bool = False  # whether the inputs have an EMA twin
    drops: bool = False  # whether one of the twins is dropped
    out_dtype: str = "fp16"
    suffix: str = "safetensors"


CASES = (
    Case("merge", "weighted-sum", 2, "fp16", 0.5),
    Case("add-diff", "add-diff", 3, "fp16", 0.7),
    Case("cast", "cast", 1, "fp32", 0.0),
    Case("ema", "ema", 1, "fp32", 0.0, ema=True, drops=True),
    Case("prune", "prune", 1, "fp16", 0.0, ema=True, drops=True),
    Case("prune-fp32", "prune", 1, "fp32", 0.0, ema=True, drops=True, out_dtype="fp32"),
    Case("convert", "convert", 1, "fp32", 0.0, ema=True, out_dtype="fp32", suffix="ckpt"),
)
FAMILIES = {"sd1": "SD 1.5", "sdxl-base": "SDXL"}
WITH_EMA = ("sd1",)  # the families that are published with their EMA twin


class Refused(Exception):
    """The benchmark can't run like that: one line that says why."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.table:
        with open(args.table, encoding="utf-8") as file:
            print(report.table(json.load(file)))
        return 0
    signal.signal(signal.SIGTERM, _stop)  # so that the big files are removed then, too
    try:
        with _work_folder(args.folder) as folder:
            results = _run_all(args, folder)
    except (Refused, ProcessFailed, SdsError, OSError) as error:
        print(f"end_to_end: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("end_to_end: interrupted", file=sys.stderr)
        return 130
    print("\n" + report.table(results))
    return 0


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _work_folder(parent: str) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="sdsurgery-bench-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_all(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    if args.cold:
        machine.drop_caches()  # fails here, not after minutes
    floor = build_floor(folder)
    if floor is None:
        say("no C++ compiler: the floor is left out")
    results: dict[str, Any] = {"machine": machine.describe(folder), "cases": {}}
    target = args.out or (_results_file(results["machine"]) if args.size == "full" else None)
    say(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    for family in args.family or FAMILIES:
        for case in CASES:
            if (args.case and case.name not in args.case) or (case.ema and family not in WITH_EMA):
                continue
            found = _run_case(args, folder, family, case, floor)
            results["cases"][_title(args, family, case)] = found
            if target:
                _store(target, results)
    if target:
        say(f"results in {target}")
    return results


def _title(args: argparse.Namespace, family: str, case: Case) -> str:
    marks = [mark for mark in ("cold", "hash", "sync") if getattr(args, mark)]
    if args.size != "full":
        marks.append(args.size)
    return f"{family} {case.name}" + (f" ({', '.join(marks)})" if marks else "")


# ---- one case


def _run_case(args: argparse.Namespace, folder: str, family: str, case: Case, floor: str | None) -> dict[str, Any]:
    say(f"\n{_title(args, family, case)}: {case.operation} of {case.inputs} × {case.dtype} to {case.out_dtype}")
    files = os.path.join(folder, "files")
    os.mkdir(files)
    try:
        job = _prepare(args, files, family, case, floor)
        read, written = sum(os.path.getsize(path) for path in job.needed), job.out_bytes
        copied = 0 if job.alike in job.needed else written
        fits = read + copied + written < machine.available_memory()
        if not (fits or args.cold):
            say("  note: inputs, copy and output don't all fit into memory, so that the page cache is only partly warm")
        _forget([*job.inputs, job.alike])
        runs = _interleaved(args, job)
    finally:
        shutil.rmtree(files, ignore_errors=True)
    settings = {name: getattr(args, name) for name in ("repeats", "threads", "cold", "hash", "sync", "size")}
    return {
        "case": asdict(case),
        "family": family,
        "date": datetime.date.today().isoformat(),
        "settings": settings,
        "bytes_read": read,
        "bytes_written": written,
        "fits_in_memory": fits,
        "contenders": {name: _summary(name, measured) for name, measured in runs.items()},
        "ratios": _ratios(runs),
    }


def _prepare(args: argparse.Namespace, files: str, family: str, case: Case, floor: str | None) -> Job:
    """Write the inputs, a file of the output's size for ``cp``, and one of the bytes needed for the floor."""
    _check_disk(args, files, family, case)
    paths = []
    for seed in range(case.inputs):
        paths.append(os.path.join(files, f"{'abc'[seed]}.{case.suffix}"))
        write_checkpoint(paths[-1], family, dtype=case.dtype, seed=seed, size=args.size, ema=case.ema)
    needed = paths
    if case.drops:
        needed = [os.path.join(files, "needed.safetensors")]
        write_checkpoint(needed[0], family, dtype=case.dtype, seed=8, size=args.size)
    alike = needed[0]
    if case.dtype != case.out_dtype:
        alike = os.path.join(files, "alike.safetensors")
        write_checkpoint(alike, family, dtype=case.out_dtype, seed=9, size=args.size)
    out = os.path.join(files, "out.safetensors")
    return Job(
        case.operation, tuple(paths), case.alpha, case.out_dtype, out, os.path.getsize(alike), alike,
        tuple(needed), args.threads or machine.usable_cores(), args.hash, args.sync, floor,
    )  # fmt: skip


def _check_disk(args: argparse.Namespace, files: str, family: str, case: Case) -> None:
    if args.size != "full":
        return
    from sdsurgery.layouts import get

    def elements(*, ema: bool) -> int:
        return sum(math.prod(row.shape) for row in get(family).tensors(ema=ema))

    width, out_width = (4 if dtype == "fp32" else 2 for dtype in (case.dtype, case.out_dtype))
    kept = elements(ema=case.ema and not case.drops)
    copies = kept * out_width * (2 if case.dtype != case.out_dtype else 1) + (kept * width if case.drops else 0)
    needed = case.inputs * elements(ema=case.ema) * width + copies
    free = shutil.disk_usage(files).free
    if needed > MOST_DISK or needed + 10**9 > free:
        raise Refused(
            f"{family} {case.name} needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free (--folder)"
        )


def _interleaved(args: argparse.Namespace, job: Job) -> dict[str, list[Measured]]:
    names = [name for name in _chosen(args) if CONTENDERS[name].available(job)]
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    # The first round is not counted: it loads programs and libraries, and shows who can't do the case at all.
    for turn in range(args.repeats + 1):
        names = list(runs)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            try:
                measured = _one_run(args, job, name)
            except ProcessFailed as error:
                if name == "ours" or turn > 0:
                    raise
                say(f"  {name} is left out: {error}")
                del runs[name]
                continue
            if turn > 0:
                runs[name].append(measured)
        if turn > 0:
            say("  " + "  ".join(f"{name} {measured[-1].seconds:.3f}" for name, measured in runs.items()))
    return runs


def _chosen(args: argparse.Namespace) -> list[str]:
    names = args.contenders or list(CONTENDERS)
    return [name for name in names if name != "cp+read" or args.cold]


def _one_run(args: argparse.Namespace, job: Job, name: str) -> Measured:
    contender = CONTENDERS[name]
    os.sync()  # what others left to be written must not be this one's burden
    if args.cold:
        machine.drop_caches()
    else:
        _warm(job.needed if name.startswith("floor") else [*job.inputs, job.alike] if name == "cp" else job.inputs)
        _settle(job)
    try:
        with tempfile.TemporaryDirectory(prefix="sdsurgery-bench-cache-") as cache:
            environment = {**os.environ, "SDS_CACHE": cache}  # hashes of an earlier run don't count
            fsync = job.out if args.sync and not contender.syncs else None
            measured = measure(contender.command(job), fsync=fsync, env=environment)
        if os.path.getsize(job.out) < job.out_bytes * 0.98:
            raise ProcessFailed(f"{name} wrote {os.path.getsize(job.out)} bytes, expected about {job.out_bytes}")
    finally:
        if os.path.exists(job.out):
            os.unlink(job.out)
    return measured


def _settle(job: Job) -> None:
    """Write and delete a file as large as the output, again until that takes no longer than usual.

    On a virtual machine memory that has lain free belongs to the host again, and whoever comes to it first pays for
    fetching it: more than the work that is measured.
    """
    began = time.perf_counter()
    while (started := time.perf_counter()) - began < _MOST_SETTLING:
        if job.floor:  # as the measured ones do, so that the system takes pieces of memory of the same size
            subprocess.run(CONTENDERS["floor-reserved"].command(job), check=True, stdout=subprocess.DEVNULL)
        else:
            shutil.copyfile(job.alike, job.out)
        os.unlink(job.out)
        seconds = time.perf_counter() - started
        usual = _settled.get(job)
        _settled[job] = min(seconds, usual or seconds)
        if usual is not None and seconds < _USUAL * usual:
            return


def _forget(paths: Sequence[str]) -> None:
    """Put fresh files out of the page cache, so that they come back by being read, as a user's files do."""
    os.sync()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _warm(paths: Sequence[str]) -> None:
    """Read files once, so that they are in the page cache again should a hungry contender have pushed them out."""
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# ---- results


def _summary(name: str, runs: list[Measured]) -> dict[str, Any]:
    """Times of the whole process, of the work inside it where the contender reports it, and peaks over all runs."""
    seconds = [run.seconds for run in runs]
    inner = [value for run in runs if (value := CONTENDERS[name].inner(run.stdout)) is not None]
    return {
        "median_seconds": round(statistics.median(seconds), 4),
        "median_inner_seconds": round(statistics.median(inner), 4) if inner else None,
        "seconds": [round(value, 4) for value in seconds],
        "inner_seconds": [round(value, 4) for value in inner],
        "peak_anonymous_bytes": max((run.anonymous for run in runs if run.anonymous is not None), default=None),
        "peak_resident_bytes": max((run.resident for run in runs if run.resident is not None), default=None),
    }


def _ratios(runs: dict[str, list[Measured]]) -> dict[str, float]:
    """Median of ours over the median of each other contender, whole processes: below 1 we are faster. Beside an
    earlier version also the work itself, medians and least times."""
    middle = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    if "ours" not in middle:
        return {}
    ratios = {f"ours/{name}": round(middle["ours"] / value, 4) for name, value in middle.items() if name != "ours"}
    if "earlier" in runs:
        inner = {name: [CONTENDERS[name].inner(run.stdout) or 0 for run in runs[name]] for name in ("ours", "earlier")}
        for word, of in (("median", statistics.median), ("least", min)):
            ratios[f"ours/earlier, work itself, {word}"] = round(of(inner["ours"]) / of(inner["earlier"]), 4)
    return ratios


def _results_file(about: dict[str, Any]) -> str:
    os.makedirs(RESULTS, exist_ok=True)
    date = datetime.date.today().isoformat()
    return os.path.join(RESULTS, f"{machine.slug(about['cpu'], about['cores'])}-{date}.json")


def _store(path: str, results: dict[str, Any]) -> None:
    """Write what there is so far; cases of an earlier run of the same day that were not repeated stay."""
    kept: dict[str, Any] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            kept = json.load(file).get("cases", {})
    merged = {"machine": results["machine"], "cases": {**kept, **results["cases"]}}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(merged, indent=1, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--family", action="append", choices=list(FAMILIES), help="may be repeated (default: all)")
    add("--case", action="append", choices=[case.name for case in CASES], help="may be repeated (default: all)")
    add("--contenders", type=_names, metavar="A,B,…", help=f"of {', '.join(CONTENDERS)} (default: all there are)")
    add("--repeats", type=_count, default=5, metavar="N", help="counted rounds (default 5)")
    add("--threads", type=int, default=0, metavar="N", help="of ours and the floor (default 0: all processors)")
    add("--folder", default=tempfile.gettempdir(), help="on the disk to measure, with up to 28 GB free")
    add("--size", default="full", choices=("full", "tiny"), help="tiny tries the script itself")
    add("--cold", action="store_true", help="drop the page cache before every run (root, Linux)")
    add("--hash", action="store_true", help="let us compute SHA-256 of the inputs and the output")
    add("--sync", action="store_true", help="flush the output to disk within the time, for everyone")
    add("--out", metavar="FILE", help="results (default bench/results/MACHINE-DATE.json; none for tiny)")
    add("--table", metavar="FILE", help="print the table of stored results, and measure nothing")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise argparse.ArgumentTypeError(f"unknown contender {name!r}; known: {', '.join(CONTENDERS)}")
    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
