"""Families that are recognised only to be named in a refusal: SD 3 and FLUX.

Their transformers share nothing with the U-Nets here; the identifying keys are those of ComfyUI's model detection.
"""

from __future__ import annotations

from ..base import Layout, register
from ..detect import Match, Probe


def _layout(name: str, title: str, key: str) -> Layout:
    def sniff(layout: Layout, probe: Probe) -> Match | None:
        return probe.match(key) if probe.unet(key) is not None else None

    return register(Layout(name, title, sniff=sniff, anchor=key))


SD3 = _layout("sd3", "Stable Diffusion 3", "joint_blocks.0.x_block.attn.qkv.weight")
FLUX = _layout("flux", "FLUX", "double_blocks.0.img_attn.norm.key_norm.scale")
