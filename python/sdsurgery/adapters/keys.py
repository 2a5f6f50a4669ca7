"""An adapter's key is a module's name and a suffix; the suffix says which part of which kind of adapter it is.

The suffixes are those of kohya-ss/sd-scripts, KohakuBlueleaf/LyCORIS, diffusers, peft and ComfyUI. One part may have
several: ``lora_down.weight``, ``lora_A.weight`` and ``lora.down.weight`` are all ``down``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DOWN, UP, MID, ALPHA, MAGNITUDE = "down", "up", "mid", "alpha", "magnitude"
MAGNITUDE_OUT = "magnitude_out"  # peft's, which is always per output
SET_BIAS = "set_bias"
PLAIN = "weight"  # (IA)³'s vector: a suffix that any weight has

_SUFFIXES: dict[str, tuple[str, ...]] = {
    DOWN: (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight"),
    UP: (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight"),
    MID: (".lora_mid.weight",),
    "up_bias": (".lora_B.bias", ".lora_up.bias"),
    ALPHA: (".alpha",),
    MAGNITUDE: (".dora_scale",),
    MAGNITUDE_OUT: (".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
    **{name: (f".{name}",) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{name: (f".{name}",) for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    "lokr_t2": (".lokr_t2",),
    **{name: (f".{name}.weight",) for name in ("a1", "a2", "b1", "b2", "bm")},
    **{name: (f".{name}",) for name in ("oft_blocks", "oft_diag", "rescale")},
    **{name: (f".{name}",) for name in ("diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight")},
    SET_BIAS: (".set_bias",),
    "on_input": (".on_input",),
    **{name: (f".{name}",) for name in ("bias_indices", "bias_values", "bias_size", "bias", "scale")},
    PLAIN: (".weight",),
}
"""Part -> the suffixes that it has in the various dialects."""

_PARTS = {suffix: part for part, suffixes in _SUFFIXES.items() for suffix in suffixes}
_TAILS = {suffix[at:] for suffix in _PARTS for at in range(len(suffix)) if suffix[at] == "."}
_VAGUE = frozenset((ALPHA, PLAIN, "bias", "scale", "rescale"))
"""Parts whose suffix other files have too; they make no module an adapter's on their own."""

# What trainers put into names and every reader takes out again: peft's adapter name, torch.compile's wrapper.
_NOISE = re.compile(r"\b_orig_mod\.|\.default(?=(?:\.weight|\.bias)?$)")
# What peft trains besides its factors (``bias=``, ``modules_to_save=``) stands in whole under the layer's own name.
_PEFT = re.compile(r"(?:(?:unet|text_encoder|text_encoder_2)\.)?base_model\.model\.")
_TRAINED = {PLAIN: "set_weight", "bias": SET_BIAS}
_WRAPPED = ".base_layer"
# diffusers' attention processors: the layer's name stands in the suffix.
_PROCESSOR = re.compile(r"(.*?)\.(?:processor\.)?to_(q|k|v|out)_lora\.(down|up)\.weight")
_IN_UNET = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_IN_ENCODER = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}

# Parts of kinds that are not read, of peft 0.21: two have no scale or axis in the file, the others have other formulas.
_UNREAD = (
    ("ia3_l", "peft's (IA)³"), ("oft_R", "peft's OFT"), ("boft_R", "peft's BOFT"), ("lora_E", "AdaLoRA"),
    ("vera_lambda_b", "VeRA"), ("hra_u", "HRA"), ("fourierft_spectrum", "FourierFT"),
)  # fmt: skip

BUNDLED = "bundle_emb."
"""Beginning of the keys of embeddings that an adapter carries (LyCORIS ``pack_bundle``, OneTrainer)."""


class Key(NamedTuple):
    """A module's name, as the file spells it, and the part of it."""

    module: str
    part: str

    @property
    def is_telling(self) -> bool:
        """Whether only an adapter has a key like this."""
        return self.part not in _VAGUE


def split(key: str) -> Key | None:
    """The key's module and part; None for a key that is no adapter's."""
    if "." not in key or key.startswith(BUNDLED):
        return None
    if "_orig_mod." in key or ".default" in key:
        key = _NOISE.sub("", key)
    if "_lora." in key and (found := _PROCESSOR.fullmatch(key)):
        inside = _IN_ENCODER if found[1].endswith("self_attn") else _IN_UNET
        return Key(f"{found[1]}.{inside[found[2]]}", found[3])
    longest, end = -1, len(key)
    while (at := key.rfind(".", 0, end)) >= 0 and key[at:] in _TAILS:
        longest, end = (at if key[at:] in _PARTS else longest), at
    if longest < 0:
        return None
    module, part = key[:longest], _PARTS[key[longest:]]
    if part in _TRAINED and _PEFT.match(module) and unread(key) is None:
        return Key(module.removesuffix(_WRAPPED), _TRAINED[part])
    return Key(module, part)


def suffix(part: str) -> str:
    """The part's suffix in kohya's and LyCORIS' names, with its dot."""
    return _SUFFIXES[part][0]


def unread(key: str) -> str | None:
    """The kind of adapter that the key is of, where it is one that is not read."""
    parts = key.split(".")
    return next((title for part, title in _UNREAD if part in parts), None)


def is_bundled(key: str) -> bool:
    """Whether the key is one of an embedding that the adapter carries."""
    return key.startswith(BUNDLED)
