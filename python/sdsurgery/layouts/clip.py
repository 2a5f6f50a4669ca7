"""Text and image encoders: CLIP as transformers names it, and OpenCLIP.

Sources: ``CLIPTextModel`` of transformers 4.x (SD 1 and the first encoder of SDXL), ``open_clip/model.py`` and
``open_clip/transformer.py`` of open_clip 3.3.0 (SD 2, the second encoder of SDXL, unCLIP's image embedder).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .shapes import Row, Shape, conv, linear, norm, under

TOKENS = 77
VOCABULARY = 49408
POSITION_IDS = "text_model.embeddings.position_ids"


class ClipText(NamedTuple):
    """A ``CLIPTextModel``: ``width`` and ``layers`` of the transformer."""

    width: int = 768
    layers: int = 12

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, from ``text_model.`` on; ``position_ids`` is int64, the rest float."""
        yield POSITION_IDS, (1, TOKENS)
        yield "text_model.embeddings.token_embedding.weight", (VOCABULARY, self.width)
        yield "text_model.embeddings.position_embedding.weight", (TOKENS, self.width)
        for number in range(self.layers):
            yield from under(f"text_model.encoder.layers.{number}.", self._layer())
        yield from norm("text_model.final_layer_norm", self.width)

    def _layer(self) -> Iterator[Row]:
        width = self.width
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"self_attn.{name}", width, width)
        yield from norm("layer_norm1", width)
        yield from linear("mlp.fc1", 4 * width, width)
        yield from linear("mlp.fc2", width, 4 * width)
        yield from norm("layer_norm2", width)


class OpenClipText(NamedTuple):
    """The text tower of OpenCLIP with the three loose parameters of the model around it."""

    width: int
    layers: int

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, from ``model.`` on."""
        return under("model.", self._rows())

    def _rows(self) -> Iterator[Row]:
        yield from _loose(self.width)
        yield from _resblocks("transformer.resblocks", self.width, self.layers)
        yield from _ends(self.width)


class OpenClipImage(NamedTuple):
    """An OpenCLIP model of which the image tower is used and the text transformer was deleted (unCLIP's embedder)."""

    width: int = 1280
    layers: int = 32
    patch: int = 14
    grid: int = 16  # patches along one side
    text_width: int = 1024

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, from ``model.`` on."""
        return under("model.", self._rows())

    def _rows(self) -> Iterator[Row]:
        yield from _loose(self.text_width)
        yield from under("visual.", self._visual())
        yield from _ends(self.text_width)

    def _visual(self) -> Iterator[Row]:
        yield "class_embedding", (self.width,)
        yield "positional_embedding", (self.grid * self.grid + 1, self.width)
        yield "proj", (self.width, self.text_width)
        yield from conv("conv1", self.width, 3, kernel=self.patch, bias=False)
        yield from norm("ln_pre", self.width)
        yield from _resblocks("transformer.resblocks", self.width, self.layers)
        yield from norm("ln_post", self.width)


def _loose(width: int) -> Iterator[Row]:
    scalar: Shape = ()
    yield "positional_embedding", (TOKENS, width)
    yield "text_projection", (width, width)
    yield "logit_scale", scalar


def _ends(width: int) -> Iterator[Row]:
    yield "token_embedding.weight", (VOCABULARY, width)
    yield from norm("ln_final", width)


def _resblocks(name: str, width: int, layers: int) -> Iterator[Row]:
    for number in range(layers):
        yield from under(f"{name}.{number}.", _resblock(width))


def _resblock(width: int) -> Iterator[Row]:
    yield from norm("ln_1", width)
    yield "attn.in_proj_weight", (3 * width, width)  # query, key and value in one
    yield "attn.in_proj_bias", (3 * width,)
    yield from linear("attn.out_proj", width, width)
    yield from norm("ln_2", width)
    yield from linear("mlp.c_fc", 4 * width, width)
    yield from linear("mlp.c_proj", width, 4 * width)
