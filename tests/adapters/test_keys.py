"""Every key of an adapter, in every dialect, reaches the tensor that it must change."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from sdsurgery import layouts
from sdsurgery.adapters import keys, names

ROLES = {"w": "w_norm", "b": "b_norm", "blocks": "oft_blocks"}
OF_BIAS = ("b_norm", "diff_b", "up_bias")


def lists(adapters: Path) -> list[Path]:
    found = sorted((adapters / "keys").glob("*.keys.tsv.gz"))
    assert found
    return found


def rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") as lines:
        header = next(lines).rstrip("\n").split("\t")
        for line in lines:
            yield dict(zip(header, line.rstrip("\n").split("\t"), strict=True))


def test_every_key_of_the_reference_lists_changes_its_tensor(adapters: Path) -> None:
    for path in lists(adapters):
        layout = layouts.get(path.name.removesuffix(".keys.tsv.gz"))
        wrong = [row for row in rows(path) if reached(layout, row["key"]) != (row["ldm_key"], row["transform"])]
        assert wrong == []


def test_every_key_of_the_reference_lists_is_the_part_that_it_says(adapters: Path) -> None:
    for path in lists(adapters):
        for row in rows(path):
            found = keys.split(row["key"])
            assert found is not None and found.part == ROLES.get(row["role"], row["role"]), row["key"]


def reached(layout: layouts.Layout, key: str) -> tuple[str, str] | None:
    found = keys.split(key)
    if found is None:
        return None
    places = names.find(layout, found.module)
    if len(places) != 1:
        return None
    slot = places[0].bias if found.part in OF_BIAS else places[0].weight
    return None if slot is None else (slot.key, slot.transform)


QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
IN_SD1 = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    "key",
    [
        f"lora_unet_{QUERY.replace('.', '_')}.lora_down.weight",
        f"unet.{QUERY}.lora_A.weight",
        f"unet.{QUERY}.lora_A.default.weight",
        f"base_model.model.{QUERY}.lora_A.default.weight",
        f"base_model.model._orig_mod.{QUERY}.lora_A.weight",
        f"unet.{QUERY.replace('to_q', 'processor.to_q_lora')}.down.weight",
        f"{QUERY}.lora.down.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        f"lycoris_{QUERY.replace('.', '_')}.lora_down.weight",
    ],
)
def test_one_module_in_the_dialects(key: str) -> None:
    assert keys.split(key) is not None and keys.split(key).part == "down"  # type: ignore[union-attr]
    assert reached(layouts.get("sd1"), key) == (IN_SD1, "none")


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("lora_te2_text_projection.lora_up.weight", ("conditioner.embedders.1.model.text_projection", "transpose")),
        (
            "lora_te2_text_model_encoder_layers_3_self_attn_v_proj.diff_b",
            ("conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias", "split_qkv:2"),
        ),
        (
            "text_encoder_2.encoder.layers.3.mlp.fc1.lora_B.weight",  # as transformers names it since 5.6
            ("conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc.weight", "none"),
        ),
        ("lora_unet_down_blocks_7_attentions_0_proj_in.lora_up.weight", None),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", None),
    ],
)
def test_names_of_sdxl(key: str, target: tuple[str, str] | None) -> None:
    assert reached(layouts.get("sdxl-base"), key) == target


def test_bundled_embeddings_are_no_modules() -> None:
    for key in ("bundle_emb.style.string_to_param.*", "bundle_emb.style.clip_l", "bundle_emb.style.emb_params"):
        assert keys.split(key) is None and keys.is_bundled(key)
