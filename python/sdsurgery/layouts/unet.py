"""The U-Net of latent diffusion: names and shapes from its configuration.

Source: ``ldm/modules/diffusionmodules/openaimodel.py`` and ``ldm/modules/attention.py`` (CompVis/stable-diffusion
21f890f, Stability-AI/stablediffusion cf1d67a) and their counterparts in Stability-AI/generative-models 0ad7de9. Fields
carry the names of the published YAML configurations in the comments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import names
from .shapes import Row, Shape, conv, linear, norm, under

FIRST_CONVOLUTION = "input_blocks.0.0.weight"
RECOGNISED = tuple(
    names.UNET + key
    for key in (
        FIRST_CONVOLUTION,
        "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.10.0.skip_connection.bias",
        "output_blocks.11.0.skip_connection.weight",
    )
)
"""By which diffusers (``loaders/single_file_utils.py``, ``infer_diffusers_model_type``) distinguishes U-Nets. ComfyUI
counts the blocks instead."""


def block_names(count: int) -> tuple[str, ...]:
    """The merge blocks of a U-Net with ``count`` input blocks."""
    return (*(f"IN{i:02d}" for i in range(count)), "M00", *(f"OUT{i:02d}" for i in range(count)))


class AnyUNet:
    """A U-Net of which only the kind is known: blocks by name, and lists of either usual length (SD 1 and 2, XL)."""

    anchor, component, title = FIRST_CONVOLUTION, "unet", "U-Net"
    blocks = block_names(12)
    lists = (blocks, block_names(9))

    def owns(self, key: str) -> bool:
        return names.in_unet(key)

    def block(self, key: str) -> str | None:
        return names.unet_block(key, "OUT11")

    def discriminators(self) -> dict[str, Shape]:
        return {}

    def presets(self) -> dict[str, tuple[float, ...]]:
        from .presets import fitted

        return fitted(12)


class UNet(NamedTuple):
    """Configuration of a U-Net.

    ``depths`` is the number of transformer blocks per resolution level (0: no attention there), ``context`` the width
    of the text embedding, ``label`` the width of the vector that SDXL and unCLIP add to the time embedding, ``classes``
    the size of the upscaler's class table, ``cross_only`` the levels at which self-attention also reads the text.
    """

    channels: int  # model_channels
    context: int  # context_dim
    depths: tuple[int, ...]  # transformer_depth, 0 where attention_resolutions leaves a level out
    middle_depth: int = 1  # transformer_depth_middle
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # channel_mult
    in_channels: int = 4
    out_channels: int = 4
    layers: int = 2  # num_res_blocks
    linear_projection: bool = True  # use_linear_in_transformer
    label: int | None = None  # adm_in_channels with num_classes "sequential"
    classes: int | None = None  # num_classes as a number
    cross_only: tuple[bool, ...] = ()  # disable_self_attentions

    @property
    def anchor(self) -> str:
        """The first convolution."""
        return FIRST_CONVOLUTION

    @property
    def component(self) -> str:
        return "unet"

    @property
    def title(self) -> str:
        return "U-Net"

    @property
    def blocks(self) -> tuple[str, ...]:
        """Merge blocks: inputs, middle, outputs."""
        return block_names(self.input_blocks)

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        return (self.blocks,)

    def owns(self, key: str) -> bool:
        return names.in_unet(key)

    def block(self, key: str) -> str | None:
        return names.unet_block(key, f"OUT{self.input_blocks - 1:02d}")

    def presets(self) -> dict[str, tuple[float, ...]]:
        from .presets import fitted

        return fitted(self.input_blocks)

    @property
    def embedding(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels

    @property
    def input_blocks(self) -> int:
        """Number of input blocks; there are as many output blocks."""
        return len(self.multipliers) * (self.layers + 1)

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, names without ``model.diffusion_model.``."""
        yield from self._embeddings()
        yield from conv("input_blocks.0.0", self.channels, self.in_channels)
        skips = [self.channels]
        yield from self._down(skips)
        width = skips[-1]
        yield from self._resnet("middle_block.0", width, width)
        yield from self._transformer("middle_block.1", width, self.middle_depth)
        yield from self._resnet("middle_block.2", width, width)
        yield from self._up(skips)
        yield from norm("out.0", self.channels)
        yield from conv("out.2", self.out_channels, self.channels)

    def discriminators(self) -> dict[str, Shape]:
        """The tensors that distinguish the family from others: text width, label width, first convolution."""
        level = next(i for i, depth in enumerate(self.depths) if depth)
        block = level * (self.layers + 1) + 1
        width = self.channels * self.multipliers[level]
        found: dict[str, Shape] = {f"input_blocks.{block}.1.{CROSS_ATTENTION}": (width, self.context)}
        if self.label is not None:
            found["label_emb.0.0.weight"] = (self.embedding, self.label)
        if self.classes is not None:
            found["label_emb.weight"] = (self.classes, self.embedding)
        found[FIRST_CONVOLUTION] = (self.channels, self.in_channels, 3, 3)
        return found

    def evidence(self) -> tuple[str, ...]:
        """Names of the tensors whose shapes show what the U-Net is: text width, label width, first convolution."""
        levels = (level for level, depth in enumerate(self.depths[:2]) if depth)
        text = [f"input_blocks.{level * (self.layers + 1) + 1}.1.{CROSS_ATTENTION}" for level in levels]
        return tuple(dict.fromkeys((*text, *self.discriminators())))

    def _embeddings(self) -> Iterator[Row]:
        width = self.embedding
        yield from linear("time_embed.0", width, self.channels)
        yield from linear("time_embed.2", width, width)
        if self.label is not None:
            yield from linear("label_emb.0.0", width, self.label)
            yield from linear("label_emb.0.2", width, width)
        if self.classes is not None:
            yield "label_emb.weight", (self.classes, width)

    def _down(self, skips: list[int]) -> Iterator[Row]:
        """Input blocks after the first; appends each block's width to ``skips``, where the way up takes it from."""
        width = self.channels
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.layers):
                name = f"input_blocks.{len(skips)}"
                yield from self._resnet(f"{name}.0", self.channels * multiplier, width)
                width = self.channels * multiplier
                yield from self._transformer(f"{name}.1", width, self.depths[level], level)
                skips.append(width)
            if level + 1 < len(self.multipliers):
                yield from conv(f"input_blocks.{len(skips)}.0.op", width, width)
                skips.append(width)

    def _up(self, skips: list[int]) -> Iterator[Row]:
        width = skips[-1]
        number = 0
        for level in reversed(range(len(self.multipliers))):
            for layer in range(self.layers + 1):
                name = f"output_blocks.{number}"
                out = self.channels * self.multipliers[level]
                yield from self._resnet(f"{name}.0", out, width + skips.pop())
                width = out
                yield from self._transformer(f"{name}.1", width, self.depths[level], level)
                if level and layer == self.layers:
                    yield from conv(f"{name}.{2 if self.depths[level] else 1}.conv", width, width)
                number += 1

    def _resnet(self, name: str, out: int, inputs: int) -> Iterator[Row]:
        yield from norm(f"{name}.in_layers.0", inputs)
        yield from conv(f"{name}.in_layers.2", out, inputs)
        yield from linear(f"{name}.emb_layers.1", out, self.embedding)
        yield from norm(f"{name}.out_layers.0", out)
        yield from conv(f"{name}.out_layers.3", out, out)
        if out != inputs:
            yield from conv(f"{name}.skip_connection", out, inputs, kernel=1)

    def _transformer(self, name: str, width: int, depth: int, level: int | None = None) -> Iterator[Row]:
        if not depth:
            return
        cross_only = bool(self.cross_only) and level is not None and self.cross_only[level]
        yield from norm(f"{name}.norm", width)
        yield from self._projection(f"{name}.proj_in", width)
        for i in range(depth):
            yield from under(f"{name}.transformer_blocks.{i}.", _block(width, self.context, cross_only))
        yield from self._projection(f"{name}.proj_out", width)

    def _projection(self, name: str, width: int) -> Iterator[Row]:
        return linear(name, width, width) if self.linear_projection else conv(name, width, width, kernel=1)


CROSS_ATTENTION = "transformer_blocks.0.attn2.to_k.weight"


def _attention(name: str, width: int, context: int) -> Iterator[Row]:
    yield from linear(f"{name}.to_q", width, width, bias=False)
    yield from linear(f"{name}.to_k", width, context, bias=False)
    yield from linear(f"{name}.to_v", width, context, bias=False)
    yield from linear(f"{name}.to_out.0", width, width)


def _block(width: int, context: int, cross_only: bool) -> Iterator[Row]:
    yield from _attention("attn1", width, context if cross_only else width)
    yield from linear("ff.net.0.proj", 8 * width, width)  # GEGLU: value and gate, each four times as wide
    yield from linear("ff.net.2", width, 4 * width)
    yield from _attention("attn2", width, context)
    for number in (1, 2, 3):
        yield from norm(f"norm{number}", width)
