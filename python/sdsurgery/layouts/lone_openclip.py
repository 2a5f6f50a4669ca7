"""A file with an OpenCLIP text encoder alone, in transformers' names, and what open_clip calls its tensors.

transformers keeps q, k and v apart and stores the projection transposed (``CLIPTextModelWithProjection``); open_clip
has one ``in_proj`` (``open_clip/transformer.py``).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from .clip import OpenClipText
from .detect import Detection
from .diffusers_names import openclip_keys

_FINAL = "final_layer_norm.weight"
_LAYER = r"(?:text_model\.)?encoder\.layers\.(\d+)\."


class Place(NamedTuple):
    """Where a tensor belongs: its name in open_clip, which third of it (None: the whole), whether it is transposed."""

    name: str
    third: int | None = None
    flipped: bool = False


class Names(NamedTuple):
    """The names of a file whose encoder stands under ``prefix``, in ``text_model.`` or, since transformers 5.6, not."""

    prefix: str
    places: dict[str, Place]

    def place(self, key: str) -> Place | None:
        """Where a tensor of the file belongs; None for what open_clip does not have, which keeps its name."""
        if not key.startswith(self.prefix):
            return None
        rest = key[len(self.prefix) :]
        return self.places.get(rest if rest.startswith("text_") else f"text_model.{rest}")


def names(found: Detection, keys: Collection[str]) -> Names | None:
    """The names of the file's encoder; None for a file that is something else."""
    if not found.layout.openclip or found.evidence_key is None or not found.evidence_shape:
        return None
    above = found.evidence_key.removesuffix(_FINAL)
    prefix = above.removesuffix("text_model.")
    layers = {int(match[1]) for key in keys if (match := re.match(_LAYER, key[len(prefix) :]))}
    return Names(prefix, _places(found.evidence_shape[0], max(layers, default=-1) + 1))


@cache
def _places(width: int, layers: int) -> dict[str, Place]:
    places = {}
    for row, _ in OpenClipText(width, layers).rows():
        own = row.removeprefix("model.")
        for key, transform in openclip_keys(own, penultimate=False):
            if key is not None:
                third = int(transform[-1]) if transform.startswith("split_qkv:") else None
                places[key] = Place(own, third, transform == "transpose")
    return places
