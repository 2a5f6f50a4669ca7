"""What follows from a tensor's name: wrappers around it, its component, its merge block. Works for any checkpoint.

The roots are those of the original code (CompVis/stable-diffusion, Stability-AI/generative-models); the bare and the
diffusers forms are what files with a single component carry.
"""

from __future__ import annotations

from functools import lru_cache

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."

EMA_COUNTERS = ("model_ema.decay", "model_ema.num_updates")

SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""Noise-schedule buffers in the order in which latent-diffusion registers them."""

MARKERS = frozenset(
    ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min", UNET + "scaled_fp8")
)
"""Tensors that say how a model is to be sampled or loaded."""

# Buffers of trainers and samplers that are pickled beside the schedule now and then.
_TRAINER_BUFFERS = frozenset(
    ("logvar", "scale_factor", "ddim_sigmas", "ddim_alphas", "ddim_alphas_prev", "ddim_sqrt_one_minus_alphas")
)
_TRAINING = frozenset(
    (
        "optimizer",
        "optimizers",
        "optimizer_states",
        "lr_schedulers",
        "lr_scheduler",
        "callbacks",
        "loops",
        "scaler",
        "amp_scaling_state",
        "native_amp_scaling_state",
        "hyper_parameters",
        "epoch",
        "global_step",
        "pytorch-lightning_version",
    )
)
_HEADS = {
    "first_stage_model": "vae",
    "cond_stage_model": "text_encoder",
    "model_ema": "ema",
    "depth_model": "depth",
    "embedder": "image_encoder",
    "control_model": "controlnet",
    "low_scale_model": "buffers",
    "noise_augmentor": "buffers",
    "denoiser": "buffers",
    "diffusion_model": "unet",
    "quant_conv": "vae",
    "post_quant_conv": "vae",
    "vae": "vae",  # Forge and ComfyUI
    "text_model": "text_encoder",
    "embeddings": "text_encoder",
    "final_layer_norm": "text_encoder",
    "text_projection": "text_encoder",
    "dpt": "depth",
    "neck": "depth",
    "unet": "unet",  # adapters saved by diffusers and peft
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
}
# A bare VAE's halves, by what comes next in them, in original and diffusers names. Other models have an "encoder" too.
_VAE_HALVES = ("encoder", "decoder")
_VAE_INNER = frozenset(
    (
        "conv_in", "down", "mid", "up", "norm_out", "conv_out", "down_blocks", "mid_block", "up_blocks",
        "conv_norm_out",
    )
)  # fmt: skip
# Forge, ComfyUI and their like put the text encoders side by side under one of these, each under its own name.
_TEXT_ENCODERS = ("text_encoders", "cond_stage_model", "conditioner")
SIDE_BY_SIDE = {
    "clip_l": "text_encoder",
    "clip_h": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5xxl": "text_encoder_3",
    "t5base": "text_encoder_3",
    "pile_t5xl": "text_encoder",
    "umt5xxl": "text_encoder",
    "gemma2_2b": "text_encoder",
    "qwen25_7b": "text_encoder",
    "llama": "text_encoder_2",
}
"""The name of a text encoder among others in one file, and its component."""
# Leftovers of a trainer that a model never reads: textual inversion's copy of the text encoder, the VAE's losses.
_TRAINER_HEADS = frozenset(("embedding_manager", "lpips", "discriminator"))
# Adapters in kohya's names, where a whole module path is one segment.
_ADAPTER_STEMS = (
    ("lora_unet_", "unet"),
    ("oft_unet_", "unet"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te", "text_encoder"),
)
_UNET_HEADS = frozenset(("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out"))
_DIFFUSERS_UNET_HEADS = frozenset(
    (
        "time_embedding",
        "add_embedding",
        "class_embedding",
        "conv_in",
        "conv_norm_out",
        "conv_out",
        "down_blocks",
        "mid_block",
        "up_blocks",
    )
)
_UNDER_MODEL = (
    UNET, VAE, EMA, "cond_stage_model.", "conditioner.", "denoiser.", "depth_model.", "embedder.", "low_scale_model.",
    "noise_augmentor.", "control_model.", "text_encoders.", "vae.",
)  # fmt: skip
# What wrappers of training code put in front of every name: DeepSpeed, torch.nn.DataParallel, torch.compile, …
_WRAPPERS = ("state_dict.", "module.", "_forward_module.", "_orig_mod.")
# These are names of their own too, so what follows must be known.
_MODELS = ("model.", "ema_model.", "net.", "student.")
_COMPILED = "_orig_mod."
_AT_ROOT = (*_UNDER_MODEL, *_WRAPPERS)
_SCALED_FP8 = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant")
_NO_WEIGHTS = ("position_ids", *_SCALED_FP8)


def unwrap(key: str) -> str:
    """``key`` without what nesting and wrappers add: ``state_dict.`` (also twice), ``module.``, ``_forward_module.``,
    ``_orig_mod.`` (also inside), a second ``model.``, ``ema_model.`` and ``net.`` around names that are known."""
    if _COMPILED in key:
        key = key.replace(_COMPILED, "")
    while not key.startswith(UNET):  # as most of a checkpoint does
        head = key[: key.find(".") + 1]
        inner = key[len(head) :]
        if head in _WRAPPERS or (head in _MODELS and _is_root(inner, head)):
            key = inner
        else:
            break
    return key


def _is_root(inner: str, wrapper: str) -> bool:
    """Whether a name can stand at the root of a checkpoint, or is wrapped once more."""
    if inner.startswith(_AT_ROOT) or inner in MARKERS or inner in SCHEDULE or inner in _TRAINER_BUFFERS:
        return True
    return wrapper != "model." and (in_unet(inner) or inner.startswith(_MODELS))


def component(key: str, embedder_0: str = "text_encoder") -> str:
    """Component of an unwrapped key; ``embedder_0`` is what ``conditioner.embedders.0.`` holds in the family."""
    if key.startswith(UNET):
        return "marker" if key in MARKERS else "unet"
    if key in MARKERS:
        return "marker"
    head, _, rest = key.partition(".")
    if head in _TEXT_ENCODERS:
        encoder = SIDE_BY_SIDE.get(rest.partition(".")[0])
        if encoder is not None or head == "text_encoders":
            return encoder or "text_encoder"
    if head == "conditioner":
        if rest.startswith("embedders.0."):
            return embedder_0
        return "text_encoder_2" if rest.startswith("embedders.1.") else "other"
    if head in _UNET_HEADS or head in _DIFFUSERS_UNET_HEADS:
        return "unet"
    if head in _VAE_HALVES:
        inner = rest.partition(".")[0]
        if inner in _VAE_INNER:
            return "vae"
        return "text_encoder" if head == "encoder" and inner in ("layers", "block") else "other"  # CLIP's, T5's
    if head == "head" and rest.startswith("head."):
        return "depth"
    if head == "first_stage_model" and rest.startswith("loss."):
        return "training"
    if head in SCHEDULE or head in _TRAINER_BUFFERS:
        return "buffers"
    if head in _TRAINER_HEADS:
        return "training"
    if head in _TRAINING:
        return "optimizer"
    found = _HEADS.get(head)
    return found or next((owner for stem, owner in _ADAPTER_STEMS if head.startswith(stem)), "other")


def in_unet(key: str) -> bool:
    """Whether a name below the network's prefix is one of a U-Net, in LDM or diffusers names."""
    head = key.partition(".")[0]
    return head in _UNET_HEADS or head in _DIFFUSERS_UNET_HEADS


def is_position_ids(key: str) -> bool:
    """Whether ``key`` is a text encoder's constant 0…76, in its place or misplaced."""
    return key.endswith("position_ids")


def is_scale(key: str) -> bool:
    """Whether ``key`` is a scale that belongs to a quantised weight: meaningless without that weight's own bytes."""
    return key.endswith(_SCALED_FP8)


def is_weight(key: str) -> bool:
    """Whether ``key`` is neither: what may be averaged, judging by the end of its name."""
    return not key.endswith(_NO_WEIGHTS)


def unet_block(key: str, last_out: str) -> str | None:
    """Merge block of a U-Net key, with or without its prefix, in LDM or diffusers names.

    ``time_embed`` and ``label_emb`` count as IN00, ``out`` as ``last_out``. A diffusers stage has two residual layers
    and one resampler in all families, so stage ``b`` starts at IN(3b+1) and OUT(3b).
    """
    rest = key[len(UNET) :] if key.startswith(UNET) else key.removeprefix("diffusion_model.")
    head, _, below = rest.partition(".")
    if head in ("input_blocks", "output_blocks"):
        return _numbered("IN" if head == "input_blocks" else "OUT", below.partition(".")[0])
    if head in ("middle_block", "mid_block"):
        return "M00"
    if head in ("out", "conv_norm_out", "conv_out"):
        return last_out
    if head in ("time_embed", "label_emb", "time_embedding", "add_embedding", "class_embedding", "conv_in"):
        return "IN00"
    if head in ("down_blocks", "up_blocks"):
        return _diffusers_block(rest.split(".", 4))
    return None


@lru_cache(maxsize=256)
def _numbered(stem: str, number: str) -> str | None:
    return f"{stem}{int(number):02d}" if number.isdecimal() and len(number) < 3 else None


def _diffusers_block(parts: list[str]) -> str | None:
    if len(parts) < 4 or not (parts[1].isdecimal() and parts[3].isdecimal()):
        return None
    down = parts[0] == "down_blocks"
    layer = 2 if parts[2] in ("downsamplers", "upsamplers") else int(parts[3])
    number = 3 * int(parts[1]) + layer + (1 if down else 0)
    return _numbered("IN" if down else "OUT", str(number))
