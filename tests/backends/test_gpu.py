"""On a real GPU: ``python -m pytest -m gpu --require-gpu``. Every backend that is usable here, bit for bit against the
reference: tensors and files; streams, memory, and what happens when there is none left."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
import torch
from numeric_tools import CASES, CAST, CODE, FLOATS, SORTS, every, expected, label
from sdsurgery import backends
from sdsurgery.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType
from sdsurgery.errors import DeviceFailed, RunFailed, SdsError
from sdsurgery.gpu import tensors
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.gpu

TORCH = {
    F64: torch.float64, F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16,
    F8_E4M3: torch.float8_e4m3fn, F8_E5M2: torch.float8_e5m2,
}  # fmt: skip
# Around a pack, a block's packs, Triton's blocks; the last one fills many blocks.
SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 511, 1023, 1024, 1025, 2049, 300_007)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    # Where a GPU is required both backends are: one that is broken must not hide behind the other.
    cannot = pytest.fail if request.config.getoption("--require-gpu") and torch.cuda.is_available() else pytest.skip
    if not torch.cuda.is_available():
        cannot("torch finds no GPU")
    try:
        chosen = backends.choose(name)
    except SdsError as error:
        cannot(str(error))
    if chosen.devices()[0]["name"] == "Triton's interpreter":
        cannot("Triton is interpreted")
    monkeypatch.setattr(tensors, "BACKENDS", (name,))
    return name


def on_device(codes: np.ndarray, dtype: DType, shift: int = 0) -> Any:
    """The codes as a tensor on the GPU, ``shift`` elements off the alignment of its allocation."""
    raw = torch.from_numpy(codes.astype(CODE[dtype]).view(np.uint8).copy())
    room = torch.empty(raw.numel() + 16 * dtype.itemsize, dtype=torch.uint8, device="cuda")
    view = room[shift * dtype.itemsize : shift * dtype.itemsize + raw.numel()]
    view.copy_(raw)
    return view.view(TORCH[dtype])


def codes_of(tensor: Any, dtype: DType) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().view(CODE[dtype])


# ---- conformance


EVERY = every()


@pytest.mark.parametrize(("name", "mixture"), EVERY, ids=label)
def test_every_method_and_dtype_equals_the_reference(backend: str, name: str, mixture: tuple[DType, ...]) -> None:
    case = CASES[name]
    kinds = list(itertools.islice(itertools.cycle(mixture), case.count))
    rng = np.random.default_rng(len(name))
    whole = {sort: [SORTS[sort](kind, SIZES[-1], rng) for kind in kinds] for sort in SORTS}
    first = EVERY.index((name, mixture))
    for place, out in enumerate(FLOATS):
        # Triton compiles for every one of these, so that it gets one for an output dtype, another in every test.
        for number in range(first + place, first + place + (1 if backend == "triton" else 6)):
            how: dict[str, Any] = {"overflow": ("default", "inf", "saturate")[number % 3]}
            compute = "fp64" if number % 2 else "fp32"
            for sort, size in (*(("wild", size) for size in SIZES), ("plain", 4097), ("mixed", 4097)):
                inputs = [(codes[:size], kind) for codes, kind in zip(whole[sort], kinds, strict=True)]
                given = [on_device(codes, kind, (number + k) % 4) for k, (codes, kind) in enumerate(inputs)]
                result = on_device(np.zeros(size, CODE[out]), out, number % 3)
                if case is CAST:  # no method: apply has no name for it
                    row = [(result, given)]
                    tensors.evaluate(case.formula, row, (kinds[0],), out, wide=compute == "fp64", **how)
                else:
                    sdsurgery.apply(case.method.name, *given, out=result, compute=compute, **how, **case.given)
                wanted = expected(case.formula, inputs, out, wide=compute == "fp64", **how)
                found = codes_of(result, out)
                where = np.flatnonzero(found != wanted.codes)
                assert where.size == 0, (
                    f"{sort} {size} to {out} {how} {compute}: {where.size} differ, first at {where[0]}: "
                    f"{found[where[0]]:#x}, expected {wanted.codes[where[0]]:#x}, "
                    f"inputs {[hex(codes[where[0]]) for codes, _ in inputs]}"
                )


@pytest.mark.parametrize("of", FLOATS[2:], ids=str)
def test_every_code_through_every_cast(backend: str, of: DType) -> None:
    codes = np.arange(1 << of.bits, dtype=np.uint64).astype(CODE[of])
    for out in FLOATS:
        result = on_device(np.zeros(codes.size, CODE[out]), out)
        tensors.evaluate(CAST.formula, [(result, [on_device(codes, of)])], (of,), out, overflow="default", wide=False)
        wanted = expected(CAST.formula, [(codes, of)], out)
        assert np.array_equal(codes_of(result, out), wanted.codes), (of, out)


# ---- streams and memory


def test_it_runs_on_the_callers_stream_without_waiting_or_allocating(backend: str) -> None:
    a, b = (torch.randn(1 << 22, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    sdsurgery.apply("weighted-sum", a, b, alpha=0.25, out=out)  # compiles
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            a.fill_(2.0)  # behind the sleep: what came later on this stream must see it
            sdsurgery.apply("weighted-sum", a, b, alpha=0.25, out=out)
            busy = not stream.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert busy, "apply waited for the stream"
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    stream.synchronize()
    assert torch.equal(out, 0.75 * a + 0.25 * b)


def test_it_can_be_captured_into_a_graph(backend: str) -> None:
    a, b = ({name: torch.randn(size, device="cuda") for name, size in (("x", 5000), ("y", 77))} for _ in range(2))
    out = {name: torch.empty_like(item) for name, item in a.items()}
    sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25, out=out)  # compiles, loads
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25, out=out)
    for item in (*a.values(), *b.values()):
        item.mul_(2)
    graph.replay()
    for name, result in out.items():
        assert torch.equal(result, 0.75 * a[name] + 0.25 * b[name])


def test_tensors_on_another_device_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    a, b = (torch.randn(5000, device="cuda:1") for _ in range(2))
    result = sdsurgery.apply("weighted-sum", a, b, alpha=0.25)
    assert torch.cuda.current_device() == 0 and result.device == a.device
    assert torch.equal(result, 0.75 * a + 0.25 * b)


def test_tied_weights_and_chains(backend: str) -> None:
    a, b = (torch.randn(300_000, device="cuda") for _ in range(2))
    wanted = 0.5 * a + 0.5 * b
    tied = {"x": a, "y": a[:]}
    sdsurgery.apply_many("weighted-sum", tied, {"x": b, "y": b[:]}, alpha=0.5, out=tied)
    assert torch.equal(a, wanted)
    if backend == "cuda":  # each output is the next one's input
        chain = [torch.full((300_000,), float(number), device="cuda") for number in range(3)]
        first, out = {"x": chain[0], "y": chain[1]}, {"x": chain[1], "y": chain[2]}
        sdsurgery.apply_many("weighted-sum", first, {"x": chain[0] + 8, "y": chain[0] + 16}, alpha=0.5, out=out)
        assert bool((chain[1] == 4).all()) and bool((chain[2] == 10).all())


def test_in_place_strided_and_empty(backend: str) -> None:
    base = torch.randn(3, 300, 700, device="cuda")
    a, b, c = base
    wanted = a + torch.tensor(0.7, device="cuda") * (b - c)
    at, bt, ct = (item.T.contiguous().T for item in base)
    assert torch.equal(sdsurgery.apply("add-diff", at, bt, ct, alpha=0.7), wanted)
    assert torch.equal(sdsurgery.apply("add-diff", a, bt, c, alpha=0.7), wanted)
    wide = torch.zeros(300, 1400, device="cuda")
    sdsurgery.apply("add-diff", a, b, c, alpha=0.7, out=wide[:, ::2])
    assert torch.equal(wide[:, ::2], wanted) and not wide[:, 1::2].any()
    assert sdsurgery.apply("add-diff", a, b, c, alpha=0.7, out=b) is not None
    assert torch.equal(base[1], wanted)
    empty = torch.zeros(0, 3, device="cuda")
    assert sdsurgery.apply("weighted-sum", empty, empty).shape == (0, 3)


def test_many_tensors(backend: str) -> None:
    rng = np.random.default_rng(0)
    kinds = [torch.float16, torch.bfloat16, torch.float32]
    shapes = [tuple(int(n) for n in rng.integers(1, 90, rng.integers(1, 4))) for _ in range(700)]
    a, b = (
        {f"t{i}": torch.randn(shape, device="cuda").to(kinds[i % 3]) for i, shape in enumerate(shapes)}
        for _ in range(2)
    )
    found = sdsurgery.apply_many("weighted-sum", a, b, alpha=0.3)
    for name, tensor in a.items():
        wanted = sdsurgery.apply("weighted-sum", tensor.cpu(), b[name].cpu(), alpha=0.3)
        assert torch.equal(found[name].cpu(), wanted), name


def test_more_than_two_to_the_31_elements(backend: str) -> None:
    count = (1 << 31) + 1021
    if torch.cuda.mem_get_info()[0] < 4 * count:
        pytest.skip("too little GPU memory")
    codes = torch.zeros(count, dtype=torch.uint8, device="cuda")
    codes[-1021:] = 0x42  # 3.0
    a = codes.view(torch.float8_e5m2)
    result = sdsurgery.apply("weighted-sum", a, a, alpha=0.5).view(torch.uint8)
    assert torch.equal(result, codes)


def test_overflow_error_counts(backend: str) -> None:
    big = torch.full((1000,), 60000.0, device="cuda")
    with pytest.raises(RunFailed, match="1000 values"):
        sdsurgery.apply("weighted-sum", big, big, weights=[1.0, 1.0], dtype="fp16", overflow="error")


# ---- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    names = [folder / f"{name}.safetensors" for name in "abc"]
    for seed, (file, dtype) in enumerate(zip(names, ("fp16", "fp32", "bf16"), strict=True)):
        write_checkpoint(file, "sd1", dtype=dtype, seed=seed, size="tiny")
    return names


@pytest.mark.parametrize("dtype", ["keep", "fp32", "fp8_e4m3"])
def test_files_have_the_cpus_bytes(backend: str, files: list[Path], tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("add-diff", files, alpha=0.7, out=out, sync=False, dtype=dtype)
    wanted = out.read_bytes()
    for memory in (4 << 20, 0):
        report = sdsurgery.merge(
            "add-diff", files, alpha=0.7, out=out, sync=False, overwrite=True, dtype=dtype, backend=backend,
            gpu_memory=memory,
        )  # fmt: skip
        assert out.read_bytes() == wanted
        assert report.how["backend"] == backend and report.how["buffer_bytes"] <= (memory or 256 << 20) + (1 << 20)


def test_compare_has_the_cpus_numbers(backend: str, files: list[Path]) -> None:
    if backend != "cuda":
        pytest.skip("only the CUDA kernels have reductions")
    wanted, found = (sdsurgery.compare(*files[:2], backend=name).to_dict() for name in ("cpu", "cuda"))
    assert found["how"]["backend"] == "cuda"
    assert {**found, "how": 0, "seconds": 0} == {**wanted, "how": 0, "seconds": 0}


def test_out_of_memory_is_one_line_and_the_cpu_can_go_on(backend: str, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    torch.cuda.empty_cache()
    hog = []
    for size in (1 << 30, 1 << 26, 1 << 23):
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            while True:
                hog.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    try:
        with pytest.raises(DeviceFailed, match="memory") as caught:
            sdsurgery.merge("add-diff", files, out=out, sync=False, backend=backend)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
        report = sdsurgery.merge("add-diff", files, out=out, sync=False, backend=backend, fallback="cpu")
        assert report.how["backend"] == "cpu" and "memory" in report.how["fallback"]
    finally:
        del hog
        torch.cuda.empty_cache()
