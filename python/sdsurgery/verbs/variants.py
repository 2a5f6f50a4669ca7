"""Channel variants: an inpainting, depth, pix2pix or upscaling model (A) merged with models of 4 input channels.

Only the U-Net's first convolution differs. Its channels 0–3 see the same latent in both, so they are merged; the
others exist in A alone and are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..checkpoint import TensorInfo
from ..dtypes import DType
from ..layouts import names
from ..plan import MERGED, Operand, Piece, Segment, operand, require_computable
from ..program import Formula

LATENT = 4
"""Input channels of a plain model: those of the latent image."""
WIDER = (5, 7, 8, 9)
"""Input channels of the variants: depth, x4 upscaler, pix2pix, inpainting."""
_FIRST = names.UNET + "input_blocks.0.0.weight"


def is_first_convolution(name: str) -> bool:
    """Whether the name is that of the U-Net's first convolution."""
    return names.unwrap(name) == _FIRST


def is_variant(name: str, info: TensorInfo, others: Sequence[TensorInfo]) -> bool:
    """Whether A's tensor is a first convolution of 5 to 9 channels and every other input's is its 4-channel one."""
    if not is_first_convolution(name) or len(info.shape) != 4 or info.shape[1] not in WIDER:
        return False
    plain = (info.shape[0], LATENT, *info.shape[2:])
    return bool(others) and all(other.shape == plain for other in others)


def is_swapped(name: str, info: TensorInfo, other: TensorInfo) -> bool:
    """Whether A's first convolution has fewer channels than the other input's: the order that can't be merged."""
    both = len(info.shape) == 4 == len(other.shape)
    return both and is_first_convolution(name) and info.shape[1] == LATENT and other.shape[1] in WIDER


def merged_channels(
    name: str, infos: Sequence[TensorInfo], dtype: DType, formula: Formula, rest: Formula | None
) -> Piece:
    """A's first convolution (``infos[0]``, [out, 5…9, h, w]) with channels 0–3 merged, in ``dtype``.

    ``rest`` is the formula of A's further channels, None to copy their bytes. InputRefused for tensors that can't be
    computed or streamed.
    """
    for info in infos:
        require_computable(info)
    operands = [operand(source, info) for source, info in enumerate(infos)]
    first = infos[0]
    window = first.shape[2] * first.shape[3]
    wide, plain = first.shape[1] * window, LATENT * window
    segments = []
    for row in range(first.shape[0]):
        starts = [row * wide, *(row * plain for _ in operands[1:])]
        both = tuple(_at(item, start) for item, start in zip(operands, starts, strict=True))
        segments.append(Segment(formula, row * wide, plain, both))
        own = _at(operands[0], row * wide + plain)
        segments.append(Segment(rest, row * wide + plain, wide - plain, (own,)))
    note = f"channels 0-{LATENT - 1} merged, {LATENT}-{first.shape[1] - 1} are A's"
    return Piece(name, dtype, first.shape, MERGED, tuple(segments), note)


def _at(item: Operand, element: int) -> Operand:
    return replace(item, offset=item.offset + (item.dtype.nbytes(element) or 0))
