"""Networks that enlarge pictures, from ESRGAN on: no diffusion, and of no use in a merge with a checkpoint.

Source: the architectures of chaiNNer-org/spandrel (ESRGAN in old and new names, Compact, SwinIR and its like).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..base import Layout, register
from ..detect import Match, Probe

_PLACES = ("", "params_ema.", "params.", "module.", "state_dict.")


def _sniff(forms: Sequence[tuple[str, ...]], layout: Layout, probe: Probe) -> Match | None:
    return next((match for form in forms if (match := probe.find(*form, prefixes=_PLACES))), None)


_ESRGAN = (
    ("model.1.sub.0.RDB1.conv1.0.weight", "model.0.weight"),
    ("RRDB_trunk.0.RDB1.conv1.weight", "conv_first.weight"),
    ("body.0.rdb1.conv1.weight", "conv_first.weight"),
)
_COMPACT = (("body.1.weight", "body.0.weight", "body.2.weight"),)
_SWIN = (
    ("layers.0.residual_group.blocks.0.norm1.weight", "conv_first.weight"),
    ("layers.0.blocks.0.norm1.weight", "conv_first.weight"),
)

register(Layout("upscaler-esrgan", "upscaler (ESRGAN)", sniff=partial(_sniff, _ESRGAN)))
register(Layout("upscaler-compact", "upscaler (Real-ESRGAN Compact)", sniff=partial(_sniff, _COMPACT)))
register(Layout("upscaler-swinir", "upscaler (SwinIR, HAT, DAT, …)", sniff=partial(_sniff, _SWIN)))
