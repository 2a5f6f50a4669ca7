"""Original names to diffusers names, one module after the other, and the order in which diffusers lists them.

Every function takes a name below its module's prefix. Sources: see ``diffusers.py``.
"""

from __future__ import annotations

_STAGE = 3  # two residual layers and one resampler per stage, in all families

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "label_emb": "class_embedding",  # the upscaler's table
}


def unet_key(key: str, class_label: bool = False) -> str:
    """U-Net. ``label_emb.0`` is ``add_embedding`` in SDXL and, with ``class_label``, ``class_embedding`` in unCLIP."""
    module, _, leaf = key.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{leaf}"
    head, *path = module.split(".")
    if head == "label_emb":
        stem = "class_embedding" if class_label else "add_embedding"
        return f"{stem}.linear_{1 if path[1] == '0' else 2}.{leaf}"
    if head == "middle_block":
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[path[0]]
        return f"mid_block.{place}.{_inside(path[1:], leaf)}"
    if head == "input_blocks":
        stage, layer = divmod(int(path[0]) - 1, _STAGE)
        return f"down_blocks.{stage}.{_place(path[1:], layer, 'downsamplers')}.{_inside(path[2:], leaf)}"
    stage, layer = divmod(int(path[0]), _STAGE)
    return f"up_blocks.{stage}.{_place(path[1:], layer, 'upsamplers')}.{_inside(path[2:], leaf)}"


def _place(path: list[str], layer: int, resampler: str) -> str:
    """Residual layer, attention or resampler: identified by the child's name; its index differs between families."""
    if path[1:2] in (["op"], ["conv"]):
        return f"{resampler}.0"
    return f"{'resnets' if path[0] == '0' else 'attentions'}.{layer}"


def _inside(path: list[str], leaf: str) -> str:
    module = ".".join(path)
    renamed = "conv" if module == "op" else _RESNET.get(module, module)
    return f"{renamed}.{leaf}"


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_key(key: str, levels: int) -> tuple[str, bool]:
    """VAE with ``levels`` resolution levels; also whether the tensor belongs to a projection of the attention.

    The decoder's stages are numbered from the other end in diffusers.
    """
    module, _, leaf = key.rpartition(".")
    half, *path = module.split(".")
    if not path:
        return key, False  # quant_conv, post_quant_conv
    if path[0] == "mid":
        return _vae_middle(half, path, leaf)
    if path[0] in ("down", "up"):
        number = int(path[1])
        stage = f"down_blocks.{number}" if path[0] == "down" else f"up_blocks.{levels - 1 - number}"
        if path[2] == "block":
            inner = path[4].replace("nin_shortcut", "conv_shortcut")
            return f"{half}.{stage}.resnets.{path[3]}.{inner}.{leaf}", False
        return f"{half}.{stage}.{path[2]}rs.0.conv.{leaf}", False  # downsample(rs), upsample(rs)
    return f"{half}.{path[0].replace('norm_out', 'conv_norm_out')}.{leaf}", False


def _vae_middle(half: str, path: list[str], leaf: str) -> tuple[str, bool]:
    if path[1] == "attn_1":
        return f"{half}.mid_block.attentions.0.{_VAE_ATTENTION[path[2]]}.{leaf}", path[2] != "norm"
    number = int(path[1].removeprefix("block_")) - 1
    return f"{half}.mid_block.resnets.{number}.{path[2]}.{leaf}", False


_OPENCLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_DROP: list[tuple[str | None, str]] = [(None, "drop")]
_SD2_LAYERS = 24


def openclip_keys(key: str, penultimate: bool) -> list[tuple[str | None, str]]:
    """OpenCLIP text tower to (key, transform) pairs; ``penultimate``: the last layer and the projection are unused."""
    if key == "positional_embedding":
        return [("text_model.embeddings.position_embedding.weight", "none")]
    if key == "logit_scale" or (key == "text_projection" and penultimate):
        return _DROP
    if key == "text_projection":
        return [("text_projection.weight", "transpose")]
    module, _, leaf = key.rpartition(".")
    if module in ("token_embedding", "ln_final"):
        stem = "embeddings.token_embedding" if module == "token_embedding" else "final_layer_norm"
        return [(f"text_model.{stem}.{leaf}", "none")]
    _, _, number, inner = module.split(".", 3)
    if penultimate and int(number) == _SD2_LAYERS - 1:
        return _DROP
    layer = f"text_model.encoder.layers.{number}"
    if inner == "attn":
        kind = leaf.removeprefix("in_proj_")
        return [(f"{layer}.self_attn.{name}_proj.{kind}", f"split_qkv:{i}") for i, name in enumerate("qkv")]
    return [(f"{layer}.{_OPENCLIP[inner]}.{leaf}", "none")]


_DPT_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DPT = {
    "pretrained.model.cls_token": "dpt.embeddings.cls_token",
    "pretrained.model.pos_embed": "dpt.embeddings.position_embeddings",
    "pretrained.model.patch_embed.proj": "dpt.embeddings.projection",
    "pretrained.model.patch_embed.backbone.stem.conv": "dpt.embeddings.backbone.bit.embedder.convolution",
    "pretrained.model.patch_embed.backbone.stem.norm": "dpt.embeddings.backbone.bit.embedder.norm",
    "pretrained.model.norm": "dpt.layernorm",
    "pretrained.act_postprocess4.4": "neck.reassemble_stage.layers.3.resize",
}
_STAGES = "pretrained.model.patch_embed.backbone.stages."


def depth_key(key: str) -> list[tuple[str | None, str]]:
    """MiDaS to transformers' DPT, as (key, transform) pairs."""
    if key in _DPT:
        return [(_DPT[key], "none")]
    module, _, leaf = key.rpartition(".")
    if module == "pretrained.model.head":
        return _DROP
    if module.startswith("pretrained.model.blocks."):
        return _depth_block(module, leaf)
    return [(f"{_depth_module(module)}.{leaf}", "none")]


def _depth_block(module: str, leaf: str) -> list[tuple[str | None, str]]:
    number, _, inner = module.removeprefix("pretrained.model.blocks.").partition(".")
    layer = f"dpt.encoder.layer.{number}"
    if inner == "attn.qkv":
        thirds = enumerate(("query", "key", "value"))
        return [(f"{layer}.attention.attention.{name}.{leaf}", f"split_qkv:{i}") for i, name in thirds]
    return [(f"{layer}.{_DPT_BLOCK[inner]}.{leaf}", "none")]


def _depth_module(module: str) -> str:
    if module in _DPT:
        return _DPT[module]
    if module.startswith(_STAGES):
        inner = module[len(_STAGES) :].replace(".blocks.", ".layers.")
        return f"dpt.embeddings.backbone.bit.encoder.stages.{inner}"
    if module.startswith("pretrained.act_postprocess"):
        stage = int(module[len("pretrained.act_postprocess")]) - 1
        if module.endswith(".project.0"):
            return f"neck.reassemble_stage.readout_projects.{stage}.0"
        return f"neck.reassemble_stage.layers.{stage}.projection"
    head, _, inner = module.removeprefix("scratch.").partition(".")
    if head == "output_conv":
        return f"head.head.{inner}"
    if head.endswith("_rn"):
        return f"neck.convs.{int(head[len('layer')]) - 1}"
    fusion = f"neck.fusion_stage.layers.{4 - int(head.removeprefix('refinenet'))}"  # from coarse to fine
    if inner == "out_conv":
        return f"{fusion}.projection"
    return f"{fusion}.{inner.replace('resConfUnit', 'residual_layer').replace('.conv', '.convolution')}"


# The order in which diffusers and transformers register submodules; names of one level, each after its elder siblings.
_ORDER = (
    "text_model text_projection embeddings encoder decoder final_layer_norm quant_conv post_quant_conv "
    "conv_in time_embedding class_embedding add_embedding down_blocks up_blocks mid_block conv_norm_out conv_out "
    "attentions resnets downsamplers upsamplers group_norm norm proj_in transformer_blocks proj_out "
    "norm1 conv1 time_emb_proj attn1 norm2 conv2 conv_shortcut attn2 norm3 ff to_q to_k to_v to_out "
    "position_ids token_embedding position_embedding self_attn k_proj v_proj q_proj out_proj layer_norm1 mlp fc1 fc2 "
    "layer_norm2 linear_1 linear_2 weight bias"
)
_DEPTH_ORDER = (
    "dpt neck head cls_token position_embeddings embeddings embedder encoder layernorm backbone projection stages "
    "downsample convolution conv conv1 norm norm1 conv2 norm2 conv3 norm3 attention intermediate output query key "
    "value layernorm_before layernorm_after reassemble_stage convs fusion_stage layers readout_projects resize "
    "convolution1 convolution2 residual_layer1 residual_layer2 weight bias"
)
_RANKS = {order: {name: rank for rank, name in enumerate(order.split())} for order in (_ORDER, _DEPTH_ORDER)}


def module_order(component: str, key: str) -> tuple[int, ...]:
    """Sort key that puts the tensors of a component into module order."""
    ranks = _RANKS[_DEPTH_ORDER if component == "depth_estimator" else _ORDER]
    return tuple(int(part) if part.isdecimal() else ranks.get(part, 0) for part in key.split("."))
