"""bake: adapters into a checkpoint, counted key by key, rounded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from adapter_tools import (
    SD1,
    SD1_CONV,
    SD1_CONV_NAME,
    SD1_KEY,
    SD1_KEY_NAME,
    SD1_QUERY,
    SD1_QUERY_NAME,
    delta,
    loaded,
    lora,
    rounded_once,
    shapes_of,
    written,
)
from cli_support import sds
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.testing import write_checkpoint

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bake") / "base.safetensors"
    write_checkpoint(path, "sd1", size="tiny", ema=True)
    return path


@pytest.fixture(scope="module")
def parts(base: Path) -> dict[str, np.ndarray]:
    """A LoRA of three modules: a linear and a 3×3 layer of the U-Net, and one of the text encoder."""
    shapes = shapes_of(base)
    found: dict[str, np.ndarray] = {}
    for seed, (name, tensor) in enumerate(SD1.items()):
        found |= lora(name, shapes[tensor], seed=seed)
    return found


@pytest.fixture(scope="module")
def adapter(base: Path, parts: dict[str, np.ndarray]) -> Path:
    return written(base.with_name("style.safetensors"), parts)


def test_products_are_added_and_rounded_once(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    report = sdsurgery.bake(base, {adapter: 0.6}, out=tmp_path / "out.safetensors")
    before, after = loaded(base), loaded(tmp_path / "out.safetensors")
    for name, tensor in SD1.items():
        rounded_once(after[tensor], before[tensor].astype(np.float64) + 0.6 * delta(parts, name))
    assert {n for n in after if not np.array_equal(after[n], before[n])} == set(SD1.values())
    assert report.counts["baked"] == 3
    assert report.adapters[0]["applied"] == {"unet": 2, "text_encoder": 1}
    assert report.adapters[0]["keys"] == {"applied": 9, "ignored": 0, "unmatched": 0}


def test_ema_weights_are_left_out_as_they_belong_to_the_unbaked_model(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    sdsurgery.bake(base, [adapter], out=tmp_path / "out.safetensors")
    assert not [name for name in shapes_of(tmp_path / "out.safetensors") if name.startswith("model_ema.")]


def test_several_adapters_are_applied_without_rounding_between(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    other = lora(SD1_KEY_NAME, shapes_of(base)[SD1_KEY], seed=9, rank=2, alpha=None)
    second = written(tmp_path / "second.safetensors", other)
    loras = [sdsurgery.lora(adapter, 0.8), sdsurgery.lora(second, -0.4)]
    sdsurgery.bake(base, loras, out=tmp_path / "out.safetensors")
    exact = loaded(base)[SD1_KEY].astype(np.float64) + 0.8 * delta(parts, SD1_KEY_NAME)
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_KEY], exact - 0.4 * delta(other, SD1_KEY_NAME))


def test_strengths_of_unet_and_text_encoder_are_apart(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    report = sdsurgery.bake(base, [sdsurgery.lora(adapter, 0.5, te=0)], out=tmp_path / "out.safetensors")
    before, after = loaded(base), loaded(tmp_path / "out.safetensors")
    assert np.array_equal(after[SD1_QUERY], before[SD1_QUERY])
    rounded_once(after[SD1_KEY], before[SD1_KEY].astype(np.float64) + 0.5 * delta(parts, SD1_KEY_NAME))
    assert report.adapters[0]["ignored"] == {"strength 0": [SD1_QUERY_NAME]}


def test_a_negative_strength_takes_an_adapter_out_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    sdsurgery.bake(base, {adapter: 0.7}, out=tmp_path / "there.safetensors", dtype="fp32")
    report = sdsurgery.bake(tmp_path / "there.safetensors", {adapter: -0.7}, out=tmp_path / "back.safetensors")
    before, after = loaded(base), loaded(tmp_path / "back.safetensors")
    for tensor in SD1.values():
        assert np.array_equal(after[tensor].astype(np.float16), before[tensor])
    assert any("takes the adapter out again" in note for note in report.notes)


@pytest.mark.parametrize("compute", ["fp32", "fp64"])
@pytest.mark.parametrize("dtype", ["keep", "bf16", "fp32"])
def test_every_backend_writes_the_same_bytes(
    base: Path, adapter: Path, tmp_path: Path, dtype: str, compute: str
) -> None:
    files = [tmp_path / backend / "out.safetensors" for backend in ("cpu", "reference")]
    for file in files:
        file.parent.mkdir()
        settings: dict[str, Any] = {"dtype": dtype, "compute": compute, "backend": file.parent.name}
        sdsurgery.bake(base, [adapter], out=file, **settings)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_torch_file_and_output_are_as_good(base: Path, parts: dict[str, np.ndarray], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(value) for name, value in parts.items()}, tmp_path / "style.pt")
    written(tmp_path / "style.safetensors", parts)
    for kind in ("pt", "safetensors"):
        sdsurgery.bake(base, [tmp_path / f"style.{kind}"], out=tmp_path / f"from-{kind}.safetensors")
    sdsurgery.bake(base, [tmp_path / "style.pt"], out=tmp_path / "whole.ckpt")
    sdsurgery.convert(tmp_path / "whole.ckpt", out=tmp_path / "back.safetensors")
    expected = loaded(tmp_path / "from-safetensors.safetensors")
    for name in ("from-pt", "back"):
        found = loaded(tmp_path / f"{name}.safetensors")
        assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_encoded_weights_are_decoded_first(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    tensors = load_file(base)
    codes = torch.randn(tensors[SD1_KEY].shape, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.tensor(0.37)
    tensors[SD1_KEY], tensors[SD1_KEY.replace("weight", "scale_weight")] = codes, scale
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "encoded.safetensors")
    sdsurgery.bake(tmp_path / "encoded.safetensors", [adapter], out=tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    assert SD1_KEY.replace("weight", "scale_weight") not in after
    exact = (codes.float() * scale).numpy().astype(np.float64) + delta(parts, SD1_KEY_NAME)
    rounded_once(after[SD1_KEY].numpy(), exact)


@pytest.mark.parametrize("dtype", ["keep", "bf16", "fp32"])
def test_a_check_says_how_far_the_output_is_from_the_unrounded_values(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path, dtype: str
) -> None:
    settings: dict[str, Any] = {"dtype": dtype}
    report = sdsurgery.bake(base, [adapter], out=tmp_path / "out.safetensors", check=True, **settings)
    assert set(report.checked) == set(SD1.values())
    for found in report.checked.values():
        assert found["ulps"] == 0 if dtype == "fp32" else 0.3 < found["ulps"] <= 0.5
        assert found["error"] == 0 if dtype == "fp32" else 1e-5 < found["error"] < 0.1
    assert any("checked 3 tensors" in note for note in report.notes)


def test_a_check_passes_over_what_is_not_finite(base: Path, parts: dict[str, np.ndarray], tmp_path: Path) -> None:
    given = {name: value.copy() for name, value in parts.items()}
    given[f"{SD1_KEY_NAME}.lora_up.weight"][3, 0] = np.nan
    given[f"{SD1_QUERY_NAME}.lora_up.weight"][0, :] = 6e4  # the effect is more than fp16 can hold
    given[f"{SD1_QUERY_NAME}.lora_down.weight"] += 100
    report = sdsurgery.bake(base, [written(tmp_path / "a.safetensors", given)], out=tmp_path / "out.safetensors",
                            check=True)  # fmt: skip
    assert {warning.code for warning in report.warnings} == {"nonfinite", "overflow"}
    assert all(found["ulps"] <= 0.5001 for found in report.checked.values())


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_scaled"])
def test_a_check_of_scaled_fp8_counts_units_of_the_codes(base: Path, adapter: Path, tmp_path: Path, dtype: str) -> None:
    settings: dict[str, Any] = {"dtype": dtype}
    report = sdsurgery.bake(base, [adapter], out=tmp_path / "out.safetensors", check=True, **settings)
    for found in report.checked.values():
        assert 0.3 < found["ulps"] <= 0.5001
        assert 0.001 < found["error"] < 2


class TestLayers:
    def test_thirds_of_a_fused_projection_are_separate_targets(self, tmp_path: Path) -> None:
        base = tmp_path / "sd2.safetensors"
        write_checkpoint(base, "sd2", size="tiny")
        fused = "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight"
        rows, columns = shapes_of(base)[fused]
        name = "lora_te_text_model_encoder_layers_2_self_attn_v_proj"
        given = lora(name, (rows // 3, columns))
        sdsurgery.bake(base, [written(tmp_path / "v.safetensors", given)], out=tmp_path / "out.safetensors")
        before, after = loaded(base)[fused], loaded(tmp_path / "out.safetensors")[fused]
        third = rows // 3
        assert np.array_equal(after[: 2 * third], before[: 2 * third])
        rounded_once(after[2 * third :], before[2 * third :].astype(np.float64) + delta(given, name))

    def test_the_text_projection_is_changed_by_the_transpose(self, tmp_path: Path) -> None:
        base = tmp_path / "sdxl.safetensors"
        write_checkpoint(base, "sdxl-base", size="tiny")
        tensor = "conditioner.embedders.1.model.text_projection"
        given = lora("lora_te2_text_projection", shapes_of(base)[tensor])
        sdsurgery.bake(base, [written(tmp_path / "t.safetensors", given)], out=tmp_path / "out.safetensors")
        before, after = loaded(base)[tensor], loaded(tmp_path / "out.safetensors")[tensor]
        rounded_once(after, before.astype(np.float64) + delta(given, "lora_te2_text_projection").T)

    def test_a_four_channel_adapter_changes_channels_0_to_3_of_an_inpainting_model(self, tmp_path: Path) -> None:
        base = tmp_path / "inpaint.safetensors"
        write_checkpoint(base, "sd1-inpainting", size="tiny")
        shape = shapes_of(base)[FIRST]
        assert shape[1] == 9
        given = lora("lora_unet_conv_in", (shape[0], 4, *shape[2:]))
        report = sdsurgery.bake(base, [written(tmp_path / "c.safetensors", given)], out=tmp_path / "out.safetensors")
        before, after = loaded(base)[FIRST], loaded(tmp_path / "out.safetensors")[FIRST]
        assert np.array_equal(after[:, 4:], before[:, 4:])
        rounded_once(after[:, :4], before[:, :4].astype(np.float64) + delta(given, "lora_unet_conv_in"))
        assert any("channels 0-3 of 9" in note for note in report.notes)
        scales = {"lora_unet_conv_in.weight": np.array([2, 3, 0.5, 1], "f2").reshape(1, 4, 1, 1),
                  "lora_unet_conv_in.on_input": np.array(1)}  # fmt: skip
        sdsurgery.bake(base, [written(tmp_path / "i.safetensors", scales)], out=tmp_path / "ia3.safetensors")
        after = loaded(tmp_path / "ia3.safetensors")[FIRST]
        assert np.array_equal(after[:, 4:], before[:, 4:])
        rounded_once(after[:, :4], before[:, :4].astype(np.float64) * (1 + scales["lora_unet_conv_in.weight"]))

    def test_a_nine_channel_adapter_on_a_four_channel_model_is_refused(self, base: Path, tmp_path: Path) -> None:
        shape = shapes_of(base)[FIRST]
        given = lora("lora_unet_conv_in", (shape[0], 9, *shape[2:]))
        with pytest.raises(InputRefused, match=r"lora_unet_conv_in.*down has shape"):
            sdsurgery.bake(base, [written(tmp_path / "c.safetensors", given)], dry_run=True)

    def test_differences_of_biases_and_norms_are_added(self, base: Path, tmp_path: Path) -> None:
        norm = "model.diffusion_model.input_blocks.1.0.in_layers.0"
        rows = shapes_of(base)[f"{norm}.weight"][0]
        given = {
            "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": np.full(rows, 0.25, "f2"),
            "lora_unet_down_blocks_0_resnets_0_norm1.b_norm": np.full(rows, 0.5, "f2"),
            f"{SD1_CONV_NAME}.diff_b": np.full(shapes_of(base)[SD1_CONV][0], -0.125, "f2"),
        }
        sdsurgery.bake(base, {written(tmp_path / "n.safetensors", given): 2.0}, out=tmp_path / "out.safetensors")
        before, after = loaded(base), loaded(tmp_path / "out.safetensors")
        for tensor, added in (
            (f"{norm}.weight", 0.5),
            (f"{norm}.bias", 1.0),
            (SD1_CONV.replace("weight", "bias"), -0.25),
        ):
            rounded_once(after[tensor], before[tensor].astype(np.float64) + added)


class TestKeys:
    """Every key ends as applied, ignored for a named reason, or unmatched."""

    def test_what_matches_nothing_is_named(self, base: Path, parts: dict[str, np.ndarray], tmp_path: Path) -> None:
        given = parts | lora("lora_unet_bar", (8, 8)) | {"bundle_emb.style.emb_params": np.zeros((2, 768), "f2")}
        file = written(tmp_path / "a.safetensors", given)
        report = sdsurgery.bake(base, [file], out=tmp_path / "out.safetensors")
        found = report.adapters[0]
        assert found["unmatched"] == ["lora_unet_bar"]
        assert found["ignored"] == {"bundled embeddings": ["bundle_emb.style.emb_params"]}
        assert found["keys"] == {"applied": 9, "ignored": 1, "unmatched": 3}
        with pytest.raises(InputRefused, match="lora_unet_bar"):
            sdsurgery.bake(base, [file], dry_run=True, strict=True)

    def test_modules_of_an_encoder_that_the_checkpoint_lacks_are_ignored(self, adapter: Path, tmp_path: Path) -> None:
        unet = tmp_path / "unet.safetensors"
        write_checkpoint(unet, "sd1", size="tiny", keep=lambda tensor: tensor.component == "unet")
        report = sdsurgery.bake(unet, [adapter], out=tmp_path / "out.safetensors")
        assert report.adapters[0]["ignored"] == {"the checkpoint has no text encoder": [SD1_QUERY_NAME]}

    def refused(self, base: Path, parts: dict[str, np.ndarray], folder: Path, code: str, text: str) -> None:
        with pytest.raises(InputRefused, match=text) as caught:
            sdsurgery.bake(base, [written(folder / "a.safetensors", parts)], out=folder / "out.safetensors")
        assert caught.value.code == code
        assert not (folder / "out.safetensors").exists()

    def test_an_adapter_that_changes_nothing_is_refused(self, base: Path, tmp_path: Path) -> None:
        self.refused(base, lora("lora_unet_bar", (8, 8)), tmp_path, "unlike", "its only module changes no tensor")

    @pytest.mark.parametrize(("width", "family"), [(1024, "SD2"), (2048, "SDXL"), (1280, "SDXL refiner")])
    def test_an_adapter_of_another_family_is_refused(
        self, base: Path, parts: dict[str, np.ndarray], tmp_path: Path, width: int, family: str
    ) -> None:
        given = parts | lora(SD1_KEY_NAME, (40, width))
        self.refused(base, given, tmp_path, "family", rf"for {family} \(attn2.to_k takes {width} inputs\).*\(768\)")

    def test_a_module_of_another_shape_is_refused(self, base: Path, tmp_path: Path) -> None:
        given = lora(SD1_CONV_NAME, (48, 48, 3, 3))
        self.refused(base, given, tmp_path, "shape", f"a.safetensors: module '{SD1_CONV_NAME}'.*has shape")

    def test_blocks_that_do_not_divide_the_outputs_are_refused(self, base: Path, tmp_path: Path) -> None:
        for blocks in ((3, 10, 4, 4), (13, 3, 3)):
            given = {f"{SD1_CONV_NAME}.oft_blocks": np.zeros(blocks, "f4")}
            self.refused(base, given, tmp_path, "shape", "and 40 outputs can't be divided so")

    def test_half_a_module_is_refused(self, base: Path, parts: dict[str, np.ndarray], tmp_path: Path) -> None:
        given = {name: value for name, value in parts.items() if name != f"{SD1_KEY_NAME}.lora_up.weight"}
        self.refused(base, given, tmp_path, "missing_tensors", "a.safetensors: .* no up; the file is incomplete")

    @pytest.mark.parametrize(
        ("names", "text"),
        [
            (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "made for Flux"),
            (["lora_transformer_transformer_blocks_0_attn_to_k.lora_down.weight"], "Stable Diffusion 3"),
            (["lllite_unet_x.down.0.weight"], "LLLite"),
        ],
    )
    def test_adapters_of_other_networks_are_named(
        self, base: Path, tmp_path: Path, names: list[str], text: str
    ) -> None:
        given = {name: np.zeros((4, 8), "f2") for name in names}
        given |= {name.replace("down", "up"): np.zeros((8, 4), "f2") for name in names}
        with pytest.raises(InputRefused, match=text):
            sdsurgery.bake(base, [written(tmp_path / "a.safetensors", given)], dry_run=True)

    def test_a_checkpoint_or_an_embedding_is_no_adapter(self, base: Path, tmp_path: Path) -> None:
        embedding = written(tmp_path / "e.safetensors", {"emb_params": np.zeros((4, 768), "f2")})
        for file, text in ((base, "an adapter is expected, but this is"), (embedding, "textual inversion")):
            with pytest.raises(InputRefused, match=text):
                sdsurgery.bake(base, [file], dry_run=True)


class TestBlocks:
    def check(self, base: Path, adapter: Path, out: Path, blocks: str, **weights: float) -> None:
        sdsurgery.bake(base, [sdsurgery.lora(adapter, 0.5, blocks=blocks, others=1)], out=out)
        before, after, parts = loaded(base), loaded(out), loaded(adapter)
        for block, (name, tensor) in zip(("IN04", "IN04", "BASE"), SD1.items(), strict=True):
            exact = before[tensor].astype(np.float64) + 0.5 * weights[block] * delta(parts, name)
            rounded_once(after[tensor], exact)

    def test_lists_of_17_and_26_presets_and_assignments(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        lists: list[tuple[str, dict[str, float]]] = [
            ("0.5,1,1,0.25" + ",1" * 13, {"BASE": 0.5, "IN04": 1}),  # BASE IN01 IN02 IN04 …
            ("2" + ",0" * 4 + ",3" + ",0" * 20, {"BASE": 2, "IN04": 3}),
            ("MIDD", {"BASE": 1, "IN04": 0}),
            ("INS", {"BASE": 1, "IN04": 1}),
            ("IN04=0.5,BASE=0", {"BASE": 0, "IN04": 0.5}),
        ]
        lists[0][1]["IN04"] = 0.25
        for number, (blocks, weights) in enumerate(lists):
            self.check(base, adapter, tmp_path / f"{number}.safetensors", blocks, **weights)

    def test_a_list_that_leaves_a_block_of_the_adapter_unnamed_is_refused(self, base: Path, tmp_path: Path) -> None:
        name = "lora_unet_conv_in"
        file = written(tmp_path / "a.safetensors", lora(name, shapes_of(base)[FIRST]))
        with pytest.raises(UsageError, match="IN00, which a list of 17 numbers doesn't name; say others=0"):
            sdsurgery.bake(base, [sdsurgery.lora(file, blocks="ALL")], dry_run=True)
        sdsurgery.bake(base, [sdsurgery.lora(file, blocks="ALL", others=1)], dry_run=True)

    def test_a_list_of_another_length_is_refused(self, base: Path, adapter: Path) -> None:
        with pytest.raises(UsageError, match=r"12 numbers given.*17 or 26"):
            sdsurgery.bake(base, [sdsurgery.lora(adapter, blocks=[1.0] * 12)], dry_run=True)

    def test_a_number_that_is_not_finite_is_refused(self, base: Path, adapter: Path) -> None:
        with pytest.raises(UsageError, match="must be finite"):
            sdsurgery.bake(base, [sdsurgery.lora(adapter, blocks="nan" + ",1" * 16)], dry_run=True)

    def test_a_preset_of_another_family_is_named(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "xl.safetensors", "sdxl-base", size="tiny")
        name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
        file = written(tmp_path / "a.safetensors", lora(name, (40, 2048)))
        with pytest.raises(UsageError, match=r"the preset MIDD is a list of 17 numbers; .*12 or 20"):
            sdsurgery.bake(tmp_path / "xl.safetensors", [sdsurgery.lora(file, blocks="MIDD")], dry_run=True)


def test_the_recipe_names_the_adapters_their_hashes_strengths_and_trigger_words(
    base: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = written(tmp_path / "style.safetensors", parts, {"modelspec.trigger_phrase": "in zx style, soft"})
    report = sdsurgery.bake(base, [sdsurgery.lora(file, 0.8, te=0.3)], out=tmp_path / "out.safetensors")
    with sdsurgery.open(tmp_path / "out.safetensors") as out:
        recipe = json.loads(out.metadata()["sd_merge_recipe"])
    expected = {"name": "style", "strength": 0.8, "te": 0.3, "trigger_words": ["in zx style", "soft"]}
    assert recipe["method"] == "bake" and recipe["parameters"] == {"loras": [expected]}
    assert [model["name"] for model in recipe["models"]] == ["base", "style"]
    assert [model["sha256"] for model in recipe["models"]] == report.sha256
    assert all(report.sha256)


def test_the_same_bake_gives_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    files = [tmp_path / name / "out.safetensors" for name in ("1", "2")]
    for file in files:
        file.parent.mkdir()
        sdsurgery.bake(base, [adapter], out=file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_command_line(base: Path, adapter: Path, tmp_path: Path) -> None:
    given = sdsurgery.lora(adapter, 0.8, te=0.3, blocks="OUTALL", others=0)
    sdsurgery.bake(base, [given], out=tmp_path / "a.safetensors")
    done = sds(
        "bake", base, "--lora", f"{adapter}=0.8,te=0.3", "--lora-blocks", "1:OUTALL", "--lora-others", "0",
        "-o", tmp_path / "b.safetensors",
    )  # fmt: skip
    assert done.rc == 0, done.err
    assert "applied 1 module (text_encoder 1), ignored 2 (strength 0)" in " ".join(done.err.split())
    a, b = loaded(tmp_path / "a.safetensors"), loaded(tmp_path / "b.safetensors")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    wrong = sds("bake", base, "--lora", f"{adapter}=much", "-o", tmp_path / "c.safetensors")
    assert wrong.rc == 2 and "'much' is not a number" in wrong.err


def test_each_strength_of_a_list_is_the_bake_at_that_strength(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = sds(
        "bake", base, "--lora", f"{adapter}=0.25,-0.5,te=0.3", "--lora-blocks", "OUTALL", "--lora-others", "1",
        "-o", tmp_path / "x-{lora}.safetensors", "--json",
    )  # fmt: skip
    assert done.rc == 0, done.err
    assert [Path(each["output"]).name for each in json.loads(done.out)["outputs"]] == [
        "x-0.25.safetensors", "x--0.5.safetensors",
    ]  # fmt: skip
    for strength in (0.25, -0.5):
        one = sdsurgery.lora(adapter, strength, te=0.3, blocks="OUTALL", others=1)
        sdsurgery.bake(base, [one], out=tmp_path / "one.safetensors", overwrite=True)
        a, b = loaded(tmp_path / "one.safetensors"), loaded(tmp_path / f"x-{strength}.safetensors")
        assert all(np.array_equal(a[name], b[name]) for name in a)
    unnamed = sds("bake", base, "--lora", f"{adapter}=0.2:0.6:0.2", "-o", tmp_path / "y.safetensors")
    assert unnamed.rc == 2 and "3 strengths" in unnamed.err and "{lora}" in unnamed.err
    wrong = sds("bake", base, "--lora", f"{adapter}=0.5", "-o", tmp_path / "{loar}.safetensors")
    assert wrong.rc == 2 and "bake has no such number; did you mean 'lora'" in wrong.err
    assert sds("bake", base, "--lora", f"{adapter}=0.5", "-o", tmp_path / "one-{lora}.safetensors").rc == 0
    assert (tmp_path / "one-0.5.safetensors").exists()


def test_several_adapters_are_swept_by_their_numbers(base: Path, adapter: Path, tmp_path: Path) -> None:
    reports = sdsurgery.sweep(
        "bake", [base], loras=[[sdsurgery.lora(adapter, each) for each in (0.5, 1)], adapter],
        out=tmp_path / "{lora1}-{lora2}.safetensors",
    )  # fmt: skip
    names = [Path(str(report.output)).name for report in reports]
    assert names == ["0.5-1.safetensors", "1-1.safetensors"]
    a = sdsurgery.bake(base, [sdsurgery.lora(adapter, 0.5), adapter], out=tmp_path / "one.safetensors")
    assert a.output is not None
    one, other = loaded(tmp_path / "one.safetensors"), loaded(tmp_path / names[0])
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_pickle_of_strided_or_wide_factors_is_the_same_adapter(
    base: Path, adapter: Path, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    import torch

    tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
    turned = {name: part.t().contiguous().t() if part.ndim == 2 else part.double() for name, part in tensors.items()}
    torch.save(turned, tmp_path / "style.pt")
    sdsurgery.bake(base, [adapter], out=tmp_path / "a.safetensors")
    sdsurgery.bake(base, [tmp_path / "style.pt"], out=tmp_path / "b.safetensors")
    a, b = loaded(tmp_path / "a.safetensors"), loaded(tmp_path / "b.safetensors")
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"alpha": np.array(np.nan, np.float16)}, "must be one number, not nan"),
        ({"alpha": np.ones(2, np.float16)}, r"must be one number, not F16 \[2\]"),
        ({"lora_down.weight": np.zeros((0, 768), np.float16), "lora_up.weight": np.zeros((640, 0), np.float16)},
         "has rank 0"),
    ],
)  # fmt: skip
def test_a_damaged_module_is_refused_with_what_is_wrong(
    base: Path, parts: dict[str, np.ndarray], tmp_path: Path, changed: dict[str, np.ndarray], text: str
) -> None:
    other = {**parts, **{f"{SD1_KEY_NAME}.{part}": value for part, value in changed.items()}}
    with pytest.raises(InputRefused, match=text):
        sdsurgery.bake(base, [written(tmp_path / "a.safetensors", other)], out=tmp_path / "out.safetensors")


def test_the_first_text_encoder_s_prefix_of_two_fits_models_of_one(base: Path, tmp_path: Path) -> None:
    name = SD1_QUERY_NAME.replace("lora_te_", "lora_te1_")
    given = written(tmp_path / "a.safetensors", lora(name, shapes_of(base)[SD1[SD1_QUERY_NAME]]))
    assert sdsurgery.bake(base, [given], out=tmp_path / "out.safetensors").adapters[0]["applied"] == {"text_encoder": 1}


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("diffusion_model.transformer_blocks.0.attn1.to_k.lora_A.weight", "LTX-Video"),
        ("unet.down_blocks.1.motion_modules.0.transformer_blocks.0.attn1.to_k.lora_A.weight", "AnimateDiff"),
        ("transformer.double_blocks.0.img_attn_qkv.lora_A.weight", "Flux or HunyuanVideo"),
    ],
)
def test_adapters_of_other_networks_are_named(base: Path, tmp_path: Path, name: str, program: str) -> None:
    given = {name: np.zeros((4, 64), np.float16), name.replace("_A", "_B"): np.zeros((64, 4), np.float16)}
    with pytest.raises(InputRefused, match=f"made for {program}"):
        sdsurgery.bake(base, [written(tmp_path / "a.safetensors", given)], out=tmp_path / "out.safetensors")
