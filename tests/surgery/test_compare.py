"""compare: what two files have in common, against a plain computation with torch in float64; known answers, odd values,
mismatched files; and the same answer for any threads, tiles, io mode, CPU target and backend."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
import torch
from cli_support import f32, write_raw
from numeric_tools import TARGETS
from safetensors.torch import load_file as load_torch
from sdsurgery.layouts import get
from sdsurgery.layouts.diffusers import mapping
from sdsurgery.layouts.kinds import kind
from sdsurgery.testing import write_checkpoint


def f16(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny SD 1.5 checkpoint with EMA, and another of which the VAE is the same."""
    folder = tmp_path_factory.mktemp("pair")
    a, other, b = (folder / f"{name}.safetensors" for name in ("a", "other", "b"))
    write_checkpoint(a, "sd1", size="tiny", seed=1, ema=True)
    write_checkpoint(other, "sd1", size="tiny", seed=2, ema=True)
    sdsurgery.replace(other, {"vae": a}, out=b, sync=False)
    return a, b


def by_torch(a: Path, b: Path, prefix: str) -> tuple[float, float, float]:
    """Cosine, relative L2 and largest difference over the tensors under a prefix, in float64 at once."""
    files = [load_torch(path) for path in (a, b)]
    names = [name for name in files[0] if name.startswith(prefix) and files[0][name].is_floating_point()]
    x, y = (torch.cat([item[name].double().reshape(-1) for name in names]) for item in files)
    cosine = float(x @ y / (x.norm() * y.norm()))
    return cosine, float((x - y).norm() / x.norm()), float((x - y).abs().max())


# ---- whole checkpoints


def test_components_and_blocks_are_those_of_torch_in_float64(pair: tuple[Path, Path]) -> None:
    found = sdsurgery.compare(*pair)
    components, blocks = found.by("component"), found.by("component", "block")
    unet = "model.diffusion_model."
    cases = (
        (components[("unet",)], unet),
        (components[("text_encoder",)], "cond_stage_model."),
        (blocks[("unet", "IN01")], unet + "input_blocks.1."),
        (blocks[("unet", "M00")], unet + "middle_block."),
        (blocks[("unet", "OUT08")], unet + "output_blocks.8."),
    )
    for likeness, prefix in cases:
        cosine, distance, peak = by_torch(*pair, prefix)
        assert likeness.cosine == pytest.approx(cosine, rel=1e-12)
        assert likeness.relative_l2 == pytest.approx(distance, rel=1e-12)
        assert likeness.difference_max == peak
        assert likeness.equal_share is not None and likeness.equal_share < 0.01
    vae = components[("vae",)]
    assert (vae.tensors, vae.equal, vae.cosine, vae.relative_l2, vae.difference_max) == (248, 248, 1.0, 0.0, 0.0)
    assert not found.equal


def test_tables_sum_up_to_the_total_and_ema_twins_stand_in_their_weights_blocks(pair: tuple[Path, Path]) -> None:
    found = sdsurgery.compare(*pair)
    for names in (("component",), ("component", "block"), ("block", "kind"), ()):
        rows = found.by(*names).values()
        assert sum(row.tensors for row in rows) == found.total.tensors == len(found.tensors)
        assert sum(row.elements for row in rows) == found.total.elements
    counts = {key: row.tensors for key, row in found.by("component", "block", "kind").items()}
    for (component, block, layer), count in counts.items():
        if component == "ema" and block != "-":
            assert counts[("unet", block, layer)] == count
    assert counts[("ema", "IN01", "attn1")] == 5


def test_a_file_is_equal_to_itself_and_to_a_copy_with_other_metadata(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = sdsurgery.compare(pair[0], pair[0])
    assert found.equal and found.total.equal == found.total.tensors == 1831 and found.notes == []
    copy = tmp_path / "copy.safetensors"
    sdsurgery.cast(pair[0], out=copy, sync=False)
    found = sdsurgery.compare(pair[0], copy)
    assert found.equal and any(note.startswith("metadata differs") for note in found.notes)


def test_a_checkpoint_file_of_torch_is_an_input_like_any_other(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_torch(pair[0])
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    found = sdsurgery.compare(tmp_path / "a.ckpt", pair[0])
    assert found.equal and found.total.tensors == len(tensors)
    assert any("B is safetensors" in note for note in found.notes)


def test_tensors_that_are_not_contiguous_are_compared_by_their_elements(tmp_path: Path) -> None:
    weight = torch.randn(70, 90, generator=torch.Generator().manual_seed(3)).half()
    torch.save({"w": weight.t()}, tmp_path / "a.ckpt")
    torch.save({"w": weight.t().contiguous()}, tmp_path / "b.ckpt")
    found = sdsurgery.compare(tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert found.equal and found.total.elements == 6300 and found.total.a_squared > 0


def test_nothing_about_how_it_runs_changes_the_answer(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half.safetensors"
    sdsurgery.cast(pair[1], dtype="bf16", out=half, sync=False)
    ways: list[dict[str, Any]] = [
        {"backend": "reference"},
        {"threads": 1},
        {"threads": 5, "tile_bytes": 4096},
        {"threads": 3, "tile_bytes": 64 << 20},
        {"io": "mmap"},
        {"io": "pread"},
        *({"target": name} for name in TARGETS),
    ]
    answers = []
    for way in ways:
        monkeypatch.setenv("SDS_CPU", way.pop("target", ""))
        found = sdsurgery.compare(pair[0], half, **way).to_dict()
        answers.append({key: value for key, value in found.items() if key not in ("how", "seconds")})
    assert all(answer == answers[0] for answer in answers)


# ---- known answers


def compared(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> sdsurgery.Comparison:
    files = [write_raw(tmp_path / f"{name}.safetensors", tensors) for name, tensors in (("a", a), ("b", b))]
    return sdsurgery.compare(*files)


def one(tmp_path: Path, a: Any, b: Any) -> Any:
    return compared(tmp_path, {"w": a}, {"w": b}).total


def test_known_answers(tmp_path: Path) -> None:
    total = one(tmp_path, ("F32", [2, 2], f32(3, 4, 0, 0)), ("F32", [2, 2], f32(4, -3, 0, 0)))
    assert (total.cosine, total.relative_l2, total.difference_max) == (0.0, math.sqrt(2), 7.0)
    assert (total.equal, total.equal_elements, total.elements) == (0, 2, 4)
    total = one(tmp_path, ("F16", [2], f16(1, 2)), ("F16", [2], f16(-1, -2)))
    assert (total.cosine, total.relative_l2) == (-1.0, 2.0)


def test_zero_tensors(tmp_path: Path) -> None:
    zero, other = ("F32", [3], f32(0, 0, 0)), ("F32", [3], f32(0, 2, 0))
    both, first, second = one(tmp_path, zero, zero), one(tmp_path, zero, other), one(tmp_path, other, zero)
    assert (both.cosine, both.relative_l2, both.equal) == (1.0, 0.0, 1)
    assert (first.cosine, first.relative_l2) == (None, None)
    assert (second.cosine, second.relative_l2) == (None, 1.0)
    minus = one(tmp_path, zero, ("F32", [3], f32(0, -0.0, 0)))
    assert (minus.equal, minus.equal_elements, minus.cosine, minus.relative_l2) == (0, 2, 1.0, 0.0)


def test_two_dtypes_are_compared_by_value_and_are_not_equal(tmp_path: Path) -> None:
    found = compared(tmp_path, {"w": ("F16", [2], f16(1, 0.5))}, {"w": ("F32", [2], f32(1, 0.5))})
    assert not found.equal and found.dtype_differs == {"w": ("F16", "F32")}
    assert (found.total.equal, found.total.equal_elements, found.total.relative_l2) == (0, 2, 0.0)


def test_nan_and_inf_are_counted_and_left_out(tmp_path: Path) -> None:
    bad = ("F32", [3], f32(math.nan, math.inf, 2))
    found = compared(tmp_path, {"w": bad}, {"w": ("F32", [3], f32(1, 1, 3))})
    assert (found.total.a_nonfinite, found.total.b_nonfinite) == (2, 0)
    assert (found.total.cosine, found.total.relative_l2) == (1.0, 0.5)
    assert compared(tmp_path, {"w": bad}, {"w": bad}).equal  # the same bits


def test_float64_that_overflows_gives_no_numbers_but_valid_json(tmp_path: Path) -> None:
    data = np.array([1e200, -1e200]).tobytes()
    found = compared(tmp_path, {"w": ("F64", [2], data)}, {"w": ("F64", [2], data[8:] + data[:8])})
    assert (found.total.cosine, found.total.relative_l2) == (None, None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_empty_tensors_scalars_and_empty_files(tmp_path: Path) -> None:
    some = {"marker": ("F32", [0], b""), "scalar": ("F32", [], f32(2))}
    assert compared(tmp_path, some, some).equal
    found = compared(tmp_path, some, {**some, "marker": ("F16", [0], b"")})
    assert not found.equal and found.total.equal == 1
    assert compared(tmp_path, {}, {}).equal
    assert not compared(tmp_path, {}, some).equal


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "C64", "F8_E4M3FNUZ"])
def test_dtypes_without_known_values_are_compared_by_their_bytes(tmp_path: Path, dtype: str) -> None:
    shape = [2] if dtype == "C64" else [32] if dtype == "F4" else [16]
    a, b = (dtype, shape, bytes(range(16))), (dtype, shape, bytes(range(15)) + b"\xff")
    assert compared(tmp_path, {"w": a}, {"w": a}).equal
    found = compared(tmp_path, {"w": a}, {"w": b})
    assert not found.equal and found.total.tensors == 1 and found.total.cosine is None
    other = compared(tmp_path, {"w": a}, {"w": ("F16", shape, f16(*range(shape[0])))})
    assert not other.equal and "w" in other.dtype_differs


def test_integers_count_as_tensors_and_not_as_weights(tmp_path: Path) -> None:
    a = {"w": ("F32", [1], f32(1)), "steps": ("I64", [1], (1000).to_bytes(8, "little"))}
    b = {"w": ("F32", [1], f32(1)), "steps": ("I64", [1], (1001).to_bytes(8, "little"))}
    found = compared(tmp_path, a, b)
    assert not found.equal and (found.total.tensors, found.total.weights, found.total.relative_l2) == (2, 1, 0.0)
    steps = {tensor.name: tensor.likeness for tensor in found.tensors}["steps"]
    assert steps.difference_max == 1


def test_position_ids_and_schedules_are_in_no_number(tmp_path: Path) -> None:
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    rest = {"model.diffusion_model.input_blocks.1.0.in_layers.2.weight": ("F32", [1], f32(1))}
    a = {**rest, ids: ("F32", [2], f32(0, 1)), "betas": ("F32", [1], f32(5))}
    b = {**rest, ids: ("F32", [2], f32(0, 9)), "betas": ("F32", [1], f32(7))}
    found = compared(tmp_path, a, b)
    assert (found.total.tensors, found.total.equal, found.total.weights, found.total.cosine) == (3, 1, 1, 1.0)


# ---- files that don't match


def test_names_and_shapes_of_one_file_only(tmp_path: Path) -> None:
    same = ("F32", [2], f32(1, 2))
    a = {"both": same, "a": same, "shape": ("F32", [2, 1], f32(1, 2))}
    b = {"b": same, "both": same, "shape": same}
    found = compared(tmp_path, a, b)
    assert (found.only_in_a, found.only_in_b) == (["a"], ["b"])
    assert found.shape_differs == {"shape": ([2, 1], [2])}
    assert not found.equal and found.total.tensors == found.total.equal == 1


def test_a_1x1_convolution_and_a_linear_layer_are_the_same_matrix(tmp_path: Path) -> None:
    data = f32(1, 2, 3, 4)
    found = compared(tmp_path, {"w": ("F32", [2, 2, 1, 1], data)}, {"w": ("F32", [2, 2], data)})
    assert found.equal and not found.shape_differs and "the same matrix" in found.notes[0]


def test_families_are_compared_by_name_with_a_note(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = tmp_path / "sd2.safetensors"
    write_checkpoint(other, "sd2", size="tiny")
    found = sdsurgery.compare(pair[0], other)
    assert not found.equal and (found.a_family, found.b_family) == ("sd1", "sd2")
    assert "different families" in found.notes[0] and found.total.tensors > 500


def test_unknown_files_and_loras_are_one_group(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
    lora = {name: ("F16", [4, 320], bytes(2560)), name.replace("down.w", "up.w"): ("F16", [320, 4], bytes(2560))}
    assert list(compared(tmp_path, lora, lora).by("component", "block")) == [("all", "-")]
    found = compared(tmp_path, {"x.y": ("F32", [1], f32(1))}, {"x.y": ("F32", [1], f32(2))})
    assert list(found.by("component", "block", "kind")) == [("all", "-", "other")]


def test_other_spellings_of_names_are_noted_and_paired_on_request(tmp_path: Path) -> None:
    key = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    anchor = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
            "F16",
            [320, 768],
            bytes(491520),
        )
    }
    anchor["model.diffusion_model.input_blocks.0.0.weight"] = ("F16", [320, 4, 3, 3], bytes(23040))
    weight = ("F16", [768], bytes(1536))
    a = write_raw(tmp_path / "a.safetensors", {**anchor, key: weight})
    b = write_raw(tmp_path / "b.safetensors", {**anchor, key.replace("text_model.", ""): weight})
    found = sdsurgery.compare(a, b)
    assert not found.equal and any("fix_names=True" in note for note in found.notes)
    assert sdsurgery.compare(a, b, fix_names=True).equal


def test_unknown_settings_are_a_type_error(pair: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match="blocks"):
        sdsurgery.compare(*pair, blocks=1)


# ---- kinds of layer


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl-base", "sdxl-refiner"])
def test_original_and_diffusers_names_are_of_the_same_kind(family: str) -> None:
    rows = [row for row in mapping(get(family)) if row.key]
    assert len(rows) > 1000
    assert [(row.ldm_key, row.key) for row in rows if kind(row.ldm_key) != kind(row.key or "")] == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight", "attn1"),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "attn2"),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight", "ff"),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.norm2.bias", "norm"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.0.weight", "norm"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "resnet"),
        ("model.diffusion_model.input_blocks.1.0.emb_layers.1.weight", "resnet"),
        ("model.diffusion_model.input_blocks.1.1.proj_in.weight", "proj"),
        ("model.diffusion_model.input_blocks.3.0.op.weight", "conv"),
        ("model.diffusion_model.input_blocks.0.0.weight", "conv"),
        ("model.diffusion_model.out.0.weight", "norm"),
        ("model.diffusion_model.out.2.weight", "conv"),
        ("model.diffusion_model.time_embed.0.weight", "embed"),
        ("first_stage_model.decoder.mid.attn_1.proj_out.weight", "attn1"),
        ("first_stage_model.decoder.up.0.block.1.conv1.weight", "resnet"),
        ("conditioner.embedders.1.model.logit_scale", "other"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q.lora_up.weight", "attn2"),
        ("betas", "other"),
    ],
)
def test_kinds(key: str, expected: str) -> None:
    assert kind(key) == expected
