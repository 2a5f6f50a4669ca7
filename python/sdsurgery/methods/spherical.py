"""Methods that turn one model towards another, instead of walking straight to it."""

from __future__ import annotations

from typing import Any

from ..functions import acos, clip, dot, norm, sin, where
from .registry import Param, method


@method("slerp", inputs="A B", alpha=Param(0.5, "position on the arc from A to B, 0 to 1"))
def slerp(a: Any, b: Any, alpha: Any) -> Any:
    """sin((1−α)·θ)/sin θ·A + sin(α·θ)/sin θ·B: from A to B along the arc; θ is the angle between the two tensors.

    Where they point the same way (or opposite ways: |cos θ| > 0.9995) it is the weighted sum. A norm of at most 1e-8
    counts as 1. Source: Shoemake, "Animating rotation with quaternion curves", 1985; limits as in mergekit 0.1.5.
    """
    cosine = clip(dot(a, b) / (_or_one(norm(a)) * _or_one(norm(b))), -1, 1)
    theta = acos(cosine)
    curved = sin((1 - alpha) * theta) / sin(theta) * a + sin(alpha * theta) / sin(theta) * b
    return where(abs(cosine) > 0.9995, (1 - alpha) * a + alpha * b, curved)


def _or_one(length: Any) -> Any:
    return where(length > 1e-8, length, 1)
