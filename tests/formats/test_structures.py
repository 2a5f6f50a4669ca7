"""Files for torch.load keep the structure that their readers look for; a checkpoint's is the usual one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, read_raw, refused, sds, write_raw
from sdsurgery.testing import write_checkpoint
from torch_support import torch


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def same(one: Any, other: Any, dtype: torch.dtype = torch.float16) -> bool:
    """Equal structures, with the tensors of ``one`` cast."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.to(dtype) if one.is_floating_point() else one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key], dtype) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b, dtype) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def half(*shape: int) -> torch.Tensor:
    return torch.rand(*shape)


EMBEDDING = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": half(2, 768)},
    "name": "cat",
    "step": 500,
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
}
HYPERNETWORK = {
    320: ({"linear.0.weight": half(4, 320)}, {"linear.0.weight": half(4, 320)}),
    768: ({"linear.0.weight": half(4, 768)}, {"linear.0.weight": half(4, 768)}),
    "step": 20000,
    "name": "anime",
    "layer_structure": [1, 2, 1],
    "activation_func": "relu",
    "is_layer_norm": False,
    "weight_initialization": None,
    "dropout": -0.25,
}
IP_ADAPTER = {
    "image_proj": {"proj.weight": half(8, 4), "norm.bias": half(4)},
    "ip_adapter": {"1.to_k_ip.weight": half(4, 4), "3.to_k_ip.weight": half(4, 4)},
}
DIFFUSERS = {"conv_in.weight": half(4, 4, 3, 3), "conv_in.bias": half(4)}
UPSCALER = {"params_ema": {"conv_first.weight": half(4, 3), "body.0.rdb1.conv1.weight": half(4, 4)}}
KEPT = {"embedding": EMBEDDING, "hypernetwork": HYPERNETWORK, "IP adapter": IP_ADAPTER, "flat": DIFFUSERS,
        "upscaler": UPSCALER, "checkpoint": {"state_dict": {"a.weight": half(4)}}}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("kind", KEPT)
def test_a_file_keeps_its_structure(kind: str, suffix: str, tmp_path: Path) -> None:
    torch.save(KEPT[kind], tmp_path / f"in{suffix}")
    out = tmp_path / f"out{suffix}"
    sdsurgery.cast(tmp_path / f"in{suffix}", dtype="fp16", out=out)
    found = load(out)
    found.pop("__metadata__", None)
    assert same(KEPT[kind], found)
    sdsurgery.merge("weighted-sum", [tmp_path / f"in{suffix}", out], alpha=1, dtype="fp16", out=out, overwrite=True)
    found = load(out)
    found.pop("__metadata__", None)
    assert same(KEPT[kind], found), "a merge has A's structure"


def test_vectors_of_an_embedding_are_called_emb_params_in_safetensors_and_find_their_way_back(tmp_path: Path) -> None:
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(half(2, 768))})
    torch.save({**EMBEDDING, "string_to_param": parameters}, tmp_path / "cat.pt")
    sdsurgery.convert(tmp_path / "cat.pt", out=tmp_path / "cat.safetensors")
    assert list(read_raw(tmp_path / "cat.safetensors")[0]) == ["emb_params"]
    assert sdsurgery.inspect(tmp_path / "cat.safetensors").family == "textual-inversion-sd1"
    sdsurgery.convert(tmp_path / "cat.safetensors", out=tmp_path / "again.pt")
    again = load(tmp_path / "again.pt")
    assert torch.equal(again["string_to_param"]["*"], parameters["*"])
    assert again["name"] == "again"
    assert again["string_to_token"] == {"*": 265}


def test_other_kinds_in_safetensors_get_the_structure_that_their_readers_look_for(tmp_path: Path) -> None:
    torch.save(HYPERNETWORK, tmp_path / "in.pt")
    torch.save(IP_ADAPTER, tmp_path / "ip.pt")
    for name, whole in (("in", HYPERNETWORK), ("ip", IP_ADAPTER)):
        sdsurgery.convert(tmp_path / f"{name}.pt", out=tmp_path / f"{name}.safetensors")
        sdsurgery.convert(tmp_path / f"{name}.safetensors", out=tmp_path / f"{name}.bin")
        assert same(whole, load(tmp_path / f"{name}.bin"), torch.float32)
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny")
    sdsurgery.convert(tmp_path / "a.safetensors", out=tmp_path / "a.pt")
    assert set(load(tmp_path / "a.pt")) == {"state_dict", "__metadata__"}, "checkpoints stay nested"
    lora = {
        "lora_unet_x.lora_down.weight": ("F32", [1, 2], f32(1, 2)),
        "lora_unet_x.lora_up.weight": ("F32", [2, 1], f32(3, 4)),
    }
    sdsurgery.convert(write_raw(tmp_path / "lora.safetensors", lora), out=tmp_path / "lora.pt")
    assert set(load(tmp_path / "lora.pt")) == set(lora)


def test_what_is_left_out_of_a_structure_goes_and_what_has_no_place_is_refused(tmp_path: Path) -> None:
    torch.save(IP_ADAPTER, tmp_path / "in.bin")
    sdsurgery.prune(tmp_path / "in.bin", drop_keys="to_k_ip", out=tmp_path / "out.bin")
    assert {key: list(value) for key, value in load(tmp_path / "out.bin").items()} == {
        "image_proj": ["proj.weight", "norm.bias"],
        "ip_adapter": [],
    }
    more = {"image_proj.proj.weight": ("F32", [1], f32(1)), "more.weight": ("F32", [1], f32(1))}
    both = write_raw(tmp_path / "more.safetensors", more)
    words = ("merge", "--method", "weighted-sum", tmp_path / "in.bin", both, "--add-missing", "--force")
    refused(sds(*words, "-o", tmp_path / "out.bin"), 3)


def test_complex_numbers_go_to_safetensors_and_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = {"freqs_cis": torch.polar(torch.ones(4, 2), torch.arange(8.0).reshape(4, 2)), "w": torch.ones(2, 2)}
    torch.save(data, tmp_path / "rope.pt")
    sdsurgery.convert(tmp_path / "rope.pt", out=tmp_path / "rope.safetensors")
    assert torch.equal(load_file(tmp_path / "rope.safetensors")["freqs_cis"], data["freqs_cis"])
    sdsurgery.convert(tmp_path / "rope.safetensors", out=tmp_path / "again.bin")
    assert torch.equal(load(tmp_path / "again.bin")["freqs_cis"], data["freqs_cis"])


@pytest.mark.parametrize("inner", [{}, {"betas": torch.zeros(3)}])
def test_an_entry_called_state_dict_among_the_weights_is_not_the_model(inner: dict[str, Any], tmp_path: Path) -> None:
    weights = {f"model.diffusion_model.out.{n}.weight": half(2) for n in range(9)}
    torch.save({"state_dict": {**weights, "state_dict": inner}}, tmp_path / "in.ckpt")
    sdsurgery.convert(tmp_path / "in.ckpt", out=tmp_path / "out.safetensors")
    assert set(read_raw(tmp_path / "out.safetensors")[0]) == {*weights, *(f"state_dict.{key}" for key in inner)}


def test_parts_side_by_side_are_all_read_or_one_is_chosen(tmp_path: Path) -> None:
    parts = {"unet": {"a.weight": half(3)}, "text_encoder": {"b.weight": half(4)}, "epoch": 3}
    torch.save(parts, tmp_path / "both.pt")
    out = tmp_path / "out.safetensors"
    sdsurgery.convert(tmp_path / "both.pt", out=out)
    assert set(read_raw(out)[0]) == {"unet.a.weight", "text_encoder.b.weight"}
    done(sds("convert", tmp_path / "both.pt", "--part", "text_encoder", "-o", out, "--force"))
    assert set(read_raw(out)[0]) == {"b.weight"}
    line = refused(sds("convert", tmp_path / "both.pt", "--part", "vae", "-o", out, "--force"), 3, "'vae'")
    assert "unet, text_encoder" in line


def test_two_versions_of_the_same_weights_are_not_parts(tmp_path: Path) -> None:
    weights = {f"conv.{n}.weight": half(3) for n in range(4)}
    torch.save(
        {"params": weights, "params_ema": {key: value + 1 for key, value in weights.items()}}, tmp_path / "in.pth"
    )
    found = sdsurgery.inspect(tmp_path / "in.pth")
    assert found.total.tensors == 4
    assert any("'params'" in note and "part=" in note for note in found.notes)
    report = sdsurgery.convert(tmp_path / "in.pth", part="params", out=tmp_path / "out.safetensors")
    assert report.counts["copied"] == 4
    raw = read_raw(tmp_path / "out.safetensors")[0]
    assert torch.equal(
        torch.frombuffer(bytearray(raw["conv.0.weight"][2]), dtype=torch.float32), weights["conv.0.weight"]
    )
