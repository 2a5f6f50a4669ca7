"""Models built around a U-Net of Stable Diffusion that are something else: video, views of an object, other texts.

Each is shown by what it has beside that U-Net, so they are asked before the families that they come from. Sources:
``configs/inference/svd.yaml`` of Stability-AI/generative-models, cvlab-columbia/zero123
``ldm/models/diffusion/ddpm.py``, Kwai-Kolors/Kolors,
Stability-AI/StableCascade ``modules/stage_{b,c}.py``; ComfyUI ``comfy/model_detection.py``.
"""

from __future__ import annotations

from ..base import Layout, register
from ..detect import Match, Probe
from ..unet import AnyUNet

_TIME = (".time_mixer.mix_factor", ".time_stack.", ".temporal_transformer_blocks.")
_KOLORS = 5632
"""Width of Kolors' label: the pooled text of its language model (4096) and six sizes of 256."""


def _video(layout: Layout, probe: Probe) -> Match | None:
    """Layers over time beside those over the picture."""
    if probe.unet_prefix is None and "conv_in.weight" not in probe.tensors:
        return None
    key = next((key for part in _TIME for key in probe.search(part)), None)
    return None if key is None else Match(key, probe.shape(key) or ())


def _zero123(layout: Layout, probe: Probe) -> Match | None:
    """The projection that mixes a camera's position into the picture's embedding."""
    return probe.find("cc_projection.weight", prefixes=("", "state_dict."))


def _kolors(layout: Layout, probe: Probe) -> Match | None:
    for key in ("label_emb.0.0.weight", "add_embedding.linear_1.weight"):
        match = probe.find(key, prefixes=(probe.unet_prefix or "", ""))
        if match and len(match.shape) == 2 and match.shape[1] == _KOLORS:
            return match
    return None


def _cascade(letter: str, telling: str) -> Layout:
    def sniff(layout: Layout, probe: Probe) -> Match | None:
        prefix = probe.unet_prefix or ""
        return probe.find(telling, "clf.1.weight", prefixes=(prefix,))

    return register(
        Layout(f"cascade-{letter}", f"Stable Cascade, stage {letter.upper()}", sniff=sniff, anchor=telling), first=True
    )


SVD = register(Layout("svd", "Stable Video Diffusion", network=AnyUNet(), sniff=_video), first=True)
ZERO123 = register(Layout("zero123", "Zero123", network=AnyUNet(), sniff=_zero123), first=True)
KOLORS = register(Layout("kolors", "Kolors", network=AnyUNet(), sniff=_kolors), first=True)
CASCADE_C = _cascade("c", "clip_txt_mapper.weight")
CASCADE_B = _cascade("b", "clip_mapper.weight")
