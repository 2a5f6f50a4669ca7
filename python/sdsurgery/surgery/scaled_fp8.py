"""``dtype="fp8_scaled"``: weights of linear layers as F8_E4M3 with one scale each, under ComfyUI's names.

    scale = max|W| ⁄ 448 (1 for zeros), float32        code = e4m3(clip(W · (1 ⁄ scale), ±448))

as comfy-kitchen 0.2.40 computes it (``TensorCoreFP8Layout``), from the float32 weights. Beside each weight lie its
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
from ..program import ALL, CONSTANT, TEMP, VALUE, Formula, Program, Ref, Stage, Step, identity

OPTION = "fp8_scaled"
MARKER = b'{"format": "float8_e4m3fn"}'
_LARGEST = 448.0

_NETWORKS = ("unet", "other")  # components whose linear layers are scaled; others are encoders of text and pictures
_SENSITIVE = re.compile(
    r"(^|[._])(embed\w*|\w*embed|\w*embedder|\w*embedding\w*|norm\w*|\w*norm|time_in|vector_in|guidance_in|img_in|txt_in|"
    r"label_emb|final_layer|proj_out_final|head|shared|patchify\w*|x_embedder|first|last)([._]|$)"
)


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
    if segment is None or segment.modules:
        raise UsageError(
            f"dtype=\"{OPTION}\" cannot be made in one step here ('{printable(piece.name)}' is put together from "
            'parts); write fp16 first, then cast(dtype="fp8_scaled")',
            code="conflict",
        )
    formula = segment.formula or identity()
    assert isinstance(formula, Formula)
    codes, scale = _formulas(formula)
    layer = piece.name.removesuffix("weight")
    whole_tensor = segment._replace(formula=scale, count=1, elements=segment.count)
    action = CAST if piece.action == COPIED else piece.action
    return [
        piece._replace(dtype=F8_E4M3, action=action, segments=(segment._replace(formula=codes),)),
        Piece(f"{layer}weight_scale", F32, (), ADDED, (whole_tensor,), "the weight's scale"),
        Piece(
            f"{layer}comfy_quant", U8, (len(MARKER),), ADDED,
            whole(None, len(MARKER), (Region(source, U8, 0),)), "marks a scaled weight",
        ),
    ]  # fmt: skip


def _formulas(formula: Formula) -> tuple[Formula, Formula]:
    """Codes and scale of what a formula gives: one stage more, which finds the largest magnitude."""
    program, numbers = formula
    largest, one, zero, least = ((CONSTANT, program.constants + k) for k in range(4))
    magnitude = (VALUE, program.values)
    ratio, none, scale = ((VALUE, program.values + k) for k in range(1, 4))
    free = 1 + max((to for _, _, to in program.steps), default=-1)
    result: Ref = program.result
    stage = Stage(
        (*program.steps, ("abs", (result,), free)),
        (("maximum", ALL, ((TEMP, free),)),),
        (
            ("div", (magnitude, largest)),
            ("eq", (magnitude, zero)),
            ("where", (none, one, ratio)),
        ),
    )
    steps: tuple[Step, ...] = (
        *program.steps,
        ("div", (one, scale), free),
        ("mul", (result, (TEMP, free)), free + 1),
        ("maximum", ((TEMP, free + 1), least), free + 2),
        ("minimum", ((TEMP, free + 2), largest), free + 3),
    )
    stages = (*program.stages, stage)
    constants = program.constants + 4
    all_numbers = (*numbers, _LARGEST, 1.0, 0.0, -_LARGEST)
    codes = Program(
        program.inputs, constants, steps, (TEMP, free + 3), stages, program.made, functions=program.functions
    )
    return Formula(codes, all_numbers), Formula(
        Program(program.inputs, constants, (), scale, stages, program.made, functions=program.functions), all_numbers
    )
