"""Files that hold a VAE only, in the original names, with or without ``first_stage_model.``.

The VAEs of SD 1, SD 2 and SDXL have the same names and shapes: they cannot be distinguished by a header.
"""

from __future__ import annotations

from .. import parts
from ..base import Diffusers, Layout, register
from ..detect import Match, Probe

_ANCHOR = "decoder.conv_in.weight"
_LATENT = (512, 4, 3, 3)
_FOURTH_LEVEL = ("encoder.down.3.block.0.norm1.weight", "decoder.up.3.block.0.norm1.weight")


def _sniff(layout: Layout, probe: Probe) -> Match | None:
    """A 4-channel decoder and nothing of another component; a fourth resolution level makes it f8."""
    if probe.unet_prefix is not None:
        return None
    for prefix in probe.prefixes(_ANCHOR):
        fits = probe.shape(prefix + _ANCHOR) == _LATENT and probe.shape(prefix + "decoder.mid.block_1.norm1.weight")
        if fits and _is_alone(probe, prefix):
            return _level(layout, probe, prefix)
    return None


def _is_alone(probe: Probe, prefix: str) -> bool:
    """Whether the rest of the file is what a VAE's trainer leaves, or less than a tenth of it unknown."""
    found = [_BARE.component(key.removeprefix(prefix)) for key in probe.tensors]
    unknown = found.count("other")
    return 10 * unknown < len(found) and set(found) <= {
        "vae", "other", "training", "optimizer", "buffers", "ema", "marker",
    }  # fmt: skip


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


_BARE = Layout("bare", "names without a prefix")

F8 = _layout("vae-kl-f8", "VAE f8 (Stable Diffusion 1, 2, XL)", levels=4)
F4 = _layout("vae-kl-f4", "VAE f4 (x4 upscaler)", levels=3)
