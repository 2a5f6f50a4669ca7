"""The modules from which checkpoints are assembled. Each imports its network only when its rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from . import names
from .base import Part
from .shapes import Row
from .unet import UNet


def schedule(prefix: str = "", count: int = len(names.SCHEDULE), steps: int = 1000) -> Part:
    """The first ``count`` noise-schedule buffers of latent-diffusion, ``[steps]`` each."""
    return Part("buffers", prefix, lambda: iter([(name, (steps,)) for name in names.SCHEDULE[:count]]))


def sigmas(steps: int = 1000) -> Part:
    """The sigma table of sgm's ``DiscreteDenoiser``, its only buffer."""
    return Part("buffers", "denoiser.", lambda: iter([("sigmas", (steps,))]))


def unet(network: UNet) -> Part:
    """The U-Net."""
    return Part("unet", names.UNET, network.rows, evidence=network.evidence())


def autoencoder(prefix: str = names.VAE, levels: int = 4) -> Part:
    """The KL autoencoder; four resolution levels make f8, three f4."""

    def rows() -> Iterator[Row]:
        from .autoencoder import Autoencoder

        return Autoencoder(multipliers=(1, 2, 4, 4)[:levels]).rows()

    return Part("vae", prefix, rows, evidence=("decoder.conv_in.weight",))


def clip_l(prefix: str) -> Part:
    """CLIP-L's text model in transformers' names."""

    def rows() -> Iterator[Row]:
        from .clip import ClipText

        return ClipText().rows()

    norm, position_ids = "text_model.final_layer_norm.weight", "text_model.embeddings.position_ids"
    return Part("text_encoder", prefix, rows, evidence=(norm,), position_ids=position_ids)


def openclip(component: str, prefix: str, *, width: int, layers: int) -> Part:
    """An OpenCLIP text tower: H is 1024 wide with 24 layers, bigG 1280 with 32."""

    def rows() -> Iterator[Row]:
        from .clip import OpenClipText

        return OpenClipText(width, layers).rows()

    return Part(component, prefix, rows, evidence=("model.ln_final.weight",))


def openclip_image(prefix: str) -> Part:
    """OpenCLIP-H's image tower, the embedder of unCLIP."""

    def rows() -> Iterator[Row]:
        from .clip import OpenClipImage

        return OpenClipImage().rows()

    return Part("image_encoder", prefix, rows, evidence=("model.ln_final.weight",))


def midas(prefix: str) -> Part:
    """The MiDaS DPT-Hybrid depth estimator."""

    def rows() -> Iterator[Row]:
        from .midas import Midas

        return Midas().rows()

    return Part("depth", prefix, rows)
