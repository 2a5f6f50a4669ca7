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
    "low_scale_model": "buffers",
    "noise_augmentor": "buffers",
    "denoiser": "buffers",
    "diffusion_model": "unet",
    "quant_conv": "vae",
    "post_quant_conv": "vae",
    "encoder": "vae",
    "decoder": "vae",
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
    "noise_augmentor.",
)  # fmt: skip
_SCALED_FP8 = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant")
_NO_WEIGHTS = ("position_ids", *_SCALED_FP8)


def unwrap(key: str) -> str:
    """``key`` without what nesting adds in front: ``state_dict.`` (also twice), ``module.``, a second ``model.``."""
    if key.startswith(UNET):  # most of a checkpoint
        return key
    while key.startswith(("state_dict.", "module.")):
        key = key.partition(".")[2]
    if key.startswith("model."):
        inner = key[6:]
        if inner.startswith(_UNDER_MODEL) or inner in MARKERS or inner in SCHEDULE or inner in _TRAINER_BUFFERS:
            return inner
    return key


def component(key: str, embedder_0: str = "text_encoder") -> str:
    """Component of an unwrapped key; ``embedder_0`` is what ``conditioner.embedders.0.`` holds in the family."""
    if key.startswith(UNET):
        return "marker" if key in MARKERS else "unet"
    if key in MARKERS:
        return "marker"
    head, _, rest = key.partition(".")
    if head == "conditioner":
        if rest.startswith("embedders.0."):
            return embedder_0
        return "text_encoder_2" if rest.startswith("embedders.1.") else "other"
    if head in _UNET_HEADS or head in _DIFFUSERS_UNET_HEADS:
        return "unet"
    if head == "encoder" and rest.startswith("layers."):
        return "text_encoder"
    if head == "head" and rest.startswith("head."):
        return "depth"
    if head == "first_stage_model" and rest.startswith("loss."):
        return "other"  # LPIPS and discriminator of the VAE's trainer
    if head in SCHEDULE or head in _TRAINER_BUFFERS:
        return "buffers"
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
