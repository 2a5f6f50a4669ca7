"""GPU benchmark: ``python bench/gpu.py``. Needs a GPU; without one it says so and exits with code 2.

Everything is a ratio within one run. In memory: bytes read and written per second as a share of what a device-to-device
copy reaches at the same size class, beside torch eager, torch._foreach and torch.compile. A whole SD 1.5 U-Net (686
tensors) by apply_many. File to file: seconds of the GPU backends over those of the CPU backend.

    python bench/gpu.py [--quick] [--out FILE]
    python bench/gpu.py --compare OLD.json NEW.json [--tolerance 0.05]    # exit code 1 on a regression of ratios
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

KIB, MIB = 1 << 10, 1 << 20
SIZES = (KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, 2048 * MIB)  # bytes of one operand
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


# ---- results against earlier ones


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Every ratio in which more is better, by its place: {"kernels/add-diff/float16/16777216/cuda": 0.95, …}."""
    found: dict[str, float] = {}

    def walk(item: Any, path: str) -> None:
        if isinstance(item, dict):
            for key, value in item.items():
                walk(value, f"{path}/{key}" if path else str(key))
        elif isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
            found[path] = float(item)

    walk(results.get("ratios", {}), "")
    return found


def regressions(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[str]:
    """A line for every ratio that fell by more than ``tolerance`` (0.05: five percent of it), or is gone."""
    before, after = ratios(old), ratios(new)
    lines = []
    for place, value in before.items():
        if place not in after:
            lines.append(f"{place}: {value:.3f} before, not measured now")
        elif after[place] < value * (1 - tolerance):
            lines.append(f"{place}: {value:.3f} before, {after[place]:.3f} now")
    return lines


def compare(old: Path, new: Path, tolerance: float) -> int:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (old, new)]
    if found[0]["gpu"] != found[1]["gpu"]:
        print(f"not comparable: {found[0]['gpu']} and {found[1]['gpu']}", file=sys.stderr)
        return 2
    lines = regressions(*found, tolerance)
    print("\n".join(lines) if lines else f"no ratio fell by more than {tolerance:.0%}")
    return 1 if lines else 0


# ---- measuring


def seconds(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of one call on the GPU, by events around several; the first calls (compilation) are not counted."""
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes a second, read and written, of a device-to-device copy of 1 GiB."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def usable() -> list[str]:
    from sdsurgery import backends
    from sdsurgery.errors import SdsError

    found = []
    for name in ("cuda", "triton"):
        try:
            backends.choose(name)
            found.append(name)
        except SdsError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return found


def eager(method: Any, params: dict[str, Any], given: Sequence[Any]) -> Any:
    """What a script would write: the body in float32 (float64), rounded to the first input's dtype."""
    import torch

    kind = torch.float64 if given[0].dtype == torch.float64 else torch.float32
    return method.body(*(item.to(kind) for item in given), **params).to(given[0].dtype)


def foreach(name: str, given: Sequence[Any]) -> Callable[[], Any] | None:
    """The same by torch._foreach, where it has the operations and the dtype (float32, float64)."""
    import torch

    if given[0].dtype not in (torch.float32, torch.float64):
        return None
    if name == "weighted-sum":
        return lambda: torch._foreach_add(torch._foreach_mul([given[0]], 0.5), [given[1]], alpha=0.5)
    if name == "add-diff":
        return lambda: torch._foreach_add([given[0]], torch._foreach_sub([given[1]], [given[2]]), alpha=1.0)
    return None


def kernels(rate: float, names: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Share of the copy's rate, by method, dtype, bytes of an operand and contender."""
    import sdsurgery
    import torch
    from sdsurgery.gpu import tensors

    results: dict[str, Any] = {}
    for name, method in sdsurgery.methods().items():
        if name == "copy":
            continue
        params = method.bind(len(method.inputs), {})
        for kind in DTYPES:
            dtype = getattr(torch, kind)
            for size in sizes:
                count = size // dtype.itemsize
                operands = len(method.inputs) + 1
                if operands * size * 4 > torch.cuda.mem_get_info()[0]:
                    continue
                given = [(torch.rand(count, device="cuda") - 0.5).to(dtype) for _ in method.inputs]
                out = torch.empty_like(given[0])
                works: dict[str, Callable[[], Any]] = {}
                for backend in names:

                    def ours(backend: str = backend, given: Any = given, out: Any = out, name: str = name) -> None:
                        tensors.BACKENDS = (backend,)
                        sdsurgery.apply(name, *given, out=out)

                    works[backend] = ours
                works["torch"] = lambda given=given, method=method, params=params: eager(method, params, given)
                compiled = torch.compile(lambda *given, method=method, params=params: eager(method, params, given))
                works["torch.compile"] = lambda given=given, compiled=compiled: compiled(*given)
                listed = foreach(name, given)
                if listed is not None:
                    works["torch._foreach"] = listed
                row = {}
                for contender, work in works.items():
                    try:
                        row[contender] = operands * size / seconds(work) / rate
                    except Exception as error:  # a contender that cannot do it is left out
                        print(f"{name} {kind} {size} {contender}: {type(error).__name__}", file=sys.stderr)
                results.setdefault(name, {}).setdefault(kind, {})[str(size)] = row
                print(f"{name} {kind} {size}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return results


def unet(rate: float, names: Sequence[str]) -> dict[str, float]:
    """A whole SD 1.5 U-Net in fp16 by apply_many, as a share of the copy's rate."""
    import sdsurgery
    import torch
    from sdsurgery.gpu import tensors
    from sdsurgery.layouts import get

    shapes = {item.key: item.shape for item in get("sd1").tensors() if item.key.startswith("model.diffusion_model.")}
    a, b, out = ({name: torch.zeros(shape, device="cuda").half() for name, shape in shapes.items()} for _ in range(3))
    nbytes = 3 * 2 * sum(item.numel() for item in a.values())
    results = {}
    for backend in names:
        tensors.BACKENDS = (backend,)
        results[backend] = nbytes / seconds(lambda: sdsurgery.apply_many("weighted-sum", a, b, out=out)) / rate
    return results


def files(names: Sequence[str], size: str) -> dict[str, float]:
    """Seconds of the CPU backend over those of each GPU backend (above 1: the GPU is faster), medians of 5."""
    import sdsurgery
    from sdsurgery.testing import write_checkpoint

    times: dict[str, list[float]] = {name: [] for name in ("cpu", *names)}
    with tempfile.TemporaryDirectory() as folder:
        inputs = [f"{folder}/{name}.safetensors" for name in "ab"]
        for seed, path in enumerate(inputs):
            write_checkpoint(path, "sd1", seed=seed, size=size)
        for turn in range(6):
            for name, found in times.items():
                started = time.perf_counter()
                sdsurgery.merge(
                    "weighted-sum", inputs, out=f"{folder}/out.safetensors", backend=name, force=True, hash=False,
                    sync=False,
                )  # fmt: skip
                if turn:
                    found.append(time.perf_counter() - started)
    cpu = statistics.median(times["cpu"])
    return {name: cpu / statistics.median(times[name]) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size and a tiny file: does it run?")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-<name>-<date>.json")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args(arguments)
    if args.compare:
        return compare(*args.compare, args.tolerance)
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no GPU here, so there is nothing to measure", file=sys.stderr)
        return 2
    names = usable()
    if not names:
        return 2
    import machine

    gpu = torch.cuda.get_device_name()
    rate = copy_rate()
    print(f"{gpu}: a device-to-device copy reads and writes {rate / 1e9:.0f} GB/s")
    results = {
        "gpu": gpu,
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(tempfile.gettempdir()),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "copy_bytes_per_second": rate,
        "ratios": {
            "kernels": kernels(rate, names, (16 * MIB,) if args.quick else SIZES),
            "unet": unet(rate, names),
            "files": files(names, "tiny" if args.quick else "full"),
        },
    }
    slug = "-".join("".join(c if c.isalnum() else " " for c in gpu.lower()).split())
    out = args.out or Path(__file__).parent / "results" / f"gpu-{slug}-{results['date']}.json"
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
