"""Encodings that are recognised and not decoded: refused by name, so that their codes are never taken for numbers."""

from __future__ import annotations

from .layer import Found, Layer, Undecodable

_BY_PART = {
    "_weight_qdata": "torchao",
    "weight_packed": "compressed-tensors",
    "weight._data": "optimum-quanto",
    "weight_s_rel": "asym_w4a8_int8",
}


def recognise(layer: Layer) -> Found | None:
    """Raises Undecodable for what is known by its parts, and for integer weights without scales."""
    weight = layer.weight
    for part, format in _BY_PART.items():
        if part in layer.parts:
            raise Undecodable(format, "this format cannot be decoded yet")
    if "qweight" in layer.parts:
        nunchaku = "wscales" in layer.parts or "smooth_factor" in layer.parts
        raise Undecodable(
            "Nunchaku/SVDQuant" if nunchaku else "GPTQ or AWQ", "its codes are packed for the kernels of that program"
        )
    if weight is None:
        return None
    if "scale" in layer.parts and weight.dtype.name in ("I8", "U8", "F8_E4M3", "F8_E5M2"):
        raise Undecodable("SDNQ", "this format cannot be decoded yet")
    if weight.dtype.name in ("I8", "U8") and weight.elements:
        raise Undecodable("unknown encoding", f"it is {weight.dtype.name} and no scales lie beside it")
    return None
