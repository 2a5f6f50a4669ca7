"""Filters: what one model learned beyond another, smoothed over neighbouring elements."""

from __future__ import annotations

from typing import Any

from ..functions import whole
from .differences import LEARNED
from .registry import method


@method("smooth-add", inputs="A B C", base="C", alpha=LEARNED)
def smooth_add(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + α·G(M(B − C)): M the median of 3 × 3 × …, G a Gaussian of deviation 1 with nine taps, both along all axes.

    "smoothAdd" of supermerger, in scipy's definitions: edges are reflected, and after each axis the Gaussian is rounded
    to float32. Axes are those of the tensor, so the windows of a convolution reach into neighbouring channels.
    """
    from ..definitions.filters import smooth

    return a + alpha * whole(smooth, b - c)


@method("smooth-add.gauss", inputs="A B C", base="C", alpha=LEARNED)
def smooth_add_gauss(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + α·G(B − C): as smooth-add, without the median.

    "sAD" of Chattiori-Model-Merger since 2026.
    """
    from ..definitions.filters import gaussian

    return a + alpha * whole(gaussian, b - c)
