"""What users call the components, in the words of other programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import UsageError, printable
from ..suggest import did_you_mean

_ALSO = {
    "unet": "u_net diffusion_model",
    "vae": "first_stage_model autoencoder",
    "text_encoder": "clip clip_l te te1 text_encoder_1 text_encoder1 textencoder cond_stage_model",
    "text_encoder_2": "clip_g te2 text_encoder2 openclip",
    "text_encoder_3": "t5 t5xxl te3 text_encoder3",
    "transformer": "dit mmdit",
    "image_encoder": "clip_vision",
    "controlnet": "controlnets control_net control_model",
    "ema": "model_ema",
    "depth": "depth_model depth_estimator",
}
_WORDS = {also: word for word, others in _ALSO.items() for also in others.split()}


def component_word(given: str, known: Sequence[str], refusal: str, advice: Mapping[str, str] = {}) -> str:
    """The component of ``known`` that a word means. UsageError, which ``refusal`` begins, for another word; ``advice``
    of some words is its end."""
    plain = re.sub(r"[-\s]+", "_", given.strip().lower())
    word = plain if plain in known else _WORDS.get(plain, plain)
    if word in known:
        return word
    hint = did_you_mean(plain, known) or f"; known: {', '.join(known)}"
    raise UsageError(f"{refusal} '{printable(given)}'{hint}{advice.get(word, '')}", code="bad_value")
