"""dtype="fp8_scaled" and the plain fp8 dtypes: which tensors they change, and into what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from adapter_tools import SD1, SD1_KEY, SD1_KEY_NAME, lora, shapes_of, written
from encoded_files import e4m3, write
from numeric_tools import TARGETS
from sdsurgery.testing import write_checkpoint

MARKER = b'{"format": "float8_e4m3fn"}'


def scaled_by_torch(weight: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Scale and codes as comfy-kitchen computes them, in torch's float32 arithmetic."""
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(weight.astype(np.float32))
    largest = values.abs().max()
    scale = largest / 448 if largest > 0 else torch.ones(())
    codes = (values * (1.0 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return scale.numpy(), codes.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["usual", "small", "outlier", "zeros", "large"])
def test_codes_and_scale_are_comfy_kitchen_s(tmp_path: Path, kind: str, dtype: type) -> None:
    weight = np.random.default_rng(3).normal(size=(40, 72)).astype(np.float32)
    weight = {"usual": weight * 0.05, "small": weight * 1e-4, "zeros": weight * 0, "large": weight * 900}.get(
        kind, weight
    )
    if kind == "outlier":
        weight[3, 3] = 4000
    weight = weight.astype(dtype)
    name = {np.float32: "F32", np.float16: "F16"}[dtype]
    path = write(tmp_path / "a.safetensors", {"l.weight": (name, weight.shape, weight.tobytes())})
    report = sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp8_scaled")
    assert (report.counts["cast"], report.counts["added"]) == (1, 2)
    scale, codes = scaled_by_torch(weight)
    with sds.open(tmp_path / "b.safetensors") as found:
        assert {each: (info.dtype.name, info.shape) for each, info in found.tensors.items()} == {
            "l.weight": ("F8_E4M3", weight.shape),
            "l.weight_scale": ("F32", ()),
            "l.comfy_quant": ("U8", (27,)),
        }
        assert found.read(found.info("l.weight_scale")) == scale.astype(np.float32).tobytes()
        assert found.read(found.info("l.weight")) == codes
        assert found.read(found.info("l.comfy_quant")) == MARKER


def test_it_decodes_to_nearly_the_weights_and_casts_back(tmp_path: Path) -> None:
    weight = np.random.default_rng(4).normal(size=(64, 96)).astype(np.float32)
    path = write(tmp_path / "a.safetensors", {"l.weight": ("F32", weight.shape, weight.tobytes())})
    sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp8_scaled")
    found = sds.compare(path, tmp_path / "b.safetensors")
    assert found.total.relative_l2 is not None and 0 < found.total.relative_l2 < 0.04
    sds.cast(tmp_path / "b.safetensors", out=tmp_path / "c.safetensors", dtype="fp32")
    with sds.open(tmp_path / "b.safetensors") as scaled, sds.open(tmp_path / "c.safetensors") as plain:
        codes = scaled.read(scaled.info("l.weight"))
        (scale,) = scaled.numbers(scaled.info("l.weight_scale"))
        expected = np.array([e4m3(code) for code in codes], np.float32) * np.float32(scale)
        assert plain.read(plain.info("l.weight")) == expected.tobytes()
    report = sds.cast(tmp_path / "b.safetensors", out=tmp_path / "d.safetensors", dtype="fp8_scaled")
    assert "1 encoded weight (scaled fp8) decoded and written as scaled F8_E4M3" in report.notes


def test_only_linear_layers_of_the_network_are_scaled_and_the_rest_is_fp16(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, "sdxl-base", size="tiny")
    sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp8_scaled", hash=False)
    with sds.open(tmp_path / "b.safetensors") as found:
        kinds = {name: info.dtype.name for name, info in found.tensors.items()}
        shapes = {name: info.shape for name, info in found.tensors.items()}
        markers = {found.read(info) for name, info in found.tensors.items() if name.endswith(".comfy_quant")}
        assert "_quantization_metadata" not in found.metadata(), "with it ComfyUI would not look for the markers"
    scaled = [name for name, kind in kinds.items() if kind == "F8_E4M3"]
    assert len(scaled) > 400
    assert all(name.startswith("model.diffusion_model.") and len(shapes[name]) == 2 for name in scaled)
    assert not any("embed" in name or "label_emb" in name for name in scaled)
    plain = {name for name in kinds if name.endswith((".weight", ".bias")) and name not in scaled}
    assert {kinds[name] for name in plain} == {"F16"}
    assert sorted(f"{name}_scale" for name in scaled) == sorted(n for n in kinds if n.endswith("weight_scale"))
    assert {name.replace(".weight", ".comfy_quant") for name in scaled} == {n for n in kinds if "comfy_quant" in n}
    assert markers == {MARKER}
    assert not [name for name in kinds if name.endswith("scaled_fp8")], "the marker of the old names"


def test_merges_threads_tiles_targets_and_the_reference_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    paths = [
        write(
            tmp_path / f"{name}.safetensors",
            {"l.weight": ("F32", (130, 260), rng.normal(size=33800).astype("f4").tobytes())},
        )
        for name in "ab"
    ]
    out = tmp_path / "out.safetensors"

    def merged(**settings: object) -> bytes:
        sds.merge("slerp", paths, alpha=0.3, out=out, overwrite=True, hash=False, dtype="fp8_scaled", **settings)
        return out.read_bytes()

    first = merged(threads=1)
    assert merged(threads=2, tile_bytes=4096) == first
    assert merged(backend="reference") == first
    for target in TARGETS:
        monkeypatch.setenv("SDS_CPU", target)
        assert merged() == first


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_adapters_are_applied_before_codes_and_scale_are_found(tmp_path: Path, backend: str) -> None:
    model, style, out = (tmp_path / f"{name}.safetensors" for name in ("model", "style", "out"))
    write_checkpoint(model, "sd1", size="tiny")
    shapes, parts = shapes_of(model), {}
    for seed, (name, tensor) in enumerate(SD1.items()):
        parts |= lora(name, shapes[tensor], seed=seed)
    written(style, parts | {f"{SD1_KEY_NAME}.dora_scale": np.full((shapes[SD1_KEY][0], 1), 2, "f2")})
    given = {"alpha": 0.25, "loras": {style: 0.8}}
    sds.merge("weighted-sum", [model, model], out=out, dtype="fp8_scaled", backend=backend, hash=False, **given)
    sds.merge("weighted-sum", [model, model], out=tmp_path / "wide.safetensors", dtype="fp32", hash=False, **given)
    sds.cast(tmp_path / "wide.safetensors", out=tmp_path / "two.safetensors", dtype="fp8_scaled", hash=False)
    with sds.open(out) as one, sds.open(tmp_path / "two.safetensors") as two:
        assert one.info(SD1_KEY).dtype.name == "F8_E4M3"
        assert {n: one.read(i) for n, i in one.tensors.items()} == {n: two.read(i) for n, i in two.tensors.items()}


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_plain_fp8_leaves_norms_and_biases_in_fp16(tmp_path: Path, dtype: str) -> None:
    given = {
        "l.weight": ("F32", (4, 4), np.ones(16, np.float32).tobytes()),
        "l.bias": ("F32", (4,), np.ones(4, np.float32).tobytes()),
        "norm.weight": ("BF16", (2,), bytes(4)),
    }
    path = write(tmp_path / "a.safetensors", given)
    sds.cast(path, out=tmp_path / "b.safetensors", dtype=dtype)
    sds.merge("weighted-sum", [path, path], alpha=0.5, out=tmp_path / "c.safetensors", dtype=dtype)
    for name in ("b", "c"):
        with sds.open(tmp_path / f"{name}.safetensors") as found:
            assert {each: info.dtype.name for each, info in found.tensors.items()} == {
                "l.weight": dtype.upper().replace("FP8", "F8"), "l.bias": "F16", "norm.weight": "F16",
            }  # fmt: skip


def test_adapters_are_neither_written_nor_read_as_scaled_fp8(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    write_checkpoint(base, "sd1", size="tiny")
    parts = lora(SD1_KEY_NAME, shapes_of(base)[SD1_KEY])
    file, out = written(tmp_path / "a.safetensors", parts), tmp_path / "out.safetensors"
    for made in (
        lambda: sds.cast(file, dtype="fp8_scaled", out=out),
        lambda: sds.resize_lora(file, rank=2, dtype="fp8_scaled", out=out),
        lambda: sds.extract_lora(base, base, dtype="fp8_scaled", out=out),
    ):
        with pytest.raises(sds.errors.UsageError, match='dtype="fp8_scaled" is for models'):
            made()
    scaled = parts | {f"{SD1_KEY_NAME}.lora_up.weight_scale": np.ones((), "f4")}
    with pytest.raises(sds.errors.InputRefused, match="scales codes of fp8 or int8"):
        sds.bake(base, [written(tmp_path / "scaled.safetensors", scaled)], out=out)
