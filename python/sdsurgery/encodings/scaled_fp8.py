"""Scaled fp8 without a marker of its own: ComfyUI's old names, kohya's sd-scripts, DeepSeek's and transformers'
``weight_scale_inv``. Where ComfyUI marks a layer as fp8, ``comfy.py`` asks this module too."""

from __future__ import annotations

from ..dtypes import U8, named
from ..operands.encoding import Encoding
from .layer import FLOATS, Found, Layer, Undecodable, codes_as, contiguous, matrix

FORMAT = "scaled fp8"
_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
_BLOCK = 128  # of weight_scale_inv, counted from the first row and column


def recognise(layer: Layer) -> Found | None:
    """By scales beside a weight of an fp8 dtype."""
    weight = layer.weight
    if weight is None or weight.dtype.name not in ("F8_E4M3", "F8_E5M2"):
        return None
    part = next((name for name in _SCALES if name in layer.parts), None)
    return None if part is None else scaled(layer, part, None)


def scaled(layer: Layer, part: str, group: int | None) -> Found:
    """The weight with the scales of ``part``: one; one for each row; or for each block (``group`` its side, where a
    marker says it)."""
    weight = layer.weight
    assert weight is not None
    shape = contiguous(FORMAT, weight).shape
    rows, columns = matrix(FORMAT, shape)
    info = layer.parts[part]
    encoding = Encoding(
        codes_as(weight), rows, columns, columns, (rows, columns), layer.companion(part, FORMAT, dtypes=(*FLOATS, U8))
    )
    if info.dtype is U8:  # transformers' mxfp8: exponents, row by row
        if part != "weight_scale_inv" or info.elements * 32 != rows * columns or columns % 32:
            raise _wrong(info.name, info.shape, shape)
        scales = encoding.scales._replace(dtype=named("F8_E8M0"))
        return Found("mxfp8", encoding._replace(scales=scales, block=(1, 32)), shape)
    block = _block(part, info.shape, shape, group)
    if block is None:
        raise _wrong(info.name, info.shape, shape)
    return Found(FORMAT, encoding._replace(block=block), shape)


def _wrong(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> Undecodable:
    return Undecodable(FORMAT, f"the scales '{name}' have the shape {list(found)}, which does not fit {list(shape)}")


def _block(
    part: str, scales: tuple[int, ...], shape: tuple[int, ...], group: int | None
) -> tuple[int, int] | None:  # fmt: skip
    """Rows and columns that share a scale."""
    rows, columns = matrix(FORMAT, shape)
    given = tuple(scales)
    size = 1
    for side in given:
        size *= side
    if size == 1:
        return rows, columns
    if given[0] == rows and size == rows:
        return 1, columns
    if part == "weight_scale_inv" and given == (-(-rows // _BLOCK), -(-columns // _BLOCK)):
        return _BLOCK, _BLOCK
    if len(given) == 3 and given[0] == rows and given[2] == 1 and columns % given[1] == 0:  # kohya
        return 1, columns // given[1]
    if len(given) == 2 and len(shape) == 2 and group and given == (-(-rows // group), -(-columns // group)):
        return group, group
    if len(given) == 2 and len(shape) == 2 and rows % given[0] == 0 and columns % given[1] == 0:
        return rows // given[0], columns // given[1]
    return None
