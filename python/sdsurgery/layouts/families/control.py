"""What steers a U-Net from outside, in a file of its own: ControlNets, T2I and IP adapters, motion modules.

Sources: lllyasviel/ControlNet ``cldm/cldm.py`` (original names), huggingface/diffusers ``models/controlnets``,
TencentARC/T2I-Adapter ``ldm/modules/encoders/adapter.py``, tencent-ailab/IP-Adapter, guoyww/AnimateDiff,
kohya-ss/sd-scripts ``networks/control_net_lllite.py``. For which base a ControlNet is, the width of its text shows.
"""

from __future__ import annotations

from functools import partial

from ...structure import by_head, flat
from ..base import Layout, register
from ..detect import Match, Probe
from ..unet import CROSS_ATTENTION

PLACES = ("", "control_model.", "state_dict.control_model.")
_BASES = {
    768: ("sd1", "Stable Diffusion 1.x"),
    1024: ("sd2", "Stable Diffusion 2.x"),
    2048: ("sdxl", "Stable Diffusion XL"),
}
_TEXT = (
    *(f"input_blocks.{number}.1.{CROSS_ATTENTION}" for number in (1, 4)),
    *(f"down_blocks.{number}.attentions.0.{CROSS_ATTENTION}" for number in (0, 1)),
)
_SHOWN = (
    ("input_hint_block.0.weight",),
    ("controlnet_cond_embedding.conv_in.weight",),
    ("zero_convs.0.0.weight",),
    ("controlnet_down_blocks.0.weight",),
    ("controlnet_blocks.0.weight",),  # of SD 3 and FLUX
    ("lora_controlnet",),
)


def _controlnet(width: int | None, layout: Layout, probe: Probe) -> Match | None:
    """A hint block or zero convolutions, and no whole U-Net around them."""
    if probe.find("output_blocks.0.0.in_layers.0.weight", prefixes=(probe.unet_prefix or "",)):
        return None
    places = (*PLACES, probe.unet_prefix or "")
    match = next((found for keys in _SHOWN if (found := probe.find(*keys, prefixes=places))), None)
    if match is None or (width is not None and _width(probe) != width):
        return None
    return Match(match.key, match.shape, (f"names stand under '{place}'",) if (place := _place(match.key)) else ())


def _place(key: str) -> str:
    return next((place for place in PLACES[::-1] if place and key.startswith(place)), "")


def _width(probe: Probe) -> int | None:
    """Width of the text that its cross-attention reads."""
    for key in _TEXT:
        match = probe.find(key, prefixes=(*PLACES, probe.unet_prefix or ""))
        if match and len(match.shape) == 2:
            return match.shape[1]
    return None


def _starts(forms: tuple[tuple[str, ...], ...], layout: Layout, probe: Probe) -> Match | None:
    """A tensor with each of the beginnings of a form, the first of which is shown."""
    for form in forms:
        found = [next(probe.search(f"\n{start}"), None) for start in form]
        if found[0] is not None and None not in found:
            return Match(found[0], probe.shape(found[0]) or ())
    return None


def _t2i(layout: Layout, probe: Probe) -> Match | None:
    tails = ("body.0.block1.weight", "body.0.resnets.0.block1.weight", "body.0.block.0.conv1.weight")
    for tail in tails:
        for prefix in probe.prefixes(tail):
            if prefix in ("", "adapter.", "state_dict.", "module."):
                return probe.find(prefix + tail)
    return None


def _motion(layout: Layout, probe: Probe) -> Match | None:
    key = next(probe.search(".motion_modules."), None)
    return None if key is None or probe.unet_prefix is not None else Match(key, probe.shape(key) or ())


register(Layout("controlnet", "ControlNet", sniff=partial(_controlnet, None), arranged=flat), first=True)
for _width_of, (_name, _title) in _BASES.items():
    _sniff = partial(_controlnet, _width_of)
    register(Layout(f"controlnet-{_name}", f"ControlNet for {_title}", sniff=_sniff, arranged=flat), first=True)
register(Layout("t2i-adapter", "T2I adapter", sniff=_t2i), first=True)
_IP = (("image_proj.", "ip_adapter."), ("image_proj_model.", "adapter_modules."))
register(Layout("ip-adapter", "IP adapter", sniff=partial(_starts, _IP), arranged=by_head), first=True)
register(Layout("motion-module", "AnimateDiff motion module", sniff=_motion), first=True)
register(Layout("controllllite", "ControlNet-LLLite", sniff=partial(_starts, (("lllite_unet",),))), first=True)
