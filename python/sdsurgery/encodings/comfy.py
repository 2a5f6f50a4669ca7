"""ComfyUI's marked layers: ``comfy_quant`` beside the weight or ``_quantization_metadata`` in the header
(``comfy/quant_ops.py``, comfy-kitchen 0.2.40; the blockwise forms as convert_to_quant writes them, rotated convolutions
as HSWQ does)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..dtypes import F8_E4M3, F32, U8, named
from ..operands.encoding import Encoding
from .layer import Found, Layer, Undecodable, contiguous, matrix
from .scaled_fp8 import scaled

_E8M0 = named("F8_E8M0")


def recognise(layer: Layer) -> Found | None:
    """By the layer's marker; int8 weights also by their scales alone."""
    marker = layer.marker()
    weight = layer.weight
    if marker is None:
        if weight is not None and weight.dtype.name == "I8" and "weight_scale" in layer.parts:
            return _int8(layer, {})
        if "weight_scale_2" in layer.parts:
            raise Undecodable(
                "nvfp4", "no marker says in which order its codes and scales lie (ComfyUI's or ModelOpt's)"
            )
        return None
    if weight is None:
        raise Undecodable(marker["format"][:40], "its weight is missing")
    decode = _FORMATS.get(marker["format"])
    if decode is None:
        raise Undecodable(marker["format"][:40], "this format is not known")
    return decode(layer, marker)


def _fp8(layer: Layer, marker: dict[str, Any]) -> Found | None:
    weight = layer.weight
    assert weight is not None
    if weight.dtype.name not in ("F8_E4M3", "F8_E5M2"):
        if weight.dtype.kind == "float":
            return None  # a marker left behind
        raise Undecodable(marker["format"], f"its weight is {weight.dtype.name}")
    part = next((name for name in ("weight_scale", "scale_weight", "weight_scale_inv") if name in layer.parts), None)
    return None if part is None else scaled(layer, part, _whole(marker, "group_size", None))


def _int8(layer: Layer, marker: dict[str, Any]) -> Found:
    format = "int8"
    weight = layer.weight
    assert weight is not None
    if weight.dtype.name != "I8":
        raise Undecodable(format, f"its weight is {weight.dtype.name}")
    shape = contiguous(format, weight).shape
    rows, columns = matrix(format, shape)
    scales = layer.companion("weight_scale", format)
    given = layer.parts["weight_scale"].shape
    group = _whole(marker, "group_size", None)
    if scales.count == 1:
        block = (rows, columns)
    elif scales.count == rows and given[0] == rows:
        block = (1, columns)
    elif group and len(shape) == 2 and given == (-(-rows // group), -(-columns // group)):
        block = (group, group)
    else:
        raise Undecodable(format, f"its scales have the shape {list(given)}, which does not fit {list(shape)}")
    encoding = Encoding("i8", rows, columns, columns, block, scales)
    return Found(format, _rotated(format, encoding, marker, shape), shape)


def _nvfp4(layer: Layer, marker: dict[str, Any]) -> Found:
    format = "nvfp4"
    weight = layer.weight
    assert weight is not None
    if weight.dtype is not U8 or len(contiguous(format, weight).shape) != 2:
        raise Undecodable(format, f"its weight is {weight.dtype.name} {list(weight.shape)}")
    stored = (weight.shape[0], weight.shape[1] * 2)
    shape = _original(format, marker, stored)
    scales = layer.companion(
        "weight_scale", format, count=_tiled(layer, format, stored, 16), dtypes=(F8_E4M3, U8), read_as=F8_E4M3
    )
    times = layer.companion("weight_scale_2", format, count=1, dtypes=(F32,))
    encoding = Encoding(
        "e2m1", shape[0], shape[1], stored[1], (1, 16), scales, tiled=True, times=times, per=max(1, scales.count)
    )
    if "pre_quant_scale" in layer.parts:  # it multiplies the layer's input, so a column of the weight
        encoding = encoding._replace(by_column=layer.companion("pre_quant_scale", format, count=shape[1]))
    return Found(format, _rotated(format, encoding, marker, shape), shape)


def _mxfp8(layer: Layer, marker: dict[str, Any]) -> Found:
    format = "mxfp8"
    weight = layer.weight
    assert weight is not None
    if weight.dtype is not F8_E4M3 or len(contiguous(format, weight).shape) != 2:
        raise Undecodable(format, f"its weight is {weight.dtype.name} {list(weight.shape)}")
    stored = (weight.shape[0], weight.shape[1])
    shape = _original(format, marker, stored)
    scales = layer.companion(
        "weight_scale", format, count=_tiled(layer, format, stored, 32), dtypes=(_E8M0, U8), read_as=_E8M0
    )
    return Found(format, Encoding("e4m3", shape[0], shape[1], stored[1], (1, 32), scales, tiled=True), shape)


def _w4a4(layer: Layer, marker: dict[str, Any]) -> Found:
    format = "convrot_w4a4"
    weight = layer.weight
    assert weight is not None
    if weight.dtype.name not in ("I8", "U8") or len(contiguous(format, weight).shape) != 2:
        raise Undecodable(format, f"its weight is {weight.dtype.name} {list(weight.shape)}")
    rows, columns = weight.shape[0], weight.shape[1] * 2
    scales = layer.companion("weight_scale", format, count=rows)
    encoding = Encoding("i4", rows, columns, columns, (1, columns), scales, low_first=True)
    return Found(format, _rotated(format, encoding, {**marker, "convrot": True}, (rows, columns)), (rows, columns))


def _unsupported(layer: Layer, marker: dict[str, Any]) -> Found:
    raise Undecodable(marker["format"], "this format cannot be decoded yet")


_FORMATS: dict[str, Callable[[Layer, dict[str, Any]], Found | None]] = {
    "float8_e4m3fn": _fp8,
    "float8_e5m2": _fp8,
    "float8_e4m3fn_rowwise": _fp8,
    "float8_e4m3fn_blockwise": _fp8,
    "int8_tensorwise": _int8,
    "int8_blockwise": _int8,
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
    "convrot_w4a4": _w4a4,
    "asym_w4a8_int8": _unsupported,
    "awq_w4a16": _unsupported,
    "hybrid_mxfp8": _unsupported,
}


def _whole(marker: dict[str, Any], key: str, default: int | None) -> int | None:
    value = marker.get(key, default)
    if value is default:
        return default
    if type(value) is not int or value <= 0:
        raise Undecodable(marker["format"], f"its {key} is not a positive number")
    return value


def _original(format: str, marker: dict[str, Any], stored: tuple[int, int]) -> tuple[int, int]:
    """The weight's own shape, where the marker says it: the codes are padded."""
    given = marker.get("orig_shape")
    if given is None:
        return stored
    fits = isinstance(given, list) and len(given) == 2 and all(type(side) is int and side > 0 for side in given)
    if not fits or given[0] > stored[0] or given[1] > stored[1]:
        raise Undecodable(format, f"its orig_shape does not fit {list(stored)}")
    return given[0], given[1]


def _tiled(layer: Layer, format: str, stored: tuple[int, int], block: int) -> int:
    """How many scales there must be, in tiles of 128 × 4. Undecodable when the tensor hasn't their shape."""
    matrix(format, stored)
    expected = (-(-stored[0] // 128) * 128, -(-stored[1] // (4 * block)) * 4)
    info = layer.parts.get("weight_scale")
    if info is not None and info.shape != expected:
        raise Undecodable(
            format, f"its scales have the shape {list(info.shape)}, {list(expected)} expected of ComfyUI's tiles"
        )
    return math.prod(expected)


def _rotated(format: str, encoding: Encoding, marker: dict[str, Any], shape: tuple[int, ...]) -> Encoding:
    """With the rotation (ConvRot) that the marker tells: along the input channels, at every position of a kernel."""
    if not marker.get("convrot"):
        return encoding
    group = _whole(marker, "convrot_groupsize", 256) or 256
    inner = math.prod(shape[2:])
    power = 1
    while power < group:
        power *= 4
    if power != group or group > 4096 or len(shape) < 2 or shape[1] % group:
        raise Undecodable(format, f"groups of {group} do not divide its {shape[1] if len(shape) > 1 else 0} inputs")
    if encoding.block[0] != 1 and encoding.block[1] < encoding.columns:
        raise Undecodable(format, "scales by block and a rotation")
    return encoding._replace(group=group, inner=inner)
