"""The KL autoencoder (VAE) of latent diffusion: names and shapes from its configuration.

Source: ``ldm/modules/diffusionmodules/model.py`` and ``ldm/models/autoencoder.py`` (CompVis/stable-diffusion 21f890f).
All published configurations are double_z, have no attention outside the middle, and an embed_dim equal to z_channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .shapes import Row, conv, norm, under


class Autoencoder(NamedTuple):
    """Configuration of a KL autoencoder; every level but the last halves the resolution."""

    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # ch_mult: four levels make f8, three f4
    channels: int = 128  # ch
    latent: int = 4  # z_channels, embed_dim
    layers: int = 2  # num_res_blocks
    colours: int = 3  # in_channels, out_ch

    def rows(self) -> Iterator[Row]:
        """All tensors in module order, names without ``first_stage_model.``."""
        yield from under("encoder.", self._encoder())
        yield from under("decoder.", self._decoder())
        yield from conv("quant_conv", 2 * self.latent, 2 * self.latent, kernel=1)
        yield from conv("post_quant_conv", self.latent, self.latent, kernel=1)

    def _encoder(self) -> Iterator[Row]:
        width = self.channels
        yield from conv("conv_in", width, self.colours)
        for level, multiplier in enumerate(self.multipliers):
            for layer in range(self.layers):
                yield from _resnet(f"down.{level}.block.{layer}", self.channels * multiplier, width)
                width = self.channels * multiplier
            if level + 1 < len(self.multipliers):
                yield from conv(f"down.{level}.downsample.conv", width, width)
        yield from _middle(width)
        yield from norm("norm_out", width)
        yield from conv("conv_out", 2 * self.latent, width)  # mean and log-variance

    def _decoder(self) -> Iterator[Row]:
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        yield from conv("conv_in", widths[-1], self.latent)
        yield from _middle(widths[-1])
        # The decoder runs from the last level to the first, but the module list is numbered by level.
        for level, width in enumerate(widths):
            inputs = widths[min(level + 1, len(widths) - 1)]
            for layer in range(self.layers + 1):
                yield from _resnet(f"up.{level}.block.{layer}", width, width if layer else inputs)
            if level:
                yield from conv(f"up.{level}.upsample.conv", width, width)
        yield from norm("norm_out", widths[0])
        yield from conv("conv_out", self.colours, widths[0])


def _resnet(name: str, out: int, inputs: int) -> Iterator[Row]:
    yield from norm(f"{name}.norm1", inputs)
    yield from conv(f"{name}.conv1", out, inputs)
    yield from norm(f"{name}.norm2", out)
    yield from conv(f"{name}.conv2", out, out)
    if out != inputs:
        yield from conv(f"{name}.nin_shortcut", out, inputs, kernel=1)


def _middle(width: int) -> Iterator[Row]:
    yield from _resnet("mid.block_1", width, width)
    yield from norm("mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from conv(f"mid.attn_1.{name}", width, width, kernel=1)
    yield from _resnet("mid.block_2", width, width)
