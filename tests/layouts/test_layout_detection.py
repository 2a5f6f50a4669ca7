"""Recognition of a file's family from its header, adapters, and which families may be mixed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layout_tools import BASES, FULL, NAMES, UNET, VAES, VARIANTS, infos, whole
from sdsurgery import layouts
from sdsurgery.layouts import UNKNOWN, size_text
from sdsurgery.testing import tiny_shape


class TestRecognition:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_generated_family_recognises_itself(self, name: str) -> None:
        found = layouts.detect(whole(name))
        assert found.layout.name == name
        assert found.evidence_shape == whole(name)[found.evidence_key or ""].shape
        assert found.notes == ()

    @pytest.mark.parametrize("name", NAMES)
    def test_so_does_its_tiny_file(self, name: str) -> None:
        tiny = infos((tensor.key, tiny_shape(layouts.get(name), tensor)) for tensor in layouts.get(name).tensors())
        assert layouts.detect(tiny).layout.name == name

    @pytest.mark.parametrize("name", FULL)
    @pytest.mark.parametrize("wrapper", ["state_dict.", "model.", "module.", "_forward_module.", "model.module.",
                                         "ema_model.", "net.", "_orig_mod.", "anything.at.all."])  # fmt: skip
    def test_nested_names_are_recognised_and_remarked(self, name: str, wrapper: str) -> None:
        found = layouts.detect(infos(layouts.get(name).tensors(), wrapper))
        assert found.layout.name == name
        assert wrapper + UNET in found.notes[0]

    @pytest.mark.parametrize("name", FULL)
    @pytest.mark.parametrize("prefix", ["", "diffusion_model."])
    def test_a_unet_on_its_own_is_recognised(self, name: str, prefix: str) -> None:
        unet = [
            (prefix + tensor.key.removeprefix(UNET), tensor.shape)
            for tensor in layouts.get(name).tensors()
            if tensor.component == "unet"
        ]
        found = layouts.detect(infos(unet))
        assert found.layout.name == name
        assert len(found.notes) == 1

    @pytest.mark.parametrize("prefix", ["", "first_stage_model.", "state_dict.", "state_dict.first_stage_model."])
    @pytest.mark.parametrize("name", VAES)
    def test_a_vae_on_its_own_is_recognised_under_any_prefix(self, name: str, prefix: str) -> None:
        assert layouts.detect(infos(layouts.get(name).tensors(), prefix)).layout.name == name

    def test_a_distilled_sdxl_is_not_taken_for_sdxl(self) -> None:
        tensors = {key: info for key, info in whole("sdxl-base").items() if "middle_block.1.transformer" not in key}
        found = layouts.detect(tensors)
        assert found.layout.name == "sdxl-distilled"
        assert layouts.conflict(found, layouts.detect(whole("sdxl-base"))) is not None

    @pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl-base", "sdxl-refiner"])
    def test_a_file_that_lacks_one_tensor_is_incomplete_not_another_family_s(self, name: str) -> None:
        tensors = whole(name)
        ends = ("input_blocks.0.0.weight", "attn2.to_k.weight", "transformer_blocks.9.norm1.weight")
        lacking = [key for key in tensors if key.startswith(UNET) and key.endswith(ends)]
        assert len(lacking) > 10
        for key in lacking:
            assert layouts.detect({each: info for each, info in tensors.items() if each != key}).layout.name == name

    @pytest.mark.parametrize(("front", "name"), [("any.thing.", "sd1"), ("control_model.", "unknown")])
    def test_a_network_under_another_kind_s_front_is_not_a_model_in_a_wrapper(self, front: str, name: str) -> None:
        network = {front + key[len(UNET) :]: info for key, info in whole("sd1").items() if key.startswith(UNET)}
        found = layouts.detect(network).layout
        assert found.name == name
        assert (found.component(front + "input_blocks.1.0.in_layers.0.bias") == "unet") == (name == "sd1")

    @pytest.mark.parametrize(("name", "channels"), [("sd1", 12), ("sd2", 6), ("sdxl-base", 5)])
    def test_an_unusual_number_of_input_channels_is_the_base_family_with_a_note(self, name: str, channels: int) -> None:
        key = UNET + "input_blocks.0.0.weight"
        tensors = whole(name) | infos([(key, (320, channels, 3, 3))])
        found = layouts.detect(tensors)
        assert found.layout.name == name
        assert f"{channels} input channels" in found.notes[0]

    def test_nothing_known_is_unknown(self) -> None:
        for tensors in ({}, infos([("a.weight", (3, 4)), ("b", ())]), infos([(UNET + "out.0.weight", (320,))])):
            assert layouts.detect(tensors).layout is UNKNOWN

    @pytest.mark.parametrize(
        ("key", "name"),
        [("joint_blocks.0.x_block.attn.qkv.weight", "sd3"), ("double_blocks.0.img_attn.norm.key_norm.scale", "flux")],
    )
    def test_sd3_and_flux_are_named_so_that_a_refusal_can_name_them(self, key: str, name: str) -> None:
        for prefix in ("", UNET):
            assert layouts.detect(infos([(prefix + key, (4, 4))])).layout.name == name

    def test_a_foreign_text_encoder_is_remarked(self) -> None:
        tensors = whole("sd2")
        tensors = {key: info for key, info in tensors.items() if not key.startswith("cond_stage_model.")}
        tensors |= {key: info for key, info in whole("sd1").items() if key.startswith("cond_stage_model.")}
        found = layouts.detect(tensors)
        assert found.layout.name == "sd2"
        assert any("CLIP-L" in note and "does not belong" in note for note in found.notes)
        assert [encoder.name for encoder in layouts.text_encoders(tensors)] == ["CLIP-L"]

    def test_old_clip_names_and_sd_turbo_are_recognised_and_remarked(self) -> None:
        old = {key.replace(".text_model.", "."): info for key, info in whole("sd1").items()}
        found = layouts.detect(old)
        assert found.layout.name == "sd1"
        assert found.notes == ("text encoder: CLIP-L in old names (no text_model.)",)
        sgm = {key.replace("cond_stage_model.", "conditioner.embedders.0."): info for key, info in whole("sd2").items()}
        found = layouts.detect(sgm)
        assert found.layout.name == "sd2"
        assert found.notes == ("text encoder: OpenCLIP-H in sgm names",)

    def test_unclip_with_vit_l_is_not_taken_for_plain_sd2(self) -> None:
        key = UNET + "label_emb.0.0.weight"
        found = layouts.detect(whole("sd2-unclip-h") | infos([(key, (1280, 1536))]))
        assert found.layout.name == "sd2-unclip-l"
        assert found.layout.base == "sd2"

    def test_two_text_encoders_without_a_model_are_unknown_with_remarks(self) -> None:
        keys = [("cond_stage_model.model.ln_final.weight", (1024,))]
        keys += [("cond_stage_model.transformer.text_model.final_layer_norm.weight", (768,))]
        found = layouts.detect(infos(keys))
        assert found.layout is UNKNOWN
        assert found.notes == ("holds the text encoder CLIP-L", "holds the text encoder OpenCLIP-H")

    def test_markers_are_remarked(self) -> None:
        tensors = whole("sdxl-base") | infos([("v_pred", (0,)), ("ztsnr", (0,))])
        assert [note.split(" (")[0] for note in layouts.detect(tensors).notes] == [
            "v-prediction model",
            "zero-terminal-SNR noise schedule",
        ]

    @given(st.dictionaries(st.text(), st.lists(st.integers(0, 9), max_size=5).map(tuple), max_size=8))
    def test_recognition_of_any_names_and_shapes_ends_without_an_error(
        self, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        found = layouts.detect(infos(shapes.items()))
        assert layouts.conflict(found, layouts.detect(whole("sd1"))) is None or found.layout is not UNKNOWN


def lora(prefix: str, width: int, rank: int = 16) -> dict[str, tuple[int, ...]]:
    modules = {f"{prefix}_attn2_to_k": width, f"{prefix}_attn2_to_q": 320}
    shapes: dict[str, tuple[int, ...]] = {}
    for module, inputs in modules.items():
        shapes[f"{module}.lora_down.weight"] = (rank, inputs)
        shapes[f"{module}.lora_up.weight"] = (320, rank)
        shapes[f"{module}.alpha"] = ()
    return shapes


SD1_BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
XL_BLOCK = "lora_unet_input_blocks_4_1_transformer_blocks_0"
ADAPTERS = {
    "lora-sd1": lora(SD1_BLOCK, 768),
    "lora-sd2": lora(SD1_BLOCK, 1024),
    "lora-sdxl": lora(XL_BLOCK, 2048),
    "lora-sdxl-refiner": lora(XL_BLOCK, 1280),
    "lora": {"lora_unet_x.lora_down.weight": (4, 320), "lora_unet_x.lora_up.weight": (320, 4)},
    "lycoris-sd1": {f"{SD1_BLOCK}_attn2_to_k.hada_w{i}_{half}": (8, 768) for i in (1, 2) for half in "ab"},
    "lycoris-sdxl": {f"{XL_BLOCK}_attn2_to_k.lokr_w1": (8, 8), f"{XL_BLOCK}_attn2_to_k.lokr_w2": (80, 256)},
    "textual-inversion-sd1": {"emb_params": (8, 768)},
    "textual-inversion-sd2": {"<cat-toy>": (1024,)},
    "textual-inversion-sdxl": {"clip_l": (2, 768), "clip_g": (2, 1280)},
    "textual-inversion": {"clip_g": (2, 1280)},
    "hypernetwork-sd1": {
        f"{width}.{half}.linear.{layer}.weight": (width, width)
        for width in (320, 640, 768, 1280)
        for half in (0, 1)
        for layer in (0, 1)
    },
}


class TestAdapters:
    @pytest.mark.parametrize("name", ADAPTERS)
    def test_adapter_files_are_recognised_with_their_base_model(self, name: str) -> None:
        found = layouts.detect(infos(ADAPTERS[name].items()))
        assert found.layout.name == name
        assert found.notes

    @pytest.mark.parametrize(
        ("shapes", "name", "notes"),
        [
            ({"emp_params": (3, 1024), "emp_params_out": (3, 1024)}, "textual-inversion-sd2", ("vectors: 3",)),
            (
                {
                    f"clip_{letter}{end}": (2, width)
                    for letter, width in (("l", 768), ("g", 1280))
                    for end in ("", "_out")
                },
                "textual-inversion-sdxl",
                ("vectors: 2",),
            ),
            ({"<cat>": (768,), "<dog>": (2, 768)}, "textual-inversion-sd1", ("vectors: 3", "tokens: 2")),
            ({"0.<cat>": (1, 768), "1.<dog>": (2, 768)}, "textual-inversion-sd1", ("vectors: 3", "tokens: 2")),
            ({"one": (76, 768), "other": (76, 768)}, "unknown", ()),
            ({"one": (1, 768), "other": (1, 1024)}, "unknown", ()),
            ({"sks": (1024,)}, "textual-inversion-sd2", ("vectors: 1",)),
            ({"<v1.5 norm>": (768,)}, "textual-inversion-sd1", ("vectors: 1",)),
            ({"emb_params": (90, 768)}, "textual-inversion-sd1", ("vectors: 90",)),
            # parameters of other networks
            ({"sks": (76, 768)}, "unknown", ()),
            ({"mean": (1, 1024), "std": (1, 1024)}, "unknown", ()),
            ({"class_embedding": (768,)}, "unknown", ()),
            ({"text_projection": (75, 768)}, "unknown", ()),
            ({"resampler.latents": (16, 768)}, "unknown", ()),
            ({"encoder.pos": (1, 768)}, "unknown", ()),
        ],
    )
    def test_embeddings_of_other_programs(
        self, shapes: dict[str, tuple[int, ...]], name: str, notes: tuple[str, ...]
    ) -> None:
        found = layouts.detect(infos(shapes.items()))
        assert (found.layout.name, found.notes) == (name, notes)

    def test_a_lora_is_described_by_algorithm_rank_and_modules(self) -> None:
        shapes = ADAPTERS["lora-sd1"] | lora("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, rank=4)
        notes = layouts.detect(infos(shapes.items())).notes
        assert notes == ("algorithm: LoRA", "rank: 4 to 16", "modules: 4 (2 U-Net, 2 text encoder)")

    def test_a_refiner_s_lora_without_cross_attention_is_recognised_by_names_that_sdxl_lacks(self) -> None:
        modules = [
            f"unet.{block}.attentions.0.transformer_blocks.3.attn1.to_q" for block in ("mid_block", "up_blocks.2")
        ]
        for chosen, name in ((modules, "lora-sdxl-refiner"), (modules[:1], "lora-sdxl")):
            shapes = {f"{module}.lora_{part}.weight": (8, 8) for module in chosen for part in "AB"}
            assert layouts.detect(infos(shapes.items())).layout.name == name

    @pytest.mark.parametrize(
        "suffixes",
        [
            ("lora_A.weight", "lora_B.weight"),
            ("lora_A.default.weight", "lora_B.default.weight"),
            ("lora.down.weight", "lora.up.weight"),
            ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ],
    )
    def test_loras_in_the_names_of_diffusers_and_peft_are_recognised(self, suffixes: tuple[str, str]) -> None:
        module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        shapes = {f"{module}.{suffixes[0]}": (4, 768), f"{module}.{suffixes[1]}": (320, 4)}
        assert layouts.detect(infos(shapes.items())).layout.name == "lora-sd1"

    def test_an_adapter_and_a_checkpoint_are_in_conflict(self) -> None:
        adapter = layouts.detect(infos(ADAPTERS["lora-sd1"].items()))
        assert layouts.conflict(layouts.detect(whole("sd1")), adapter) is not None

    def test_components_of_adapters_follow_from_their_names(self) -> None:
        component = layouts.get("lora-sdxl").component
        assert component("lora_unet_input_blocks_4_1_proj_in.alpha") == "unet"
        assert component("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha") == "text_encoder"
        assert component("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha") == "text_encoder"
        assert component("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha") == "text_encoder_2"
        assert component("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight") == "text_encoder_2"


class TestConflicts:
    @pytest.mark.parametrize("name", FULL)
    def test_a_family_mixes_with_itself_and_with_an_unknown_one(self, name: str) -> None:
        own, unknown = layouts.detect(whole(name)), layouts.detect({})
        assert layouts.conflict(own, own) is None
        assert layouts.conflict(own, unknown) is None
        assert layouts.conflict(unknown, own) is None

    @pytest.mark.parametrize(("variant", "base"), VARIANTS)
    def test_variants_mix_with_their_base(self, variant: str, base: str) -> None:
        for a, b in ((variant, base), (base, variant)):
            assert layouts.conflict(layouts.detect(whole(a)), layouts.detect(whole(b))) is None

    @pytest.mark.parametrize("a", BASES)
    @pytest.mark.parametrize("b", FULL)
    def test_other_families_are_refused_with_the_tensor_and_both_shapes(self, a: str, b: str) -> None:
        found = layouts.detect(whole(a)), layouts.detect(whole(b))
        reason = layouts.conflict(*found)
        if found[0].layout.base == found[1].layout.base:
            assert reason is None
            return
        assert reason is not None
        assert "\n" not in reason
        for layout in (found[0].layout, found[1].layout):
            assert layout.title in reason
        key = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
        shapes = [size_text(whole(name)[UNET + key].shape) for name in (a, b)]
        assert f"{UNET}{key} is {shapes[0]} in A and {shapes[1]} in B" in reason

    def test_other_names_for_the_inputs_can_be_given(self) -> None:
        reason = layouts.conflict(layouts.detect(whole("sd1")), layouts.detect(whole("sd2")), ("A", "C"))
        assert reason is not None
        assert " in C" in reason

    def test_the_refusal_of_the_two_vaes_names_the_tensor_that_differs(self) -> None:
        reason = layouts.conflict(layouts.detect(whole("vae-kl-f8")), layouts.detect(whole("vae-kl-f4")))
        assert reason is not None
        assert "encoder.down.3" in reason

    def test_names_from_a_file_are_escaped_in_the_refusal(self) -> None:
        evil = layouts.detect(infos([("<\x1b[31m>", (4, 768))]))
        assert evil.layout.name == "textual-inversion-sd1"
        reason = layouts.conflict(evil, layouts.detect(whole("sd2")))
        assert reason is not None
        assert "\x1b" not in reason
