"""Kinds that are recognised by rules and named: what stands beside checkpoints, other networks, encoders alone."""

from __future__ import annotations

import pytest
from layout_tools import UNET, infos, whole
from sdsurgery import layouts
from sdsurgery.layouts.aliases import canonical

Shapes = dict[str, tuple[int, ...]]
W = (4, 4)

SD1_NET: Shapes = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 768),
}
HINT: Shapes = {"input_hint_block.0.weight": (16, 3, 3, 3), "zero_convs.0.0.weight": (320, 320, 1, 1)}
XL: Shapes = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    "label_emb.0.0.weight": (1280, 2816),
}


def depths(**blocks: int) -> Shapes:
    names = {f"{block.replace('_', '.')}": depth for block, depth in blocks.items()}
    return {
        f"input_blocks.{block[1:]}.1.transformer_blocks.{n}.norm1.weight": (640,)
        for block, depth in names.items()
        for n in range(depth)
    }


FLUX = {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}
BARE_OR_PREFIXED: dict[str, Shapes] = {
    "ssd-1b": XL | depths(b4=2, b7=4),
    "vega": XL | depths(b4=1, b7=2),
    "koala-700m": XL | depths(b3=2, b5=5),
    "koala-1b": XL | depths(b3=2, b5=6),
    "sdxl-distilled": XL | depths(b4=2, b7=3),
    "svd": {"input_blocks.0.0.weight": (320, 8, 3, 3), "input_blocks.1.0.time_mixer.mix_factor": (1,)},
    "kolors": {**XL, "label_emb.0.0.weight": (1280, 5632)},
    "cascade-c": {"clip_txt_mapper.weight": W, "clf.1.weight": W},
    "cascade-b": {"clip_mapper.weight": W, "clf.1.weight": W},
    "sd3": {"joint_blocks.0.x_block.attn.qkv.weight": W},
    "sd3.5-large": {"joint_blocks.0.x_block.attn.qkv.weight": W, "joint_blocks.0.x_block.attn.ln_q.weight": (64,)},
    "sd3.5-medium": {
        "joint_blocks.0.x_block.attn.qkv.weight": W,
        "joint_blocks.0.x_block.attn.ln_q.weight": (64,),
        "joint_blocks.0.x_block.attn2.qkv.weight": W,
    },
    "flux": FLUX,
    "chroma": {**FLUX, "distilled_guidance_layer.in_proj.weight": W},
    "hunyuan-video": {**FLUX, "txt_in.individual_token_refiner.blocks.0.norm1.weight": (4,)},
    "auraflow": {"double_layers.0.attn.w1q.weight": W},
    "lumina2": {"noise_refiner.0.attention.k_norm.weight": (4,)},
    "lumina": {"layers.0.attention.wq.weight": W, "cap_embedder.0.weight": (4,)},
    "hunyuan-dit": {"mlp_t5.0.weight": W},
    "pixart": {"t_block.1.weight": W},
    "wan": {"head.modulation": (1, 2, 4)},
    "qwen-image": {"transformer_blocks.0.img_mod.1.weight": W},
    "mochi": {"t5_yproj.weight": W},
    "controlnet-sd1": SD1_NET | HINT,
}
ALONE: dict[str, Shapes] = {
    "zero123": {**SD1_NET, "input_blocks.0.0.weight": (320, 8, 3, 3), "cc_projection.weight": (768, 772)},
    "controlnet-sd1": {f"control_model.{key}": shape for key, shape in (SD1_NET | HINT).items()},
    "controlnet-sdxl": {
        "conv_in.weight": (320, 4, 3, 3),
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    },
    "controlnet": {"controlnet_blocks.0.weight": W, "transformer_blocks.0.attn.to_q.weight": W},
    "t2i-adapter": {"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 192, 3, 3)},
    "ip-adapter": {"image_proj.proj.weight": W, "ip_adapter.1.to_k_ip.weight": W},
    "motion-module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
    "controllllite": {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": W},
    "upscaler-esrgan": {"model.0.weight": W, "model.1.sub.0.RDB1.conv1.0.weight": W},
    "upscaler-compact": {"body.0.weight": (64, 3, 3, 3), "body.1.weight": (64,), "body.2.weight": (64, 64, 3, 3)},
    "upscaler-swinir": {"conv_first.weight": W, "layers.0.residual_group.blocks.0.norm1.weight": (4,)},
    "t5": {"shared.weight": (8, 4), "encoder.block.0.layer.0.SelfAttention.k.weight": W},
    "umt5": {
        "encoder.block.0.layer.0.SelfAttention.k.weight": W,
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (32, 4),
    },
    "language-model": {"model.embed_tokens.weight": W, "model.layers.0.self_attn.q_proj.weight": W},
    "clip-vision": {"vision_model.encoder.layers.0.self_attn.q_proj.weight": W},
    "ema-only": {"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3), "model_ema.decay": ()},
}


@pytest.mark.parametrize("name", BARE_OR_PREFIXED)
@pytest.mark.parametrize("prefix", ["", UNET, "diffusion_model.", "_orig_mod." + UNET])
def test_networks_are_named_whatever_stands_in_front(name: str, prefix: str) -> None:
    found = layouts.detect(infos((prefix + key, shape) for key, shape in BARE_OR_PREFIXED[name].items()))
    assert found.layout.name == name


@pytest.mark.parametrize("name", ALONE)
def test_kinds_with_names_of_their_own_are_named(name: str) -> None:
    found = layouts.detect(infos(ALONE[name].items()))
    assert found.layout.name == name


@pytest.mark.parametrize("name", [*BARE_OR_PREFIXED, *ALONE])
def test_none_of_them_mixes_with_a_checkpoint_and_both_are_named(name: str) -> None:
    other = layouts.detect(infos((BARE_OR_PREFIXED.get(name) or ALONE[name]).items()))
    reason = layouts.conflict(layouts.detect(whole("sd1")), other)
    assert reason is not None
    assert "Stable Diffusion 1.x" in reason
    assert other.layout.title in reason


def test_a_cut_sdxl_is_refused_with_the_tensor_that_it_lacks() -> None:
    cut = layouts.detect(infos((UNET + key, shape) for key, shape in (XL | depths(b4=2, b7=4)).items()))
    for pair in ((cut, layouts.detect(whole("sdxl-base"))), (layouts.detect(whole("sdxl-base")), cut)):
        reason = layouts.conflict(*pair)
        assert reason is not None
        assert "middle_block.1.transformer_blocks.9" in reason
        assert "lacks it" in reason


def test_a_checkpoint_with_a_controlnet_inside_is_its_family() -> None:
    tensors = whole("sd1") | infos((f"control_model.{key}", shape) for key, shape in (SD1_NET | HINT).items())
    found = layouts.detect(tensors)
    assert found.layout.name == "sd1"
    assert any("ControlNet" in note for note in found.notes)
    assert found.layout.component("control_model.zero_convs.0.0.weight") == "controlnet"


def test_an_lcm_network_is_its_family_and_said_to_be_one() -> None:
    tensors = whole("sd1") | infos([(UNET + "time_embed.cond_proj.weight", (320, 256))])
    found = layouts.detect(tensors)
    assert found.layout.name == "sd1"
    assert any("LCM" in note for note in found.notes)


@pytest.mark.parametrize(
    ("family", "part", "name"),
    [
        ("sd1", "cond_stage_model.", "clip-l"),
        ("sd2", "cond_stage_model.", "openclip-h"),
        ("sdxl-base", "conditioner.embedders.1.", "openclip-g"),
    ],
)
def test_a_text_encoder_alone_is_named_with_and_without_its_prefix(family: str, part: str, name: str) -> None:
    own = {key: info for key, info in whole(family).items() if key.startswith(part)}
    for cut in ("", part, part + "model.", part + "transformer."):
        tensors = infos((key.removeprefix(cut), info.shape) for key, info in own.items())
        assert layouts.detect(tensors).layout.name == name, cut


def test_a_model_that_is_not_known_and_its_vae_are_not_called_a_vae() -> None:
    vae = {key: info for key, info in whole("sd1").items() if key.startswith("first_stage_model.")}
    network = infos((f"{UNET}blocks.{n}.attn.weight", (64, 64)) for n in range(400))
    assert layouts.detect(vae).layout.name == "vae-kl-f8"
    assert layouts.detect(vae | network).layout.name == "unknown"
    left = infos([("first_stage_model.loss.lin0.weight", (4,)), ("epoch", ())])
    assert layouts.detect(vae | left).layout.name == "vae-kl-f8"


def test_the_names_of_forge_and_comfyui_belong_to_the_same_components() -> None:
    component = layouts.get("sdxl-base").component
    assert component("text_encoders.clip_l.transformer.text_model.final_layer_norm.weight") == "text_encoder"
    assert component("text_encoders.clip_g.transformer.text_model.final_layer_norm.weight") == "text_encoder_2"
    assert component("text_encoders.t5xxl.transformer.shared.weight") == "text_encoder_3"
    assert component("cond_stage_model.clip_l.transformer.text_model.final_layer_norm.weight") == "text_encoder"
    assert component("vae.decoder.conv_in.weight") == "vae"


def test_a_decoder_of_another_make_is_not_the_vae_s() -> None:
    layout = layouts.get("sd1")
    for key in ("decoder.0.weight", "decoder.2.conv.0.weight", "encoder.blocks.0.weight"):
        assert layout.component(key) == "other"
        assert canonical(key, layout) == key
