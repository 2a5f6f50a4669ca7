"""Files that hold the EMA shadow of a U-Net and not the U-Net."""

from __future__ import annotations

from .. import names
from ..base import REGISTRY, Layout, register
from ..detect import Match, Probe


def _sniff(layout: Layout, probe: Probe) -> Match | None:
    """The first convolution's shadow, and no weight that it shadows."""
    if probe.unet_prefix is not None:
        return None
    for wrapper in ("", "state_dict."):
        match = probe.find(names.EMA + "diffusion_modelinput_blocks00weight", prefixes=(wrapper,))
        if match:
            return Match(match.key, match.shape, _of(probe, wrapper))
    return None


def _of(probe: Probe, wrapper: str) -> tuple[str, ...]:
    """Which family's U-Net it shadows, by the shapes that show the family."""
    for family in REGISTRY:
        twins = {family.ema_twin(key): shape for key, shape in family.discriminators().items()}
        if twins and family.has_ema and all(probe.shape(f"{wrapper}{key}") == shape for key, shape in twins.items()):
            return (f"it shadows the U-Net of {family.title} ({family.name})",)
    return ()


EMA_ONLY = register(Layout("ema-only", "EMA weights without the model that they shadow", sniff=_sniff), first=True)
