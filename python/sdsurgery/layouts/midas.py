"""MiDaS DPT-Hybrid, the depth estimator inside SD 2 depth checkpoints: names and shapes from its configuration.

Source: ``ldm/modules/midas/midas/{dpt_depth,blocks,vit}.py`` (Stability-AI/stablediffusion cf1d67a) and timm 1.0.31
``vit_base_resnet50_384``: a ViT-B/16 over the first three stages of a ResNet-50, read out at four depths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .shapes import Row, conv, linear, norm, under


class Midas(NamedTuple):
    """Configuration of DPT-Hybrid; ``stages`` are the bottleneck counts of the convolutional stem."""

    width: int = 768
    layers: int = 12
    positions: int = 24 * 24 + 1  # patches of a 384-pixel image, and the class token
    stages: tuple[int, ...] = (3, 4, 9)
    stem: int = 64
    features: int = 256
    labels: int = 1000  # the unused ImageNet head

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, from ``model.`` on."""
        yield from under("model.pretrained.model.", self._backbone())
        yield from under("model.pretrained.", self._readouts())
        yield from under("model.scratch.", self._decoder())

    def _backbone(self) -> Iterator[Row]:
        yield "cls_token", (1, 1, self.width)
        yield "pos_embed", (1, self.positions, self.width)
        yield from under("patch_embed.backbone.", self._resnet())
        yield from conv("patch_embed.proj", self.width, self._stage_width(-1), kernel=1)
        for number in range(self.layers):
            yield from under(f"blocks.{number}.", self._block())
        yield from norm("norm", self.width)
        yield from linear("head", self.labels, self.width)

    def _stage_width(self, stage: int) -> int:
        return 4 * self.stem * 2 ** (range(len(self.stages))[stage])

    def _resnet(self) -> Iterator[Row]:
        yield from conv("stem.conv", self.stem, 3, kernel=7, bias=False)
        yield from norm("stem.norm", self.stem)
        width = self.stem
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                name = f"stages.{stage}.blocks.{number}."
                yield from under(name, _bottleneck(self._stage_width(stage), width, first=number == 0))
                width = self._stage_width(stage)

    def _block(self) -> Iterator[Row]:
        width = self.width
        yield from norm("norm1", width)
        yield from linear("attn.qkv", 3 * width, width)
        yield from linear("attn.proj", width, width)
        yield from norm("norm2", width)
        yield from linear("mlp.fc1", 4 * width, width)
        yield from linear("mlp.fc2", width, 4 * width)

    def _readouts(self) -> Iterator[Row]:
        width = self.width
        for number in (3, 4):
            yield from linear(f"act_postprocess{number}.0.project.0", width, 2 * width)
            yield from conv(f"act_postprocess{number}.3", width, width, kernel=1)
        yield from conv("act_postprocess4.4", width, width)

    def _decoder(self) -> Iterator[Row]:
        width = self.features
        inputs = (self._stage_width(0), self._stage_width(1), self.width, self.width)
        for number, channels in enumerate(inputs, 1):
            yield from conv(f"layer{number}_rn", width, channels, bias=False)
        for number in range(1, len(inputs) + 1):
            yield from conv(f"refinenet{number}.out_conv", width, width, kernel=1)
            for unit in ("resConfUnit1", "resConfUnit2"):
                yield from conv(f"refinenet{number}.{unit}.conv1", width, width)
                yield from conv(f"refinenet{number}.{unit}.conv2", width, width)
        yield from conv("output_conv.0", width // 2, width)
        yield from conv("output_conv.2", 32, width // 2)
        yield from conv("output_conv.4", 1, 32, kernel=1)


def _bottleneck(out: int, inputs: int, first: bool) -> Iterator[Row]:
    inner = out // 4
    if first:
        yield from conv("downsample.conv", out, inputs, kernel=1, bias=False)
        yield from norm("downsample.norm", out)
    yield from conv("conv1", inner, inputs, kernel=1, bias=False)
    yield from norm("norm1", inner)
    yield from conv("conv2", inner, inner, bias=False)
    yield from norm("norm2", inner)
    yield from conv("conv3", out, inner, kernel=1, bias=False)
    yield from norm("norm3", out)
