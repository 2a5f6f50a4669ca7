"""GPU benchmark: ``python bench/gpu.py``. Needs a GPU; without one it says so and exits with code 2.

Everything is a ratio within one run. In memory: what a device-to-device copy of as many bytes takes over what a kernel
takes, every method and dtype, beside torch eager, torch._foreach and torch.compile, on operands that no cache holds. A
whole SD 1.5 U-Net (686 tensors) by apply_many. File to file: against the CPU backend, and against the slower of reading
and writing as many bytes.

    python bench/gpu.py [--quick] [--out FILE]
    python bench/gpu.py --compare OLD.json NEW.json [--tolerance 0.05]    # exit code 1 on a regression of ratios
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_clock
from gpu_clock import Copies, Timed, Work, sets_for, timed
from gpu_results import LARGE, OURS, compare, newest_kept, result_name, worst

KIB, MIB = 1 << 10, 1 << 20
SIZES = (KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, 2048 * MIB)  # bytes of the output
COPY_BYTES = 2048 * MIB  # read and written by the copy whose rate is printed
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
KINDS = (*((name, name) for name in DTYPES), ("float32", "float16"))  # of the inputs, of the output


# ---- contenders


def bound(method: Any) -> dict[str, Any]:
    """Parameters that the method takes; what it does not do without is 0.5."""
    from sdsurgery.methods.parameters import is_required

    needed = {name: 0.5 for name, param in method.params.items() if is_required(param)}
    return method.bind(len(method.inputs), needed)


def usable() -> list[str]:
    from sdsurgery import backends
    from sdsurgery.errors import SdsError

    found = []
    for name in OURS:
        try:
            if backends.choose(name).devices()[0]["name"] == "Triton's interpreter":
                print(f"{name}: interpreted (TRITON_INTERPRET is set)", file=sys.stderr)
                continue
            found.append(name)
        except SdsError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return found


def ours(backend: str, call: Work) -> Work:
    """The call with one backend chosen (else it would be CUDA first)."""
    from sdsurgery.gpu import tensors

    def work() -> Any:
        tensors.BACKENDS = (backend,)
        return call()

    return work


def eager(method: Any, params: dict[str, Any], given: Sequence[Any], kind: Any) -> Any:
    """What a script would write: the body in float32 (float64), rounded to the output's dtype."""
    import torch

    arithmetic = torch.float64 if given[0].dtype == torch.float64 else torch.float32
    return method.body(*(item.to(arithmetic) for item in given), **params).to(kind)


def foreach(name: str, given: Sequence[Sequence[Any]]) -> Work | None:
    """The same by torch._foreach on lists of tensors, where it has the operations; it rounds after every one."""
    import torch

    if name == "weighted-sum":
        return lambda: torch._foreach_add(torch._foreach_mul(given[0], 0.5), given[1], alpha=0.5)
    if name == "add-diff":
        return lambda: torch._foreach_add(given[0], torch._foreach_sub(given[1], given[2]), alpha=1.0)
    return None


def evaluate(name: str, given: Sequence[Any], out: Any) -> None:
    """Our call: a method's, or a cast's, which is none."""
    import sdsurgery
    from sdsurgery.gpu import tensors
    from sdsurgery.interop.names import torch_dtype
    from sdsurgery.program import identity

    if name == "cast":
        dtypes = (torch_dtype(given[0]),)
        tensors.evaluate(identity(), [(out, given)], dtypes, torch_dtype(out), overflow="default", wide=False)
    else:
        sdsurgery.apply(name, *given, out=out)


def contenders(
    name: str, method: Any, operands: Sequence[Sequence[Any]], names: Sequence[str], size: int
) -> dict[str, list[Work]]:
    """For each its works, one for every set of operands (the output, then the inputs)."""
    import torch

    params = bound(method)
    kind = operands[0][0].dtype
    works: dict[str, list[Work]] = {}
    for backend in names:
        works[backend] = [
            ours(backend, lambda out=out, given=given: evaluate(name, given, out)) for out, *given in operands
        ]
    works["torch"] = [lambda given=given: eager(method, params, given, kind) for _, *given in operands]
    if size >= LARGE:  # it compiles once for every size

        def body(*given: Any) -> Any:
            return eager(method, params, given, kind)

        torch._dynamo.reset()
        compiled = torch.compile(body, fullgraph=True, dynamic=False)
        works["torch.compile"] = [lambda given=given: compiled(*given) for _, *given in operands]
    if kind in (torch.float32, torch.float64):
        listed = [foreach(name, [[item] for item in given]) for _, *given in operands]
        if None not in listed:
            works["torch._foreach"] = listed  # type: ignore[assignment]
    return works


# ---- in memory


def numbers(count: int, dtype: Any) -> Any:
    """So many random numbers from −0.5 to 0.5; large ones repeat a block."""
    import torch

    few = min(count, 1 << 22)
    block = (torch.rand(few, device=gpu_clock.DEVICE) - 0.5).to(dtype).view(torch.uint8)
    return block.repeat(-(-count // few)).view(dtype)[:count]


def kernels(copies: Copies, names: Sequence[str], sizes: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By method, dtype, bytes of the output and contender: the copy's time over the contender's, and the microseconds
    that the host needs for a call."""
    import sdsurgery
    import torch
    from sdsurgery.backends.cpu import native_program
    from sdsurgery.methods import Method
    from sdsurgery.program import Program
    from sdsurgery.program.tracing import trace

    cast = Method("cast", ("A",), {}, lambda a: a)
    shares: dict[str, Any] = {}
    hosts: dict[str, Any] = {}
    seen: set[Program] = set()
    for name, method in {"cast": cast, **sdsurgery.methods()}.items():
        program = trace(method, len(method.inputs), bound(method)).program
        if program.in_stages or not native_program(program, False).fused:
            continue  # the host reduces; or the time is that of the steps, which is no method's
        if program in seen:
            continue  # another name of a kernel that was measured
        seen.add(program)
        for of, into in KINDS:
            kinds = [getattr(torch, into), *[getattr(torch, of)] * len(method.inputs)]
            label = of if of == into else f"{of} to {into}"
            for size in sizes:
                count = size // kinds[0].itemsize
                nbytes = count * sum(kind.itemsize for kind in kinds)
                sets = sets_for(nbytes)
                if 2 * sets * nbytes + 16 * count > free_memory():
                    print(f"{name} {label} {size}: too little memory", file=sys.stderr)
                    continue
                operands = [[numbers(count, kind) for kind in kinds] for _ in range(sets)]
                reference = copies.seconds(nbytes)
                row: dict[str, float] = {}
                host: dict[str, float] = {}
                for contender, works in contenders(name, method, operands, names, size).items():
                    found = attempt(works, f"{name} {label} {size} {contender}")
                    if found is not None:
                        row[contender], host[contender] = reference / found.gpu, found.host * 1e6
                shares.setdefault(name, {}).setdefault(label, {})[str(size)] = row
                hosts.setdefault(name, {}).setdefault(label, {})[str(size)] = host
                print(f"{name} {label} {size}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return shares, hosts


def attempt(works: Sequence[Work], label: str) -> Timed | None:
    """Its times; None, with a line, for a contender that cannot do it."""
    import torch

    try:
        return timed(works)
    except Exception as error:
        print(f"{label}: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}", file=sys.stderr)
        return None
    finally:
        if free_memory() < 4 << 30:
            torch.cuda.empty_cache()


def free_memory() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def unet(copies: Copies, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """A whole SD 1.5 U-Net in fp16 by apply_many: the time of a copy of as many bytes over the GPU's time, and over the
    time from call to call with the host's part in it; and the host's milliseconds."""
    import sdsurgery
    import torch
    from sdsurgery.layouts import get

    shapes = {item.key: item.shape for item in get("sd1").tensors() if item.key.startswith("model.diffusion_model.")}
    a, b, out = (
        {name: torch.zeros(shape, device=gpu_clock.DEVICE, dtype=torch.float16) for name, shape in shapes.items()}
        for _ in range(3)
    )
    reference = copies.seconds(3 * 2 * sum(item.numel() for item in a.values()))
    works: dict[str, Work] = {
        name: ours(name, lambda: sdsurgery.apply_many("weighted-sum", a, b, out=out)) for name in names
    }
    works["torch"] = lambda: [torch.lerp(x, y, 0.5) for x, y in zip(a.values(), b.values(), strict=True)]
    listed = foreach("weighted-sum", [list(a.values()), list(b.values())])
    assert listed is not None
    works["torch._foreach"] = listed
    shares: dict[str, Any] = {"on the GPU": {}, "from call to call": {}}
    hosts = {}
    for name, work in works.items():
        found = timed([work], most_calls=4)  # they are about ten launches a call
        shares["on the GPU"][name] = reference / found.gpu
        shares["from call to call"][name] = reference / max(found.gpu, found.host)
        hosts[name] = found.host * 1e3
        print(f"unet {name}: {reference / found.gpu:.3f}, {hosts[name]:.2f} ms of the host")
    return shares, hosts


# ---- files


def files(names: Sequence[str], size: str, folder: str | None = None) -> tuple[dict[str, Any], dict[str, float]]:
    """Medians of 5 runs: the CPU backend's time over each GPU backend's (above 1: the GPU is faster), and the slower of
    reading the inputs and writing the output over each backend's time; and the seconds."""
    import sdsurgery
    from sdsurgery.testing import write_checkpoint

    with tempfile.TemporaryDirectory(dir=folder) as place:
        inputs = [f"{place}/{name}.safetensors" for name in "ab"]
        for seed, path in enumerate(inputs):
            write_checkpoint(path, "sd1", seed=seed, size=size)
        out = f"{place}/out.safetensors"

        def merge(backend: str) -> None:
            sdsurgery.merge("weighted-sum", inputs, out=out, backend=backend, hash=False, sync=False)

        nbytes = os.path.getsize(inputs[0])
        works: dict[str, Work] = {name: lambda name=name: merge(name) for name in ("cpu", *names)}
        works["read"] = lambda: [read_file(path) for path in inputs]
        works["write"] = lambda: write_file(out, nbytes)
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(6):
            for name, work in works.items():
                if os.path.exists(out):
                    os.remove(out)
                started = time.perf_counter()
                work()
                if turn:
                    times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(found) for name, found in times.items()}
    floor = max(median["read"], median["write"])
    shares = {
        "over the CPU": {name: median["cpu"] / median[name] for name in names},
        "of reading or writing": {name: floor / median[name] for name in ("cpu", *names)},
    }
    return shares, median


_TILE = 8 * MIB
_THREADS = min(8, os.cpu_count() or 1)  # as many as the GPU backends have workers


def read_file(path: str) -> None:
    """Every byte once."""
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:
        buffers = [bytearray(_TILE) for _ in range(_THREADS)]

        def stretch(number: int) -> None:
            for start in range(number * _TILE, os.path.getsize(path), _THREADS * _TILE):
                os.preadv(file.fileno(), [buffers[number]], start)

        list(pool.map(stretch, range(_THREADS)))


def write_file(path: str, nbytes: int) -> None:
    """So many bytes, in reserved space."""
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:
        os.posix_fallocate(file.fileno(), 0, nbytes)
        data = bytes(_TILE)

        def stretch(number: int) -> None:
            for start in range(number * _TILE, nbytes, _THREADS * _TILE):
                os.pwrite(file.fileno(), memoryview(data)[: nbytes - start], start)

        list(pool.map(stretch, range(_THREADS)))


# ---- all of it


def measure(gpu: str, names: Sequence[str], *, quick: bool) -> dict[str, Any]:
    import machine
    import torch

    copies = Copies()
    rate = COPY_BYTES / copies.seconds(COPY_BYTES)
    print(f"{gpu}: a large device-to-device copy reads and writes {rate / 1e9:.0f} GB/s")
    kernel_shares, kernel_hosts = kernels(copies, names, (LARGE,) if quick else SIZES)
    unet_shares, unet_hosts = unet(copies, names)
    file_shares, file_seconds = files(names, "tiny" if quick else "full")
    return {
        "gpu": gpu,
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(tempfile.gettempdir()),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "copy_bytes_per_second": copies.rates(),
        "ratios": {"kernels": kernel_shares, "unet": unet_shares, "files": file_shares},
        "host_microseconds": kernel_hosts,
        "unet_host_milliseconds": unet_hosts,
        "file_seconds": file_seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size and a tiny file: does it run?")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-<name>-<date>.json")
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="FILE", help="OLD NEW, or NEW alone: with the newest kept result"
    )
    parser.add_argument("--tolerance", type=float, default=0.05)
    args = parser.parse_args(arguments)
    if args.compare:
        if len(args.compare) > 2:
            parser.error("--compare takes two files: the older one first")
        new = args.compare[-1]
        old = args.compare[0] if len(args.compare) == 2 else newest_kept(json.loads(new.read_text(encoding="utf-8")))
        if old is None:
            print("no kept result of this GPU")
            return 0
        return compare(old, new, args.tolerance)
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
    results = measure(torch.cuda.get_device_name(), names, quick=args.quick)
    out = args.out or Path(__file__).parent / "results" / result_name(results["gpu"], results["date"])
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(*worst(results), f"written: {out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
