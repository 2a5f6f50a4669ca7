"""``dtype="fp8_scaled"``: weights of linear layers as F8_E4M3 with one scale each, under ComfyUI's names.

``program/scaling.py`` has the formulas. Beside each weight lie its
``weight_scale`` and the marker ``comfy_quant`` by which ComfyUI knows the layer. Everything else is F16: ComfyUI reads
scaled linear layers only, and what is sensitive (embeddings of time and class, first and last layers) stays exact.
Each scaled weight is evaluated twice: once for its scale, and once for its codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..dtypes import F8_E4M3, F32, U8
from ..errors import UsageError, printable
from ..layouts import Layout
from ..outline import ADDED, CAST, COPIED, Piece, Region, whole
from ..program import identity, scaling

OPTION = "fp8_scaled"
MARKER = b'{"format": "float8_e4m3fn"}'

_NETWORKS = ("unet", "other")  # components whose linear layers are scaled; others are encoders of text and pictures
_SENSITIVE = re.compile(
    r"(^|[._])(embed\w*|\w*embed|\w*embedder|\w*embedding\w*|norm\w*|\w*norm|time_in|vector_in|guidance_in|img_in|txt_in|"
    r"label_emb|final_layer|proj_out_final|head|shared|patchify\w*|x_embedder|first|last)([._]|$)"
)


def require_model(layout: Layout | None = None) -> None:
    """UsageError for an adapter (also where ``layout`` is not yet known): nothing reads factors with scales."""
    if layout is None or layout.factors:
        raise UsageError(f'dtype="{OPTION}" is for models; nothing reads an adapter in it', code="conflict")


def scaled(pieces: Sequence[Piece], layout: Layout, source: int) -> list[Piece]:
    """The pieces with scaled fp8 where it is due. ``source`` is the number of the input that holds MARKER."""
    made: list[Piece] = []
    for piece in pieces:
        made += _parts(piece, source) if _is_scaled(piece, layout) else [piece]
    return made


def _is_scaled(piece: Piece, layout: Layout) -> bool:
    if len(piece.shape) != 2 or 0 in piece.shape or not piece.name.endswith(".weight") or piece.dtype.kind != "float":
        return False
    if layout.parts and layout.component(piece.name) not in _NETWORKS:
        return False
    return not layout.exact_copy(piece.name) and _SENSITIVE.search(piece.name) is None


def _parts(piece: Piece, source: int) -> list[Piece]:
    """Codes, scale and marker in a weight's place."""
    (segment,) = piece.segments if len(piece.segments) == 1 else (None,)
    if segment is None:
        raise UsageError(
            f"dtype=\"{OPTION}\" cannot be made in one step here ('{printable(piece.name)}' is put together from "
            'parts); write fp16 first, then cast(dtype="fp8_scaled")',
            code="conflict",
        )
    segment = segment._replace(formula=segment.formula or identity())
    layer = piece.name.removesuffix("weight")
    of_all = segment._replace(count=1, elements=segment.count, shape=piece.shape, finish=scaling.SCALE)
    action = CAST if piece.action == COPIED else piece.action
    return [
        piece._replace(dtype=F8_E4M3, action=action, segments=(segment._replace(finish=scaling.CODES),)),
        Piece(f"{layer}weight_scale", F32, (), ADDED, (of_all,), "the weight's scale"),
        Piece(
            f"{layer}comfy_quant", U8, (len(MARKER),), ADDED,
            whole(None, len(MARKER), (Region(source, U8, 0),)), "marks a scaled weight",
        ),
    ]  # fmt: skip
