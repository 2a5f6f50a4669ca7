"""The layout of files that no family recognises."""

from __future__ import annotations

from .base import Layout
from .unet import AnyUNet

UNKNOWN = Layout("unknown", "unknown layout", network=AnyUNet())
"""Tensors pair by name; blocks and components follow from U-Net names where a file has them."""
