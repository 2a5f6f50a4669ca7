"""Encoded weights: which of a file's tensors are codes and scales, and what weights they stand for.

A reader of a format knows nothing of this: its table lists codes and scales as they are stored. ``decode`` puts the
weights in their place. Each module here knows the formats of one program; ``recognise(layer)`` of each gives what it
knows of a layer, or None. The facts come from those programs' sources, named in the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checkpoint import TensorInfo
from ..dtypes import F32
from ..operands.encoding import Encoded
from .layer import METADATA, Layer, Undecodable, layers

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint

__all__ = ["MARKER", "METADATA", "decode"]

MARKER = "scaled_fp8"
"""The last part of the name of the tensor that marks a component of scaled fp8 weights."""


def decode(checkpoint: Checkpoint) -> None:
    """Give the checkpoint a table in which encoded weights stand under their names, with their own shape, as float32;
    their scales are not in it. What cannot be decoded stands there too, with the reason."""
    found = layers(checkpoint)
    if not found:
        return
    weights: dict[str, TensorInfo] = {}
    away: set[str] = set()
    for layer in found:
        encoded, shape = _recognised(layer)
        if encoded is None:
            left = layer.left_behind()
            if left is not None:
                checkpoint.orphans.add(left.name)
            continue
        first = encoded.stored[0]
        form = first.form._replace(dtype=F32, shape=shape, strides=None, encoded=encoded)
        weights[first.name] = TensorInfo(layer.weight_name, first.offset, form)
        away.update(info.name for info in encoded.stored)
    table = {}
    for name, info in checkpoint.tensors.items():
        if name in weights:
            table[weights[name].name] = weights[name]
        elif name not in away:
            table[name] = info
    checkpoint.tensors = table
    for info in weights.values():
        assert info.encoded is not None
        checkpoint.encodings[info.encoded.format] = checkpoint.encodings.get(info.encoded.format, 0) + 1


def _recognised(layer: Layer) -> tuple[Encoded | None, tuple[int, ...]]:
    """What a layer is, and the shape of its weights (of those that cannot be decoded: of what is stored)."""
    from . import bitsandbytes, comfy, others, scaled_fp8

    stored = layer.stored()
    try:
        for module in (bitsandbytes, comfy, scaled_fp8, others):
            made = module.recognise(layer)
            if made is not None:
                return Encoded(layer.name, made.format, stored, made.encoding), made.shape
    except Undecodable as error:
        return Encoded(layer.name, error.format, stored, None, str(error)), stored[0].shape
    return None, ()
