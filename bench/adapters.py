"""Adapters: bake beside an evaluated pass over the same file, and the arithmetic of other programs; extract-lora.

    python bench/adapters.py                                  # SD 1.5 (6 GB of disk)
    python bench/adapters.py --family sdxl-base --folder /data --only bake
    python bench/adapters.py --only peak                      # the kernel alone, beside the machine's peak

Everything runs as a whole process, in turn, on the same synthetic files. Reported are medians of processor time (user
and system, all threads), which other work on the machine disturbs least, of seconds, and the peak of anonymous memory.
The rivals compute what kohya's merge_lora and extract_lora_from_models and ComfyUI's loader compute, written here in
torch after their descriptions: whole state dicts in memory, float32 products, an SVD with full matrices and a clamp.
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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import machine

HERE = os.path.dirname(os.path.abspath(__file__))


class Used(NamedTuple):
    """Of one process: seconds, processor seconds, and the peak of its memory in bytes."""

    seconds: float
    cpu: float
    memory: int


def used(argv: Sequence[str]) -> Used:
    """Run a process to its end. SystemExit with its last lines when it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdout=said, stderr=said)
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(argv)} failed:\n{said.read().decode()[-2000:]}")
    return Used(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, peak)


def _anonymous(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def write_adapter(path: str, family: str, rank: int, conv: bool) -> None:
    """A LoRA in kohya's names of every attention layer and text encoder, and with ``conv`` of every other layer."""
    import numpy as np
    from safetensors.numpy import save_file
    from sdsurgery.layouts import get
    from sdsurgery.layouts.lora_names import targets

    random, parts = np.random.default_rng(0), {}
    for target in targets(get(family)):
        out, inputs, *kernel = target.shape
        if not conv and target.scope not in ("attn", "te"):
            continue
        r = min(rank, out, inputs)
        parts[f"{target.name}.lora_down.weight"] = random.normal(size=(r, inputs, *kernel)).astype("f2") * 0.05
        parts[f"{target.name}.lora_up.weight"] = random.normal(size=(out, r, *[1] * len(kernel))).astype("f2") * 0.05
        parts[f"{target.name}.alpha"] = np.array(r, "f2")
    save_file(parts, path, {"format": "pt", "ss_network_module": "networks.lora"})


def turns(contenders: dict[str, Callable[[], list[str]]], rounds: int, skipped: int = 1) -> dict[str, list[Used]]:
    """Every contender once in every round; the first ``skipped`` rounds are not counted."""
    found: dict[str, list[Used]] = {name: [] for name in contenders}
    for number in range(rounds + skipped):
        for name, argv in contenders.items():
            each = used(argv())
            if number >= skipped:
                found[name].append(each)
    return found


def report(found: dict[str, list[Used]], first: str, text: str) -> None:
    """Medians, and the median of the ratios of each round to the first contender."""
    print(f"\n{text}\n\n| | processor s | ÷ {first} | s | peak MB |\n|---|---|---|---|---|")
    for name, rows in found.items():
        ratio = statistics.median(row.cpu / other.cpu for row, other in zip(rows, found[first], strict=True))
        cpu, seconds = (statistics.median(row[at] for row in rows) for at in (1, 0))
        memory = max(row.memory for row in rows) / 1e6
        print(f"| {name} | {cpu:.2f} | {ratio:.2f} | {seconds:.2f} | {memory:.0f} |")


def ours(*argv: str) -> list[str]:
    return [sys.executable, "-m", "sdsurgery", *argv, "--no-hash", "--no-sync", "--force", "--json"]


def bake(folder: str, family: str, repeats: int, rivals: bool) -> None:
    from sdsurgery.testing import write_checkpoint

    base, out = os.path.join(folder, "base.safetensors"), os.path.join(folder, "out.safetensors")
    if not os.path.exists(base):
        write_checkpoint(base, family)
    contenders: dict[str, Callable[[], list[str]]] = {
        "pass": lambda: ours("merge", base, "--method", "weighted-sum", "--weights", "1", "-o", out)
    }
    for rank, conv in ((32, False), (32, True), (128, False)):
        path = os.path.join(folder, f"r{rank}{'conv' if conv else ''}.safetensors")
        write_adapter(path, family, rank, conv)
        name = f"bake, rank {rank}{', with conv' if conv else ''}"
        contenders[name] = lambda path=path: ours("bake", base, "--lora", f"{path}=0.8", "-o", out)  # type: ignore[misc]
    if rivals:
        path = os.path.join(folder, "r32.safetensors")
        for rival in ("kohya", "comfyui"):
            contenders[f"{rival}'s arithmetic, rank 32"] = lambda rival=rival: [  # type: ignore[misc]
                sys.executable, os.path.join(HERE, "adapter_rivals.py"), rival, base, path, out
            ]  # fmt: skip
    report(turns(contenders, repeats), "pass", f"bake {family}, {os.path.getsize(base) / 1e9:.1f} GB fp16")
    os.remove(base)


def extract(folder: str, family: str, repeats: int) -> None:
    from sdsurgery.testing import write_checkpoint

    base, other, tuned, theirs, own = (
        os.path.join(folder, f"{name}.safetensors") for name in ("base", "other", "tuned", "theirs", "own")
    )
    write_checkpoint(base, family)
    write_checkpoint(other, family, seed=1)
    used(ours("merge", base, other, "--method", "weighted-sum", "--alpha", "0.05", "-o", tuned))
    os.remove(other)
    rival = [sys.executable, os.path.join(HERE, "adapter_rivals.py"), "extract", tuned, base, theirs]
    contenders: dict[str, Callable[[], list[str]]] = {
        "kohya's arithmetic": lambda: rival,
        "extract-lora": lambda: ours("extract-lora", tuned, base, "--rank", "32", "-o", own),
    }
    report(turns(contenders, repeats, skipped=0), "kohya's arithmetic", f"extract-lora {family}, rank 32")
    print()
    for name, path in zip(contenders, (theirs, own), strict=True):
        print(f"relative error of what {name} extracts: {error(family, tuned, base, path):.5f}")


def error(family: str, tuned: str, base: str, adapter: str) -> float:
    """‖Δ − up·down‖ ⁄ ‖Δ‖ over every layer that the adapter has, in kohya's names."""
    import numpy as np
    from safetensors.numpy import load_file
    from sdsurgery.layouts import get
    from sdsurgery.layouts.lora_names import targets

    tensors, change, parts = load_file(tuned), load_file(base), load_file(adapter)
    off = whole = 0.0
    for target in targets(get(family)):
        down, up = (parts.get(f"{target.name}.lora_{part}.weight") for part in ("down", "up"))
        if down is None or up is None or target.row.ldm_key not in tensors:
            continue
        delta = tensors[target.row.ldm_key].astype("f4") - change[target.row.ldm_key].astype("f4")
        scale = float(parts.get(f"{target.name}.alpha", np.float32(len(down)))) / len(down)
        made = scale * up.reshape(len(up), -1).astype("f4") @ down.reshape(len(down), -1).astype("f4")
        off += float(np.sum((delta.reshape(made.shape) - made) ** 2, dtype="f8"))
        whole += float(np.sum(delta**2, dtype="f8"))
    return float((off / whole) ** 0.5)


def peak() -> None:
    """The product kernel on one thread, beside the most float32 multiplications and additions that the machine does: by
    how much longer a larger rank takes, so that reading factors and copying the result count nothing."""
    most = _machine_peak()
    print(f"peak of the machine, one thread: {most:.1f} GFLOP/s (separate multiplications and additions)")
    for rows, columns in ((320, 1280), (1280, 1280), (320, 2880)):
        for low, high in ((16, 32), (32, 128)):
            seconds = _product_seconds(rows, columns, high) - _product_seconds(rows, columns, low)
            rate = 2 * (high - low) * rows * columns / seconds / 1e9
            print(f"{rows} × {columns}, rank {low} to {high}: {rate:.1f} GFLOP/s, {rate / most:.0%}")


def _product_seconds(rows: int, columns: int, rank: int) -> float:
    import numpy as np
    from sdsurgery import _native
    from sdsurgery.backends import cpu
    from sdsurgery.dtypes import F32
    from sdsurgery.operands.encoding import Companion
    from sdsurgery.operands.low_rank import LowRank, Matrix, Place
    from sdsurgery.plan import Operand

    source = _native.Source.memory(np.random.default_rng(0).normal(size=rank * (rows + columns)).astype("f4").tobytes())
    left = Matrix("stored", rows, rank, (Companion(0, F32, 0, rows * rank),))
    right = Matrix("stored", rank, columns, (Companion(0, F32, 4 * rows * rank, rank * columns),))
    operand = Operand(0, F32, 0, low_rank=LowRank("product", rows, columns, Place(0, rows, columns), left, right))
    out, times = np.empty(rows * columns, "f4"), []
    for _ in range(40):
        started = time.process_time()
        cpu.compute_into(operand, [source], 0, out)
        times.append(time.process_time() - started)
    return min(times)


def _machine_peak() -> float:
    compiler = shutil.which("c++")
    if compiler is None:
        raise SystemExit("a C++ compiler is needed to measure the machine's peak")
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "peak")
        source = os.path.join(HERE, "peak.cc")
        subprocess.run([compiler, "-O3", "-march=native", "-ffp-contract=off", source, "-o", program], check=True)
        return max(float(subprocess.run([program], check=True, capture_output=True).stdout) for _ in range(5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", default="sd1", choices=("sd1", "sd2", "sdxl-base"))
    parser.add_argument("--folder", default=None, help="where files of several gigabytes may lie (default: a new one)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("bake", "extract", "peak"))
    parser.add_argument("--no-rivals", action="store_true", help="ours alone")
    args = parser.parse_args()
    print(json.dumps(machine.describe(args.folder or tempfile.gettempdir()), default=str))
    if args.only in (None, "peak"):
        peak()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.only in (None, "bake"):
            bake(folder, args.family, args.repeats, not args.no_rivals)
        if args.only in (None, "extract"):
            extract(folder, args.family, args.repeats)
    return 0


if __name__ == "__main__":
    _: Any = sys.exit(main())
