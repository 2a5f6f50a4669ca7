"""Files that hold a VAE only, in the original names, with or without ``first_stage_model.``.

The VAEs of SD 1, SD 2 and SDXL have the same names and shapes: they cannot be distinguished by a header.
"""

from __future__ import annotations

from .. import names, parts
from ..base import Diffusers, Layout, register
from ..detect import Match, Probe

_ANCHOR = "decoder.conv_in.weight"
_LATENT = (512, 4, 3, 3)
_FOURTH_LEVEL = ("encoder.down.3.block.0.norm1.weight", "decoder.up.3.block.0.norm1.weight")


def _sniff(layout: Layout, probe: Probe) -> Match | None:
    """A 4-channel decoder and no U-Net; a fourth resolution level makes it f8."""
    if probe.unet_prefix is not None:
        return None
    for wrapper in ("", "state_dict."):
        for prefix in (wrapper, wrapper + names.VAE):
            if probe.shape(prefix + _ANCHOR) == _LATENT and probe.shape(prefix + "decoder.mid.block_1.norm1.weight"):
                return _level(layout, probe, prefix)
    return None


def _level(layout: Layout, probe: Probe, prefix: str) -> Match | None:
    deep = next((prefix + key for key in _FOURTH_LEVEL if probe.shape(prefix + key)), None)
    if (deep is not None) != (layout is F8):
        return None
    key = deep or prefix + _ANCHOR
    shape = probe.shape(key)
    assert shape is not None
    return Match(key, shape, (f"names stand under '{prefix}'",) if prefix else ())


def _layout(name: str, title: str, levels: int) -> Layout:
    part = parts.autoencoder(prefix="", levels=levels)
    return register(Layout(name, title, None, (part,), vae_block=None, sniff=_sniff, diffusers=Diffusers()))


F8 = _layout("vae-kl-f8", "VAE f8 (Stable Diffusion 1, 2, XL)", levels=4)
F4 = _layout("vae-kl-f4", "VAE f4 (x4 upscaler)", levels=3)
