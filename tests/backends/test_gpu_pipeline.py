"""The GPU backends without a GPU: files through the pipeline and tensors through ``apply``, with the CUDA module on a
fake device (tests/helpers/cuda_tools.py) and the Triton kernel in its interpreter. The bytes are the CPU's; failures
end cleanly, or on the CPU."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
import sdsurgery.kernels
import torch
from cuda_tools import install
from encoded_files import below, layer, write
from odd_files import odd_files
from safetensors.torch import save_file
from sdsurgery.errors import DeviceFailed, InputRefused, RunFailed, UsageError
from sdsurgery.functions import bernoulli, index, largest, maximum, mean, norm, normal, rank, size, uniform
from sdsurgery.gpu import tensors
from sdsurgery.gpu.tiles import tiles
from sdsurgery.interop import calls
from sdsurgery.methods.registry import _METHODS, Param, method
from triton_support import require_triton

LEAST = 4 << 20


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.fixture
def triton() -> None:
    require_triton(interpreted=True)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    request.getfixturevalue(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return odd_files(tmp_path_factory.mktemp("odd"), (1, 4099))


def merged(files: list[Path], folder: Path, name: str = "out", **options: Any) -> tuple[Any, ...]:
    out = folder / "out.safetensors"
    report = sdsurgery.merge("add-diff", files, alpha=0.7, out=out, sync=False, overwrite=True, **options)
    return hashlib.sha256(out.read_bytes()).hexdigest(), report.nonfinite, report.overflow


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["keep", "fp16", "fp8_e4m3"])
def test_a_file_of_odd_values_has_the_cpus_bytes_and_counts(
    odd: list[Path], tmp_path: Path, backend: str, dtype: str
) -> None:
    wanted = merged(odd, tmp_path, dtype=dtype)
    assert wanted[1] and wanted[2]
    assert merged(odd, tmp_path, dtype=dtype, backend=backend) == wanted


def test_a_checkpoint_has_the_cpus_bytes_for_any_memory_workers_and_devices(
    trio: list[Path], tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = merged(trio, tmp_path)
    for memory, threads, devices in ((LEAST, 0, 1), (LEAST, 1, 2), (0, 3, 1)):
        monkeypatch.setenv("FAKE_CUDA_DEVICES", str(devices))
        found = merged(trio, tmp_path, backend="cuda", gpu_memory=memory, threads=threads)
        assert found == wanted, (memory, threads, devices)
    assert merged(trio, tmp_path, backend="cuda", compute="fp64") == merged(trio, tmp_path, compute="fp64")


def _all_kinds(a: Any, b: Any, share: Any) -> Any:
    """What no file holds, of every kind: values of rows, columns and channels, places, random numbers, a selection."""
    rows = a / norm(a, axis=-1) + mean(b, axis=0) * index(a, 0) + maximum(b, axis="channel")
    return (
        rows
        + largest(abs(b), share * size(b)) * b
        + bernoulli(a, share, 5) * normal(a, 5) * uniform(a, 6)
        + rank(b, axis=1)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_no_file_holds_is_generated_by_the_host(tmp_path: Path, backend: str) -> None:
    method("all-kinds", inputs="A B", share=Param(0.3, "a share"))(_all_kinds)
    try:
        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        torch.manual_seed(0)
        for path in files:
            save_file(
                {"w": torch.randn(30, 3, 3, 3).half(), "d": torch.randn(300).double(), "s": torch.tensor(1.5)}, path
            )
        wanted = None
        for how in ({}, {"backend": backend}, {"backend": backend, "threads": 1, "gpu_memory": LEAST}):
            sdsurgery.merge("all-kinds", files, out=tmp_path / "o.safetensors", overwrite=True, sync=False, **how)
            found = (tmp_path / "o.safetensors").read_bytes()
            wanted = wanted or found
            assert found == wanted, how
    finally:
        del _METHODS["all-kinds"]


def test_encoded_weights_are_decoded_by_the_host(tmp_path: Path, backend: str) -> None:
    tensors, _ = layer("nf4 nested", 30, 70)
    rotated, _ = layer("int8 rotated", 30, 64)
    file = write(tmp_path / "a.safetensors", {**below("l", tensors), **below("r", rotated)})
    found = []
    for name in ("cpu", backend):
        out = tmp_path / "out.safetensors"
        sdsurgery.merge("weighted-sum", [file, file], alpha=0.3, out=out, overwrite=True, sync=False, backend=name)
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_scales_that_are_found_of_whole_tensors_are_the_cpus(trio: list[Path], tmp_path: Path, cuda: None) -> None:
    found = []
    for name in ("cpu", "cuda"):
        out = tmp_path / "out.safetensors"
        sdsurgery.merge(
            "weighted-sum", trio[:2], alpha=0.3, dtype="fp8_scaled", out=out, overwrite=True, sync=False, backend=name
        )
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_strided_tensors_and_records_with_a_crc(tmp_path: Path, cuda: None) -> None:
    files = [tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "c.ckpt"]
    torch.manual_seed(0)
    for path in files:
        base = torch.randn(70, 90)
        torch.save({"state_dict": {"t": base.t(), "s": base[::2, 1:], "w": torch.randn(33).half()}}, path)
    for out in ("out.safetensors", "out.ckpt"):
        found = []
        for backend in ("cpu", "cuda"):
            sdsurgery.merge("add-diff", files, out=tmp_path / out, sync=False, overwrite=True, backend=backend)
            found.append((tmp_path / out).read_bytes())
        assert found[0] == found[1], out
    data = bytearray(files[1].read_bytes())
    at = data.find(torch.load(files[1], weights_only=True)["state_dict"]["w"].numpy().tobytes())
    data[at + 8] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(RunFailed, match="CRC-32"):
        sdsurgery.merge("add-diff", files, out=tmp_path / "x.safetensors", sync=False, backend="cuda")
    assert not (tmp_path / "x.safetensors").exists()


def test_tiles_cover_the_output_once_and_keep_their_limits(trio: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsurgery import engine

    plans: list[Any] = []
    monkeypatch.setattr(engine, "preview", lambda plan, *rest: plans.append(plan) or {})
    sdsurgery.merge("add-diff", trio, dry_run=True)
    (plan,) = plans
    for out_limit, in_limit in ((4096, 1 << 14), (100_000, 70_000), (1 << 30, 1 << 30), (64, 1 << 20)):
        done = [0] * len(plan.jobs)
        end = plan.data_start
        for tile in tiles(plan, out_limit, in_limit):
            assert tile.start >= end and tile.end - tile.base <= out_limit and tile.in_bytes <= in_limit
            end = tile.end
            for part in tile.parts:
                job = plan.jobs[part.job]
                unit = 1 if job.program is None else job.dtype.itemsize
                assert part.first == done[part.job] and part.out + tile.base == job.offset + part.first * unit
                assert all(place % 16 == 0 for place in part.ins)
                done[part.job] += part.count
        assert done == [job.nbytes if job.program is None else job.count for job in plan.jobs]


def test_the_built_module_can_be_imported_without_a_gpu_and_says_why() -> None:
    if not list(Path(sdsurgery.kernels.__file__).parent.glob("_cuda*")):
        pytest.skip("built without nvcc")
    if any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
        pytest.skip("there is a GPU")
    script = "from sdsurgery.kernels import _cuda; print(_cuda.unavailable()); print(_cuda.devices())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["there is no NVIDIA driver", "[]"]


@pytest.mark.parametrize("memory", [8 << 20, 20 << 20, 256 << 20])
def test_the_buffers_of_a_run_keep_to_their_memory(trio: list[Path], cuda: None, memory: int, tmp_path: Path) -> None:
    report = sdsurgery.compare(*trio[:2], backend="cuda", gpu_memory=memory, threads=4)
    assert report.how["buffer_bytes"] <= memory
    merge = sdsurgery.merge("add-diff", trio, out=tmp_path / "x.safetensors", backend="cuda", gpu_memory=memory)
    assert merge.how["buffer_bytes"] <= memory + (1 << 12)
    with pytest.raises(UsageError, match="at least 8 MiB"):
        sdsurgery.compare(*trio[:2], backend="cuda", gpu_memory=(8 << 20) - 1)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("7.5", "75-real 80-real 89-real 90 120", True),
        ("8.6", "75-real 80-real 89-real 90 120", True),  # code for 8.0
        ("8.9", "75-real;80-real", True),
        ("8.0", "75-real 86-real 90", False),
        ("7.0", "75-real 80-real 89-real 90 120", False),
        ("10.3", "75-real 80-real 89-real 90", True),  # translated
        ("12.1", "90-real 120-real", True),
        ("10.0", "75-real 90-real", False),
        ("9.0", "90-virtual", True),
        ("8.9", "90-virtual", False),
        ("6.1", "all-major", True),
    ],
)
def test_a_device_is_used_where_there_is_code_for_it(capability: str, architectures: str, runs: bool) -> None:
    from sdsurgery.backends.cuda import built_for

    assert built_for(capability, architectures) is runs


def test_a_gpu_without_code_says_what_there_is(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsurgery.backends import choose
    from sdsurgery.backends import cuda as backend

    module = backend.module()
    monkeypatch.setattr(module, "architectures", "90-real")
    with pytest.raises(
        UsageError, match=r"cannot be used here: .*built for .*90-real, and this machine has Fake \(8\.8\)"
    ):
        choose("cuda")
    assert backend.devices() == []


# ---- failures


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".safetensors" or path.name.startswith(".")]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("FAKE_CUDA_MEMORY=1000", "out of GPU memory"),
        ("FAKE_CUDA_LAUNCHES=2", "the GPU failed"),
        ("FAKE_CUDA_DEVICES=0", "there is no NVIDIA GPU"),
    ],
)
def test_a_failing_gpu_is_one_line_and_nothing_is_left_or_the_cpu_goes_on(
    trio: list[Path], tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch, *, setting: str, words: str
) -> None:
    wanted = merged(trio, tmp_path, hash=False)
    before = (tmp_path / "out.safetensors").read_bytes()
    name, _, value = setting.partition("=")
    monkeypatch.setenv(name, value)
    options: dict[str, Any] = {"backend": "cuda", "gpu_memory": LEAST}
    with pytest.raises((DeviceFailed, UsageError), match=words) as caught:
        merged(trio, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out.safetensors").read_bytes() == before and not leftovers(tmp_path)
    assert merged(trio, tmp_path, fallback="cpu", hash=False, **options) == wanted
    monkeypatch.delenv(name)
    report = sdsurgery.merge("add-diff", trio, out=tmp_path / "x.safetensors", sync=False, fallback="cpu", **options)
    assert report.how["backend"] == "cuda" and "fallback" not in report.how


@pytest.mark.parametrize("kind", ["memory", "device", "compiler"])
def test_failures_of_triton_and_torch_are_one_line_too(
    trio: list[Path], tmp_path: Path, triton: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from sdsurgery.kernels import elementwise
    from triton.errors import TritonError

    errors = {
        "memory": (torch.cuda.OutOfMemoryError("CUDA out of memory\nmore"), "out of GPU memory"),
        "device": (RuntimeError("CUDA error: unspecified launch failure\nmore"), "the GPU failed: CUDA error: unspec"),
        "compiler": (TritonError("no such instruction\nmore"), "Triton: no such instruction"),
    }
    error, words = errors[kind]

    def launch(*_: Any, **__: Any) -> None:
        raise error

    wanted = merged(trio, tmp_path, hash=False)
    monkeypatch.setattr(elementwise, "launch", launch)
    with pytest.raises(DeviceFailed, match=words) as caught:
        merged(trio, tmp_path, backend="triton")
    assert "\n" not in str(caught.value) and not leftovers(tmp_path)
    assert merged(trio, tmp_path, backend="triton", fallback="cpu", hash=False) == wanted


def test_info_shows_the_devices(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsurgery.commands import info
    from sdsurgery.report import console

    monkeypatch.setenv("FAKE_CUDA_DEVICES", "2")
    found = info.collect()
    assert found["backends"]["cuda"] == "usable"
    assert [row["number"] for row in found["devices"]["cuda"]] == [0, 1]
    assert "cuda device 1: Fake, compute capability 8.8, 1024 MiB" in console.info_lines(found)


def test_the_fallback_is_reported_and_hashes_are_right(
    trio: list[Path], tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = merged(trio, tmp_path)  # with hashes
    monkeypatch.setenv("FAKE_CUDA_LAUNCHES", "3")
    assert merged(trio, tmp_path, backend="cuda", gpu_memory=LEAST, fallback="cpu") == wanted
    report = sdsurgery.merge("add-diff", trio, out=tmp_path / "x.safetensors", backend="cuda", fallback="cpu")
    assert report.how["backend"] == "cpu" and "the GPU failed" in report.how["fallback"]


def test_compare_goes_on_by_the_cpu_when_the_gpu_fails(
    trio: list[Path], cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sdsurgery.compare(*trio[:2])
    monkeypatch.setenv("FAKE_CUDA_LAUNCHES", "2")
    with pytest.raises(DeviceFailed, match="the GPU failed"):
        sdsurgery.compare(*trio[:2], backend="cuda")
    found = sdsurgery.compare(*trio[:2], backend="cuda", fallback="cpu")
    assert found.total == wanted.total and found.how["backend"] == "cpu"
    (note,) = (note for note in found.notes if note not in wanted.notes)
    assert note.startswith("done by the backend cpu, because")


def test_policies_that_refuse_name_the_tensor(odd: list[Path], tmp_path: Path, cuda: None) -> None:
    with pytest.raises(InputRefused, match=r"tensor 'F.*NaN or Inf"):
        merged(odd, tmp_path, backend="cuda", on_nonfinite="error")
    with pytest.raises(RunFailed, match=r"tensor '.*does not fit"):
        merged(odd, tmp_path, backend="cuda", overflow="error")
    with pytest.raises(UsageError, match="gpu_memory"):
        merged(odd, tmp_path, backend="cuda", gpu_memory=1000)
    assert not list(tmp_path.iterdir())


# ---- tensors: CPU tensors that are taken for tensors of a GPU


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, backend: str) -> str:
    monkeypatch.setattr(calls, "device_of", lambda inputs, out: torch.device("cpu"))
    monkeypatch.setattr(tensors, "BACKENDS", (backend,))
    return backend


def some(count: int, dtype: Any, shape: tuple[int, ...] = (37, 53)) -> list[Any]:
    torch.manual_seed(count)
    return [torch.randn(shape).to(dtype) for _ in range(count)]


def formula_of(a: Any, b: Any, c: Any) -> Any:
    return a.float() + torch.tensor(0.7) * (b.float() - c.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_apply_on_device_tensors(on_gpu: str, dtype: Any) -> None:
    a, b, c = some(3, dtype)
    wanted = formula_of(a, b, c)
    assert torch.equal(sdsurgery.apply("add-diff", a, b, c, alpha=0.7).float(), wanted.to(dtype).float())
    mixed = sdsurgery.apply("add-diff", a, b.float(), c, alpha=0.7, dtype="bf16")
    assert torch.equal(mixed, wanted.to(torch.bfloat16))
    assert sdsurgery.apply("add-diff", a, b, c, alpha=0.7, out=b) is b
    assert torch.equal(b.float(), wanted.to(dtype).float())


def test_apply_on_device_tensors_of_any_strides(on_gpu: str) -> None:
    a, b, c = some(3, torch.float32)
    wanted = formula_of(a, b, c)
    at, bt, ct = (item.T.contiguous().T for item in (a, b, c))
    result = sdsurgery.apply("add-diff", at, bt, ct, alpha=0.7)
    assert torch.equal(result, wanted) and result.stride() == at.stride()
    assert torch.equal(sdsurgery.apply("add-diff", at, b, c, alpha=0.7), wanted)
    whole = torch.zeros(37, 106)
    sdsurgery.apply("add-diff", a, b, c, alpha=0.7, out=whole[:, ::2])
    assert torch.equal(whole[:, ::2], wanted) and not whole[:, 1::2].any()
    shifted = torch.randn(2000)
    before = shifted.clone()
    sdsurgery.apply("weighted-sum", shifted[:-1], shifted[1:], alpha=0.5, out=shifted[1:])  # overlaps
    assert torch.equal(shifted[1:], 0.5 * before[:-1] + 0.5 * before[1:])
    scalar = sdsurgery.apply("weighted-sum", torch.tensor(1.0), torch.tensor(3.0))
    assert scalar.shape == () and float(scalar) == 2
    assert sdsurgery.apply("weighted-sum", torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


def test_apply_many_on_device_tensors(on_gpu: str) -> None:
    shapes = [(3,), (4, 5), (), (1000,), (0,), (7, 3)]
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    a, b = ({f"t{i}": torch.randn(shape).to(kinds[i % 3]) for i, shape in enumerate(shapes)} for _ in range(2))
    found = sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25)
    assert list(found) == list(a)
    for name, result in found.items():
        wanted = (0.75 * a[name].float() + 0.25 * b[name].float()).to(a[name].dtype)
        assert torch.equal(result, wanted), name
    assert sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25, out=a) is a
    assert all(torch.equal(a[name], found[name]) for name in found)


def test_plain_tensors_are_separated_from_others(cuda: None) -> None:
    from sdsurgery.backends.cuda import plain_rows

    a, b, c = some(3, torch.float16)
    wide = torch.zeros(37, 106, dtype=torch.float16)
    good = [
        [c, a, b],
        [a, a, b],  # in place
        [torch.nn.Parameter(c), a, torch.nn.Parameter(b.float())],
        [torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3)],
        [wide[:3], wide[3:6], wide[7:10].double()],  # parts of one memory
        [c.view(torch.float8_e5m2), a.view(torch.float8_e4m3fn), wide[:, :53].contiguous().view(torch.float8_e5m2)],
        [c[:, None, :, None], a[:, None, :, None], b[:, None, :, None]],
        [torch.zeros(4, 5, 3, 3).to(memory_format=torch.channels_last) for _ in range(3)],
        [c.T, a.T, b.T],
    ]
    odd = [
        [c, a, b.T.contiguous().T],
        [wide[:, ::2], a, b],
        [wide[:, ::2], wide[:, 1::2], wide[:, ::2]],
        [torch.zeros(4, 5, 3, 3).to(memory_format=torch.channels_last), *(torch.zeros(4, 5, 3, 3) for _ in "ab")],
        [c, a, b[:, :1].expand(37, 53)],
        [c, a, b[:36]],
        [c, a, b.to(torch.int16)],
        [c, a, b.numpy()],
        [c.view(-1)[1:], c.view(-1)[:-1], b.view(-1)[1:]],  # the output over what is still to be read
        [wide.view(-1)[: 37 * 53], wide.view(torch.float32).view(-1)[: 37 * 53], a.view(-1)],
        [torch.zeros(()), torch.zeros(()), torch.zeros(())],
        [None, a, b],
        [c, a, b.to_sparse()],
    ]
    rows = plain_rows([item for row in (*good, *odd) for item in row], 3)
    assert rows is not None
    assert list(rows.left) == list(range(len(good), len(good) + len(odd)))


def test_apply_many_takes_rows_of_every_sort_at_once(on_gpu: str) -> None:
    a, b, c = some(3, torch.float32)
    last = [torch.randn(4, 5, 3, 3).to(memory_format=torch.channels_last) for _ in "ab"]
    first = {"plain": a, "turned": a.T.contiguous().T, "half": a.half(), "one": torch.tensor(2.0), "last": a[:, ::2]}
    other = {"plain": b, "turned": b, "half": b.half(), "one": torch.tensor(4.0), "last": b[:, ::2]}
    first["convolution"], other["convolution"] = last
    found = sdsurgery.apply_many("weighted-sum", first, other, alpha=0.25)
    for name, result in found.items():
        assert torch.equal(result, (0.75 * first[name].float() + 0.25 * other[name].float()).to(result.dtype)), name
    narrow = sdsurgery.apply_many("weighted-sum", first, other, alpha=0.25, dtype="bf16")
    assert all(torch.equal(narrow[name], found[name].bfloat16()) for name in found if name != "half")
    with pytest.raises(UsageError, match="tensor 'plain': out is F32, but dtype asks for bf16"):
        sdsurgery.apply_many("weighted-sum", first, other, out={"plain": c}, dtype="bf16")
    before = c.clone()
    with pytest.raises(UsageError, match="tensor 'x': shapes differ"):
        sdsurgery.apply_many("weighted-sum", {"w": a, "x": a}, {"w": b, "x": b[:1]}, out={"w": c})
    assert torch.equal(c, before), "something was evaluated before all was checked"


def test_apply_many_on_shared_memory(on_gpu: str) -> None:
    a, b, c = some(3, torch.float32)
    wanted = 0.5 * a + 0.5 * b
    tied = {"x": a, "other": c, "y": a.detach()}
    sdsurgery.apply_many("weighted-sum", tied, {"x": b, "other": c, "y": b.view(37, 53)}, alpha=0.5, out=tied)
    assert torch.equal(a, wanted)
    chain = [torch.full((4000,), float(number)) for number in range(3)]  # each output is the next one's input
    first, out = {"x": chain[0], "y": chain[1]}, {"x": chain[1], "y": chain[2]}
    sdsurgery.apply_many("weighted-sum", first, {"x": chain[0] + 8, "y": chain[0] + 16}, alpha=0.5, out=out)
    assert float(chain[1].min()) == float(chain[1].max()) == 4 and float(chain[2].min()) == float(chain[2].max()) == 10


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_overflow_error_on_device_tensors(on_gpu: str) -> None:
    big = torch.full((5,), 60000.0)
    with pytest.raises(RunFailed, match="5 values do not fit F16"):
        sdsurgery.apply("weighted-sum", big, big, weights=[1.0, 1.0], dtype="fp16", overflow="error")
    assert float(sdsurgery.apply("weighted-sum", big, big, dtype="fp16", overflow="error").max()) == 60000


def test_without_any_gpu_backend_every_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsurgery.backends import cuda, triton

    monkeypatch.setattr(calls, "device_of", lambda inputs, out: torch.device("cpu"))
    for module, reason in ((cuda, "no driver"), (triton, "not installed")):
        backend = module.BACKEND
        monkeypatch.setattr(module, "BACKEND", type(backend)(backend.name, lambda r=reason: r, *[None] * 2))
    with pytest.raises(UsageError, match="cuda: no driver; triton: not installed"):
        sdsurgery.apply("weighted-sum", *some(2, torch.float32))
