"""File to file: the same bytes for any threads, tiles, way of reading, CPU target and backend, and every merged tensor
the float32 expression rounded once, as torch and the safetensors library read it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
import torch
from numeric_tools import CODE, TARGETS, expected
from odd_files import odd_files, write_file
from safetensors.torch import load_file as load_torch
from sdsurgery.dtypes import BF16, BY_NAME, F8_E4M3, F8_E5M2, F16, F32, F64, DType
from sdsurgery.methods import get
from sdsurgery.program.tracing import trace
from sdsurgery.testing import write_checkpoint

ALPHA = 0.7
OPTIONS = {"fp32": F32, "fp16": F16, "bf16": BF16, "fp8_e4m3": F8_E4M3, "fp8_e5m2": F8_E5M2}
Tensors = Mapping[str, tuple[DType, tuple[int, ...], bytes]]


def written(dtype: str, shape: Sequence[int]) -> DType | None:
    """What a tensor is cast to when that dtype is asked for: norms and biases stay in fp16 in fp8 files."""
    to = OPTIONS.get(dtype)
    return F16 if to is not None and to.bits == 8 and len(shape) < 2 else to


def read_file(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the safetensors library finds in a file."""
    import safetensors

    found = safetensors.deserialize(path.read_bytes())
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in found}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return odd_files(tmp_path_factory.mktemp("odd"), (1, 17, 4099, 33333))


WAYS: dict[str, dict[str, Any]] = {
    **{f"threads {n}": {"threads": n} for n in (1, 2, 5)},
    **{f"tiles of {n}": {"tile_bytes": n} for n in (4096, 65536)},
    "tiles of 4096, 5 threads": {"tile_bytes": 4096, "threads": 5},
    "pread": {"io": "pread"},
    "mmap": {"io": "mmap"},
    "mmap, tiles of 4096": {"io": "mmap", "tile_bytes": 4096, "threads": 2},
    "reference": {"backend": "reference"},
    **{f"target {name}": {"target": name} for name in TARGETS},
}


def outputs(
    files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, tuple[str, dict[str, int], dict[str, int]]]:
    """Digest, non-finite counts and overflow counts of the merge, for every way to run it."""
    found = {}
    for number, (label, given) in enumerate(WAYS.items()):
        way = dict(given)
        monkeypatch.setenv("SDS_CPU", way.pop("target", ""))
        out = folder / str(number) / "out.safetensors"  # the file's name is the title in its metadata
        out.parent.mkdir()
        report = sdsurgery.merge("add-diff", files, alpha=ALPHA, out=out, sync=False, **options, **way)
        found[label] = (digest(out), report.nonfinite, report.overflow)
        out.unlink()
    return found


@pytest.mark.parametrize("hashed", [False, True], ids=["no hash", "hash"])
@pytest.mark.parametrize("dtype", ["keep", "fp16", "fp8_e4m3"])
def test_the_same_bytes_for_any_threads_tiles_io_target_and_backend(
    trio: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, hashed: bool
) -> None:
    found = outputs(trio, tmp_path, monkeypatch, dtype=dtype, hash=hashed)
    assert found == dict.fromkeys(found, found["threads 1"])


@pytest.mark.parametrize("compute", ["fp32", "fp64"])
@pytest.mark.parametrize("dtype", ["keep", "fp32", "bf16", "fp8_e5m2"])
def test_the_same_bytes_and_counts_for_odd_values_and_offsets(
    odd: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, compute: str
) -> None:
    found = outputs(odd, tmp_path, monkeypatch, dtype=dtype, compute=compute, hash=False)
    assert found == dict.fromkeys(found, found["threads 1"])
    _, nonfinite, overflow = found["threads 1"]
    assert len(nonfinite) > 10 and len(overflow) > 10


@pytest.mark.parametrize("overflow", ["default", "inf", "saturate"])
@pytest.mark.parametrize("dtype", ["keep", *OPTIONS])
def test_merged_tensors_equal_the_reference_for_mixed_dtypes_at_odd_offsets(
    odd: list[Path], tmp_path: Path, dtype: str, overflow: str
) -> None:
    out = tmp_path / "out.safetensors"
    report = sdsurgery.merge(
        "add-diff", odd, alpha=ALPHA, out=out, dtype=dtype, overflow=overflow, hash=False, sync=False
    )
    formula = trace(get("add-diff"), 3, {"alpha": ALPHA})
    inputs, result = [read_file(path) for path in odd], read_file(out)
    assert result.keys() == inputs[0].keys()
    assert result.pop("integers") == inputs[0].pop("integers")
    for name, (kind, shape, data) in result.items():
        given = [
            (np.frombuffer(item[name][2], CODE[BY_NAME[item[name][0]]]), BY_NAME[item[name][0]]) for item in inputs
        ]
        to = written(dtype, inputs[0][name][1]) or given[0][1]
        wanted = expected(formula, given, to, overflow=overflow)
        assert (kind, shape) == (to.name, inputs[0][name][1])
        assert data == wanted.codes.tobytes(), name
        assert report.nonfinite.get(name, 0) == wanted.nonfinite
        assert report.overflow.get(name, 0) == wanted.overflow


@pytest.mark.parametrize("method", ["weighted-sum", "add-diff"])
@pytest.mark.parametrize("dtype", ["keep", "fp32", "fp16", "bf16"])
def test_merged_checkpoints_equal_the_float32_expression_of_torch_rounded_once(
    trio: list[Path], tmp_path: Path, method: str, dtype: str
) -> None:
    out = tmp_path / "out.safetensors"
    files = trio if method == "add-diff" else trio[1:]
    report = sdsurgery.merge(method, files, alpha=ALPHA, out=out, dtype=dtype, hash=False, sync=False)
    inputs, result = [load_torch(path) for path in files], load_torch(out)
    assert list(result) and result.keys() == inputs[0].keys()
    merged = 0
    for name, tensor in result.items():
        first = inputs[0][name]
        if not first.is_floating_point() or name in {"betas", "alphas_cumprod"} or first.dtype is torch.float32:
            assert torch.equal(tensor, first) and tensor.dtype is first.dtype  # integers and noise-schedule buffers
            continue
        merged += 1
        to = (
            first.dtype
            if dtype == "keep"
            else getattr(torch, {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype])
        )
        wide = [item[name].float() for item in inputs]
        if method == "add-diff":
            wanted = wide[0] + ALPHA * (wide[1] - wide[2])
        else:
            wanted = (1 - ALPHA) * wide[0] + ALPHA * wide[1]
        assert tensor.dtype is to and tensor.shape == first.shape
        bits = torch.int32 if to is torch.float32 else torch.int16
        assert torch.equal(tensor.view(bits), wanted.to(to).view(bits)), name
    assert merged == report.counts["merged"] > 1000


@pytest.mark.parametrize("dtype", OPTIONS)
def test_cast_checkpoints_equal_torch_s_cast(trio: list[Path], tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.safetensors"
    sdsurgery.cast(trio[0], dtype=dtype, out=out, hash=False, sync=False)
    names = {F32: "float32", F16: "float16", BF16: "bfloat16", F8_E4M3: "float8_e4m3fn", F8_E5M2: "float8_e5m2"}
    before, after = load_torch(trio[0]), load_torch(out)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        to = written(dtype, before[name].shape)
        assert to is not None
        kind = getattr(torch, names[to])
        wanted = before[name] if before[name].dtype is not torch.float16 else before[name].to(kind)
        assert tensor.dtype is wanted.dtype and tensor.shape == wanted.shape
        if tensor.numel():
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("way", WAYS)
def test_scalars_and_empty_tensors(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(WAYS[way])
    monkeypatch.setenv("SDS_CPU", options.pop("target", ""))
    files = []
    for index, value in enumerate((1.0, 2.0, 4.0)):
        tensors = {
            "scalar": (F32, (), np.float32(value).tobytes()),
            "empty": (F16, (0,), b""),
            "empty block": (BF16, (4, 0, 2), b""),
            "one": (F64, (1, 1), np.float64(value / 3).tobytes()),
        }
        files.append(write_file(tmp_path / f"{index}.safetensors", tensors, padded=False, gap=index))
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("add-diff", files, alpha=0.5, out=out, hash=True, sync=False, **options)
    result = read_file(out)
    assert result["scalar"] == ("F32", (), np.float32(1 + 0.5 * (2 - 4)).tobytes())
    assert result["empty"] == ("F16", (0,), b"") and result["empty block"] == ("BF16", (4, 0, 2), b"")
    assert result["one"] == ("F64", (1, 1), np.float64(1 / 3 + 0.5 * (2 / 3 - 4 / 3)).tobytes())
    assert load_torch(out)["scalar"].shape == ()


def test_an_empty_file_is_cast_to_an_empty_file(tmp_path: Path) -> None:
    file, out = write_file(tmp_path / "none.safetensors", {}), tmp_path / "out.safetensors"
    sdsurgery.cast(file, dtype="fp16", out=out, sync=False)
    assert read_file(out) == {}


def test_the_hashes_in_the_header_are_those_of_the_files(trio: list[Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    out = tmp_path / "out.safetensors"
    report = sdsurgery.merge("add-diff", trio, alpha=ALPHA, out=out, sync=False)
    data = out.read_bytes()
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert report.body_sha256 == body and report.sha256 == [digest(path) for path in trio]
    with safe_open(out, "np") as file:
        metadata = file.metadata()
    assert body in metadata["modelspec.hash_sha256"] and metadata["sshs_model_hash"] == body
    assert all(digest(path) in metadata["sd_merge_models"] for path in trio)


def test_the_output_may_be_one_of_the_inputs(odd: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in odd]
    wanted = None
    for index in range(3):
        for path, copy in zip(odd, copies, strict=True):
            copy.write_bytes(path.read_bytes())
        sdsurgery.merge(
            "add-diff", copies, alpha=ALPHA, out=copies[index], overwrite=True, hash=False, sync=False, threads=2
        )
        tensors = read_file(copies[index])
        wanted = wanted or tensors
        assert tensors == wanted


def test_one_file_may_be_every_input(odd: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("weighted-sum", [odd[0], odd[0]], weights=[1, 1], out=out, hash=True, sync=False)
    formula = trace(get("weighted-sum"), 2, {"alpha": 0.5, "weights": (1.0, 1.0)})
    inputs, result = read_file(odd[0]), read_file(out)
    for name, (kind, _, raw) in inputs.items():
        if kind != "U8":
            given = [(np.frombuffer(raw, CODE[BY_NAME[kind]]), BY_NAME[kind])] * 2
            assert result[name][2] == expected(formula, given, BY_NAME[kind]).codes.tobytes()


def test_generated_checkpoints_depend_only_on_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for target in TARGETS:
        monkeypatch.setenv("SDS_CPU", target)
        for dtype in ("fp16", "bf16"):
            write_checkpoint(tmp_path / "x.safetensors", "sd1", size="tiny", seed=3, dtype=dtype, overwrite=True)
            digests.add((dtype, digest(tmp_path / "x.safetensors")))
    assert len(digests) == 2
    write_checkpoint(tmp_path / "x.safetensors", "sd1", size="tiny", seed=4, overwrite=True)
    assert ("fp16", digest(tmp_path / "x.safetensors")) not in digests


def test_generated_weights_are_finite_and_spread_as_their_fan_in_asks(trio: list[Path]) -> None:
    tensors = load_torch(trio[0])
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    weight = tensors[name].float()
    assert abs(float(weight.std()) * weight.shape[1] ** 0.5 - 1) < 0.05 and abs(float(weight.mean())) < 0.01
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
