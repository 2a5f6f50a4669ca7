"""compare of two adapters: by what they make of the weights, whatever their kinds, ranks and names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sdsurgery
from adapter_tools import (
    SD1,
    SD1_CONV_NAME,
    SD1_KEY,
    SD1_KEY_NAME,
    SD1_QUERY_NAME,
    Arrays,
    delta,
    loaded,
    lora,
    shapes_of,
    written,
)
from cli_support import sds
from sdsurgery.errors import InputRefused, UsageError

IN_DIFFUSERS = {
    SD1_KEY_NAME: "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    SD1_CONV_NAME: "unet.down_blocks.1.resnets.0.conv1",
    SD1_QUERY_NAME: "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
}


@pytest.fixture(scope="module")
def both(models: Path) -> tuple[Arrays, Arrays]:
    shapes, found = shapes_of(models / "b.safetensors"), []
    for number in (0, 1):
        parts: Arrays = {}
        for rank, (name, tensor) in enumerate(SD1.items(), 2):
            parts |= lora(name, shapes[tensor], seed=rank + 10 * number, rank=rank + number, dtype=np.float32)
        found.append(parts)
    return found[0], found[1]


def files(folder: Path, *parts: Arrays) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [written(folder / f"{number}.safetensors", each) for number, each in enumerate(parts)]


def test_the_numbers_are_those_of_the_deltas_in_float64(both: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    found = sdsurgery.compare(*files(tmp_path, *both)).effects
    assert found is not None and found.family == "sd1" and not found.left_out
    layers = {layer.name: layer for layer in found.layers}
    assert set(layers) == set(IN_DIFFUSERS.values())
    for kohya, name in IN_DIFFUSERS.items():
        a, b = (delta(parts, kohya).reshape(-1) for parts in both)
        likeness = layers[name].likeness
        assert likeness.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
        assert likeness.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    layer = layers[IN_DIFFUSERS[SD1_KEY_NAME]]
    assert (layer.a.rank, layer.b.rank, layer.a.alpha) == (2, 3, 2.0)


def test_other_factors_names_and_kinds_of_the_same_change_are_equal(
    both: tuple[Arrays, Arrays], tmp_path: Path
) -> None:
    a, _ = both
    turned, renamed, full = dict(a), {}, {}
    random = np.random.default_rng(5)
    for kohya, name in IN_DIFFUSERS.items():
        up, down = a[f"{kohya}.lora_up.weight"], a[f"{kohya}.lora_down.weight"]
        between = random.normal(size=(len(down), len(down))) + 3 * np.eye(len(down))
        turned[f"{kohya}.lora_up.weight"] = (up.reshape(len(up), -1) @ between).astype("f4").reshape(up.shape)
        rest = np.linalg.solve(between, down.reshape(len(down), -1))
        turned[f"{kohya}.lora_down.weight"] = rest.astype("f4").reshape(down.shape)
        renamed |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": a[f"{kohya}.alpha"]}
        full[f"{kohya}.diff"] = delta(a, kohya).astype("f4")
    ours, other, diffusers, whole = files(tmp_path, a, turned, renamed, full)
    found = sdsurgery.compare(ours, other).effects
    assert found is not None and all(layer.likeness.relative_l2 < 1e-6 for layer in found.layers)
    compared = sdsurgery.compare(ours, diffusers)
    assert compared.effects is not None and compared.effects.equal and not compared.equal
    compared = sdsurgery.compare(ours, whole)
    assert not [note for note in compared.notes if "different families" in note]  # LoRA and LyCORIS of one
    found = compared.effects
    assert found is not None and all(layer.likeness.relative_l2 < 1e-6 for layer in found.layers)
    assert {layer.b.kind for layer in found.layers} == {"full difference"}
    assert compared.verdict.startswith("different: 0 of 3 changes")
    done = sds("compare", ours, diffusers, "--html", tmp_path / "page.html")
    assert "Equal in effect: all 3 changes" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert done.rc == 0 and "equal in effect: all 3 changes are the same" in done.out


def test_what_one_changes_and_what_depends_on_the_weight(
    models: Path, both: tuple[Arrays, Arrays], tmp_path: Path
) -> None:
    a, b = both
    lengths = np.full((len(b[f"{SD1_KEY_NAME}.lora_up.weight"]), 1), 2, "f4")
    b = {key: value for key, value in b.items() if SD1_QUERY_NAME not in key}
    b |= {f"{SD1_KEY_NAME}.dora_scale": lengths, f"{SD1_CONV_NAME}.diff_b": np.ones(len(lengths), "f4")}
    paths, name = files(tmp_path, a, b), IN_DIFFUSERS[SD1_KEY_NAME]
    found = sdsurgery.compare(*paths).effects
    assert found is not None and found.only_in_a == [IN_DIFFUSERS[SD1_QUERY_NAME]]
    assert found.only_in_b == [f"{IN_DIFFUSERS[SD1_CONV_NAME]}.bias"]
    assert found.left_out == {name: "DoRA: the change depends on the weight"} and not found.equal
    assert (
        "what is not compared (1 module) depends on a base model; --base FILE takes one" in sds("compare", *paths).out
    )
    alone = files(tmp_path / "alone", {key: value for key, value in b.items() if SD1_KEY_NAME not in key})
    found = sdsurgery.compare(paths[1], *alone).effects
    assert found is not None and found.only_in_a == [name] and not found.left_out
    found = sdsurgery.compare(*paths, base=models / "b.safetensors").effects
    assert found is not None and not found.left_out
    weight = loaded(models / "b.safetensors")[SD1_KEY].astype("f8")
    made = weight + delta(b, SD1_KEY_NAME)
    change = 2 * made / np.linalg.norm(made, axis=1, keepdims=True) - weight
    (layer,) = (each for each in found.layers if each.name == name)
    own = delta(a, SD1_KEY_NAME)
    exact = np.linalg.norm(own - change) / np.linalg.norm(own)
    assert layer.likeness.relative_l2 == pytest.approx(exact, rel=1e-5)


def test_folders_of_peft(both: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    a, _ = both
    name = IN_DIFFUSERS[SD1_KEY_NAME].removeprefix("unet.")
    parts = {f"base_model.model.{name}.lora_{new}.weight": a[f"{SD1_KEY_NAME}.lora_{old}.weight"]
             for new, old in (("A", "down"), ("B", "up"))}  # fmt: skip
    written(tmp_path / "adapter_model.safetensors", parts)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2.0}))
    (ours,) = files(tmp_path, {key: value for key, value in a.items() if SD1_KEY_NAME in key})
    found = sdsurgery.compare(tmp_path, ours).effects
    assert found is not None and found.equal


def test_a_base_is_for_adapters(models: Path, both: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    base = models / "b.safetensors"
    (file,) = files(tmp_path, both[0])
    with pytest.raises(UsageError, match="two adapters"):
        sdsurgery.compare(file, base, base=base)
    assert sdsurgery.compare(file, base).effects is None
    with pytest.raises(InputRefused, match="of Stable Diffusion 1, 2 or XL"):
        sdsurgery.compare(file, file, base=file)
    assert "--base is for two adapters" in sds("compare", file, base, "--base", base).err


def test_scan_says_what_an_adapter_is(both: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    (file,) = files(tmp_path, both[0])
    sdsurgery.convert(file, out=tmp_path / "a.pt")
    done = sds("scan", file, tmp_path / "a.pt")
    assert done.out.count("holds: an adapter: LoRA, names of kohya, for sd1; modules: 3") == 2


def test_scan_says_what_an_embedding_or_hypernetwork_is(tmp_path: Path) -> None:
    written(tmp_path / "e.safetensors", {"emb_params": np.zeros((3, 1024), "f2")})
    layers = {f"768.{at}.linear.0.weight": np.zeros((8, 768), "f2") for at in (0, 1)}
    written(tmp_path / "h.safetensors", layers)
    out = sds("scan", tmp_path / "e.safetensors", tmp_path / "h.safetensors").out
    assert "holds: a textual inversion for Stable Diffusion 2.x; vectors: 3" in out
    assert "holds: a hypernetwork for Stable Diffusion 1.x; widths: 768" in out
