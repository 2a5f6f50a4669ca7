"""What a tensor's name says: component, block, exact copies, EMA twins, optional tensors, old and foreign names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_tools import BASES, FULL, IN_DIFFUSERS, NAMES, OLD_VAE_NAMES, UNET, rows
from sdsurgery import layouts
from sdsurgery.layouts import UNKNOWN, Layout, aliases, diffusers


class TestRules:
    @pytest.mark.parametrize("name", NAMES)
    def test_component_by_rule_equals_the_generated_component(self, name: str) -> None:
        layout = layouts.get(name)
        for tensor in layout.tensors(ema=layout.has_ema):
            expected = {"depth_estimator": "depth"}.get(tensor.component, tensor.component)
            if name.endswith("-diffusers"):  # one file per component: the second encoder's names are the first one's
                expected = expected.removesuffix("_2")
            assert layout.component(tensor.key) == expected, tensor.key

    @pytest.mark.parametrize("name", NAMES)
    def test_block_equals_the_table_except_that_the_vae_is_its_own(self, name: str) -> None:
        layout = layouts.get(name)
        for tensor in layout.tensors(ema=layout.has_ema):
            assert layout.block(tensor.key) == ("VAE" if tensor.component == "vae" else tensor.block), tensor.key
            assert layout.block(tensor.key) in (*layout.blocks, None)

    @pytest.mark.parametrize("name", FULL)
    def test_rules_see_through_nesting(self, name: str) -> None:
        layout = layouts.get(name)
        for tensor in layout.tensors(ema=True):
            nested = "state_dict." + tensor.key
            assert layout.component(nested) == layout.component(tensor.key)
            assert layout.block(nested) == layout.block(tensor.key)
            assert layout.exact_copy(nested) == layout.exact_copy(tensor.key)
            assert layout.is_ema(nested) == layout.is_ema(tensor.key)

    @pytest.mark.parametrize("name", [*FULL, "unknown"])
    def test_buffers_markers_counters_position_ids_and_scales_are_copied_exactly(self, name: str) -> None:
        layout = layouts.get(name)
        for key in (
            "betas",
            "posterior_mean_coef2",
            "denoiser.sigmas",
            "low_scale_model.alphas_cumprod",
            "model_ema.decay",
            "model_ema.num_updates",
            "v_pred",
            "ztsnr",
            "edm_mean",
            "edm_vpred.sigma_max",
            UNET + "scaled_fp8",
            UNET + "input_blocks.1.1.proj_in.scale_weight",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "cond_stage_model.transformer.embeddings.position_ids",
            "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
            "optimizer_states.0.exp_avg",
        ):
            assert layout.exact_copy(key), key
            assert layout.block(key) is None, key

    @pytest.mark.parametrize("name", FULL)
    def test_weights_are_not_copied_exactly(self, name: str) -> None:
        layout = layouts.get(name)
        exact = {tensor.component for tensor in layout.tensors(ema=True) if layout.exact_copy(tensor.key)}
        assert exact <= {"buffers", "ema", "text_encoder"}
        copied = [t.key for t in layout.tensors(ema=True) if layout.exact_copy(t.key) and t.component != "buffers"]
        assert copied == [
            *[t.key for t in layout.tensors(ema=True) if t.key in ("model_ema.decay", "model_ema.num_updates")],
            *layout.position_ids(),
        ] or set(copied) == {"model_ema.decay", "model_ema.num_updates", *layout.position_ids()}

    def test_position_ids_are_where_the_family_has_them(self) -> None:
        clip = "transformer.text_model.embeddings.position_ids"
        expected = {"sd1": (f"cond_stage_model.{clip}",), "sd2": (), "sdxl-base": (f"conditioner.embedders.0.{clip}",)}
        for layout in map(layouts.get, FULL):
            if layout.base in expected:
                assert layout.position_ids() == expected[layout.base]
        assert UNKNOWN.position_ids() == ()

    @pytest.mark.parametrize("name", FULL)
    def test_ema_twins_are_distinct_and_only_of_unet_keys(self, name: str) -> None:
        layout = layouts.get(name)
        twins = {tensor.key: layout.ema_twin(tensor.key) for tensor in layout.tensors()}
        found = [twin for twin in twins.values() if twin]
        assert len(found) == len(set(found)) == sum(t.component == "unet" for t in layout.tensors())
        assert all(layout.is_ema(twin) for twin in found)
        assert not any(layout.is_ema(key) for key in twins)

    def test_the_ema_twin_is_the_name_after_model_without_dots(self) -> None:
        twin = layouts.get("sd1").ema_twin("model.diffusion_model.out.2.bias")
        assert twin == "model_ema.diffusion_modelout2bias"

    @pytest.mark.parametrize(
        ("name", "count"), [("sd1", 12 + 1), ("sd2", 12 + 14), ("sdxl-base", 3), ("sdxl-refiner", 2), ("sd2-depth", 26)]
    )
    def test_optional_tensors_are_those_of_the_reference_page(self, name: str, count: int) -> None:
        layout = layouts.get(name)
        assert sum(layout.optional(tensor.key) for tensor in layout.tensors()) == count
        assert not layout.optional(UNET + "out.2.bias")

    def test_every_optional_key_of_the_reference_table_is_optional(self, reference: Path) -> None:
        for row in rows(reference / "optional.tsv"):
            for key in row["key"].replace(" / ", " ").split():
                if "*" in key or ("." not in key and "_" not in key):
                    continue
                for name in (name for name in BASES if layouts.get(name).adapters):
                    to = row["applies_to"].split(",")[0]  # the refiner has rows of its own beside "sdxl*"
                    applies = name == to or (name != "sdxl-refiner" and name.startswith(to.rstrip("*")))
                    if applies and row["status"] in ("optional", "marker") and "transformer.resblocks" not in key:
                        assert layouts.get(name).optional(key), (name, key)

    def test_input_channels_and_bases(self) -> None:
        channels = {name: layouts.get(name).input_channels for name in FULL}
        assert (
            channels.items()
            >= {
                "sd1": 4,
                "sd1-inpainting": 9,
                "sd1-pix2pix": 8,
                "sd2": 4,
                "sd2-inpainting": 9,
                "sd2-depth": 5,
                "sd2-x4-upscaler": 7,
                "sd2-unclip-h": 4,
                "sdxl-base": 4,
                "sdxl-inpainting": 9,
                "sdxl-edit": 8,
                "sdxl-refiner": 4,
            }.items()
        )
        assert UNKNOWN.input_channels is None
        for layout in layouts.all_layouts():
            assert layouts.get(layout.base).base == layout.base

    def test_components_of_leftovers(self) -> None:
        component = layouts.get("sd1").component
        assert component("first_stage_model.loss.perceptual_loss.lin0.model.1.weight") == "training"
        assert component("optimizer_states.0.state.0.exp_avg") == "optimizer"
        assert component("loops.fit_loop.state_dict") == "optimizer"
        assert component("logvar") == component("ddim_alphas") == component("scale_factor") == "buffers"
        assert component("embedding_manager.string_to_param.*") == "training"
        assert component("v_pred") == "marker"
        assert component("conditioner.embedders.0.model.ln_final.weight") == "text_encoder"
        assert (
            layouts.get("sdxl-refiner").component("conditioner.embedders.0.model.ln_final.weight") == "text_encoder_2"
        )

    @given(st.text(), st.sampled_from([UNKNOWN, *layouts.all_layouts()]))
    def test_rules_answer_for_any_name(self, key: str, layout: Layout) -> None:
        for name in (key, UNET + key, "model_ema." + key, "down_blocks." + key, "first_stage_model." + key):
            assert isinstance(layout.component(name), str)
            assert layout.block(name) in (*layout.blocks, None)
            assert isinstance(layout.exact_copy(name) and layout.optional(name) and layout.is_ema(name), bool)
            layout.ema_twin(name)
            aliases.canonical(name, layout)


class TestOldNames:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_names_of_the_family_itself_are_canonical(self, name: str) -> None:
        layout = layouts.get(name)
        for tensor in layout.tensors(ema=layout.has_ema):
            assert aliases.canonical(tensor.key, layout) == tensor.key

    @pytest.mark.parametrize("name", FULL)
    @pytest.mark.parametrize("wrapper", ["state_dict.", "model.", "module.", "state_dict.state_dict."])
    def test_wrappers_are_taken_off(self, name: str, wrapper: str) -> None:
        layout = layouts.get(name)
        for tensor in layout.tensors():
            if wrapper == "model." and "." not in tensor.key:
                continue  # a bare buffer under model. is nothing that is seen
            if wrapper == "model." and tensor.component == "buffers":
                continue
            assert aliases.canonical(wrapper + tensor.key, layout) == tensor.key

    @pytest.mark.parametrize("name", [name for name in FULL if layouts.get(name).position_ids()])
    def test_clip_without_text_model_is_understood(self, name: str) -> None:
        layout = layouts.get(name)
        clip = [t.key for t in layout.tensors() if ".transformer.text_model." in t.key]
        assert len(clip) == 197
        for key in clip:
            assert aliases.canonical(key.replace(".text_model.", "."), layout) == key

    @pytest.mark.parametrize("name", IN_DIFFUSERS)
    def test_vae_names_of_diffusers_old_and_new_are_understood(self, name: str) -> None:
        layout = layouts.get(name)
        vae = [row for row in diffusers.mapping(layout) if row.component == "vae"]
        assert len(vae) == sum(t.component == "vae" for t in layout.tensors())
        for row in vae:
            assert row.key
            old = row.key
            if ".attentions.0." in old:
                for new_name, old_name in OLD_VAE_NAMES:
                    old = old.replace(f".{new_name}.", f".{old_name}.")
            for key in (row.key, old, "first_stage_model." + old):
                assert aliases.canonical(key, layout) == row.ldm_key

    @pytest.mark.parametrize(
        "old", [("q", "to_q"), ("k", "key"), ("v", "to_v"), ("proj_out", "to_out.0"), ("q", "query")]
    )
    def test_careless_vae_attention_names_are_understood(self, old: tuple[str, str]) -> None:
        new_name, old_name = old
        key = f"first_stage_model.decoder.mid.attn_1.{new_name}.weight"
        assert aliases.canonical(key.replace(f".{new_name}.", f".{old_name}."), layouts.get("sd1")) == key

    def test_bare_vae_names_get_the_place_that_the_family_has_for_them(self) -> None:
        key = "decoder.mid.attn_1.q.weight"
        assert aliases.canonical(key, layouts.get("sd1")) == "first_stage_model." + key
        assert aliases.canonical("first_stage_model." + key, layouts.get("vae-kl-f8")) == key
        assert aliases.canonical("first_stage_model." + key, UNKNOWN) == "first_stage_model." + key

    @pytest.mark.parametrize("name", [name for name in IN_DIFFUSERS if name in FULL])
    def test_unet_names_bare_and_of_diffusers_are_understood(self, name: str) -> None:
        layout = layouts.get(name)
        for row in diffusers.mapping(layout):
            if row.component == "unet":
                assert row.key
                bare = row.ldm_key.removeprefix(UNET)
                for key in (bare, "diffusion_model." + bare, row.key):
                    assert aliases.canonical(key, layout) == row.ldm_key

    def test_sd2_encoder_in_the_place_of_sgm_is_understood_only_for_sd2(self) -> None:
        key = "conditioner.embedders.0.model.ln_final.weight"
        assert aliases.canonical(key, layouts.get("sd2")) == "cond_stage_model.model.ln_final.weight"
        assert aliases.canonical(key, layouts.get("sdxl-refiner")) == key

    def test_ema_of_a_bare_unet_is_understood(self) -> None:
        twin = "model_ema.diffusion_modelinput_blocks00weight"
        assert aliases.canonical("model_ema.input_blocks00weight", layouts.get("sd1")) == twin

    def test_a_transposed_projection_is_reported_and_never_renamed(self) -> None:
        key = "conditioner.embedders.1.model.text_projection.weight"
        assert aliases.needs_transpose(key)
        assert not aliases.needs_transpose("conditioner.embedders.1.model.text_projection")
        assert aliases.canonical(key, layouts.get("sdxl-base")) == key

    def test_remarks_count_what_is_unusual_and_are_silent_otherwise(self) -> None:
        layout = layouts.get("sdxl-base")
        keys = [tensor.key for tensor in layout.tensors()]
        assert aliases.remarks(keys, layout) == ()
        odd = [key.replace(".text_model.", ".") for key in keys]
        odd.append("conditioner.embedders.1.model.text_projection.weight")
        found = aliases.remarks(odd, layout)
        assert [line.split(" ")[0] for line in found] == ["197", "1"]

    def test_diffusers_layouts_understand_the_old_attention_names(self) -> None:
        key = "decoder.mid_block.attentions.0.to_out.0.weight"
        layout = layouts.get("vae-kl-f8-diffusers")
        assert aliases.canonical(key.replace("to_out.0", "proj_attn"), layout) == key
