"""bitsandbytes: NF4 and FP4 (``QuantState``), and the int8 of LLM.int8, as written by bitsandbytes 0.50, diffusers,
transformers and Forge."""

from __future__ import annotations

import math
from typing import Any

from ..dtypes import F32, U8
from ..operands.encoding import Encoding
from .layer import Found, Layer, Undecodable, contiguous, matrix

_STATE = "weight.quant_state.bitsandbytes__"
_KEYS = frozenset(
    ("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset")
)  # fmt: skip
_MOST = 1 << 40  # elements
_PER_UNIT = 7.874015718698502e-3
"""1 ⁄ 127 as bitsandbytes has it, a float32."""


def recognise(layer: Layer) -> Found | None:
    """By the layer's quant_state, or its SCB beside an int8 weight."""
    states = [part for part in layer.parts if part.startswith(_STATE)]
    if states:
        return _four_bits(layer, states)
    weight = layer.weight
    if "SCB" in layer.parts and weight is not None and weight.dtype.name == "I8":
        return _int8(layer)
    return None


def _four_bits(layer: Layer, states: list[str]) -> Found:
    kind = states[0][len(_STATE) :]
    format = f"bitsandbytes {kind}"
    if len(states) > 1:
        raise Undecodable("bitsandbytes", "it has the states of two encodings")
    state = layer.json(states[0], format)
    if not isinstance(state, dict) or state.get("quant_type") != kind or kind not in ("nf4", "fp4"):
        raise Undecodable(format, "its quant_state is of another kind")
    if unknown := sorted(set(state) - _KEYS):
        raise Undecodable(format, f"its quant_state has the unknown key '{unknown[0][:40]}'")
    shape = _shape(format, state.get("shape"))
    size = _size(format, state, "blocksize")
    count = math.prod(shape)
    weight = layer.weight
    if weight is None:
        raise Undecodable(format, "its weight is missing")
    if contiguous(format, weight).nbytes != (count + 1) // 2:
        raise Undecodable(
            format, f"its weight has {weight.nbytes} bytes, {(count + 1) // 2} expected for {list(shape)}"
        )
    blocks = -(-count // size)
    encoding = Encoding(
        kind, 1, count, count, (1, size), layer.companion("weight.absmax", format, count=blocks, dtypes=(F32, U8))
    )
    if encoding.scales.dtype is U8:
        per = _size(format, state, "nested_blocksize")
        offset = state.get("nested_offset")
        if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not math.isfinite(offset):
            raise Undecodable(format, "its nested_offset is not a number")
        encoding = encoding._replace(
            map=layer.companion("weight.nested_quant_map", format, count=256, dtypes=(F32,)),
            times=layer.companion("weight.nested_absmax", format, count=-(-blocks // per), dtypes=(F32,)),
            per=per,
            plus=float(offset),
        )
    return Found(format, encoding, shape)


def _shape(format: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(side) is int and 0 < side < _MOST for side in given):
        raise Undecodable(format, "its quant_state has no shape")
    if math.prod(given) > _MOST:
        raise Undecodable(format, "its quant_state has an impossible shape")
    return tuple(given)


def _size(format: str, state: dict[str, Any], key: str) -> int:
    size = state.get(key)
    if type(size) is not int or not 0 < size <= 1 << 20:
        raise Undecodable(format, f"its {key} is not a positive number")
    return size


def _int8(layer: Layer) -> Found:
    format = "bitsandbytes int8"
    weight = layer.weight
    assert weight is not None
    rows, columns = matrix(format, contiguous(format, weight).shape)
    if "weight_format" in layer.parts and layer.integer("weight_format") != 0:
        raise Undecodable(format, "its weight_format is not row by row")
    scales = layer.companion("SCB", format, count=rows, dtypes=(F32,))
    encoding = Encoding("i8", rows, columns, columns, (1, columns), scales, factor=_PER_UNIT)
    return Found(format, encoding, weight.shape)
