"""Channel variants: inpainting, depth, pix2pix and upscaling models, merged with models of 4 input channels.

Only the U-Net's first convolution differs. Its channels 0–3 see the same latent in all of them, so they are merged.
What a wide A has beyond them is kept. A narrow A takes only differences from wide models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import TensorInfo
from ..dtypes import DType
from ..layouts import names
from ..methods.registry import Method, PerInput
from ..outline import MERGED, Piece, Segment, operand, require_computable
from ..program import Formula

LATENT = 4
"""Input channels of a plain model: those of the latent image."""
WIDER = (5, 7, 8, 9)
"""Input channels of the variants: depth, x4 upscaler, pix2pix, inpainting."""
_FIRST = frozenset(place + "input_blocks.0.0.weight" for place in (names.UNET, "diffusion_model.", "")) | {
    "conv_in.weight"  # of a diffusers U-Net
}


def is_first_convolution(name: str) -> bool:
    """Whether the name is that of the U-Net's first convolution."""
    return names.unwrap(name) in _FIRST


def is_variant(name: str, info: TensorInfo, others: Sequence[TensorInfo]) -> bool:
    """Whether A's tensor is a first convolution of 5 to 9 channels and the others' have as many, or 4."""
    return _channels(name, info) in WIDER and all(_channels(name, each) in (LATENT, info.shape[1]) for each in others)


def is_widened(name: str, info: TensorInfo, others: Sequence[TensorInfo]) -> bool:
    """Whether A's tensor is a 4-channel first convolution and all the others are ones of the same larger number."""
    found = {_channels(name, each) for each in others}
    return _channels(name, info) == LATENT and len(found) == 1 and found.pop() in WIDER


def is_swapped(name: str, info: TensorInfo, other: TensorInfo) -> bool:
    """Whether A's first convolution has fewer channels than the other input's: the order that can't be merged."""
    return _channels(name, info) == LATENT and _channels(name, other) in WIDER


def takes_differences(method: Method, params: Mapping[str, Any]) -> bool:
    """Whether the inputs after A enter only through differences between them: where they agree, A comes out."""
    if len(method.inputs) > 1 and set(method.inputs[1:]) == method.differences:
        return True
    weights = [
        params.get(name) for name, param in method.params.items() if isinstance(param, PerInput) and param.weights
    ]
    return any(given is not None and given[0] == 1 and sum(given[1:]) == 0 for given in weights)


def merged_channels(
    name: str, infos: Sequence[TensorInfo], dtype: DType, formula: Formula, rest: Formula | None
) -> Piece:
    """A's first convolution (``infos[0]``, [out, 4…9, h, w]) with channels 0–3 merged, in ``dtype``.

    ``rest`` is the formula of A's further channels, None to copy their bytes. InputRefused for tensors that can't be
    computed or streamed.
    """
    for info in infos:
        require_computable(info)
    operands = [operand(source, info) for source, info in enumerate(infos)]
    first = infos[0]
    window = first.shape[2] * first.shape[3]
    plain = LATENT * window
    rows = [info.shape[1] * window for info in infos]  # elements of one output channel, input by input
    segments = []
    for row in range(first.shape[0]):
        start = row * rows[0]
        both = tuple(item.at(row * length) for item, length in zip(operands, rows, strict=True))
        segments.append(Segment(formula, start, plain, both))
        if rows[0] > plain:
            own = operands[0].at(start + plain)
            segments.append(Segment(rest, start + plain, rows[0] - plain, (own,)))
    last = first.shape[1] - 1
    kept = f", {LATENT}-{last} are A's" if last > LATENT else f", {LATENT} is A's" if last == LATENT else ""
    return Piece(name, dtype, first.shape, MERGED, tuple(segments), f"channels 0-{LATENT - 1} merged{kept}")


def _channels(name: str, info: TensorInfo) -> int | None:
    """Input channels of a first convolution, None for any other tensor."""
    return info.shape[1] if len(info.shape) == 4 and is_first_convolution(name) else None
