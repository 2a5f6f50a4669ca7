"""Encoded layers with made-up codes and scales, and what each stands for, by plain loops over the formulas.

``layer(kind, rows, columns)`` gives tensors by the rest of their names, as (dtype, shape, bytes), and the weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
F32 = np.float32

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def e4m3(code: int) -> float:
    """A float of 4 exponent and 3 mantissa bits, without infinities."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def e5m2(code: int) -> float:
    """A float16 without its lower byte."""
    return float(struct.unpack("<e", bytes([0, code]))[0])


def _floats(values: np.ndarray, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", shape, np.asarray(values, F32).tobytes()


def _marker(**said: object) -> tuple[str, tuple[int, ...], bytes]:
    text = json.dumps(said).encode()
    return "U8", (len(text),), text


def _nibble(packed: np.ndarray, at: int) -> int:
    byte = int(packed[at // 2])
    return byte & 15 if at % 2 else byte >> 4


def _fp8(rng: np.random.Generator, rows: int, columns: int, blocks: str, dtype: str) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(0, 256, (rows, columns), np.uint8)
    codes[(codes & 127) >= 124] = 5  # keep NaN and Inf out
    shape = {"tensor": (), "row": (rows, 1), "flat": (rows,), "inverse": (-(-rows // 128), -(-columns // 128))}[blocks]
    scales = rng.uniform(0.001, 3, math.prod(shape)).astype(F32)
    value = e4m3 if dtype == "F8_E4M3" else e5m2
    out = np.zeros((rows, columns), F32)
    for i in range(rows):
        for j in range(columns):
            at = {"tensor": 0, "row": i, "flat": i, "inverse": i // 128 * -(-columns // 128) + j // 128}[blocks]
            out[i, j] = F32(value(int(codes[i, j]))) * scales[at]
    name = {"tensor": "scale_weight", "inverse": "weight_scale_inv"}.get(blocks, "weight_scale")
    return {"weight": (dtype, (rows, columns), codes.tobytes()), name: _floats(scales, *shape)}, out


def _four_bits(
    rng: np.random.Generator, rows: int, columns: int, kind: str, nested: bool
) -> tuple[Tensors, np.ndarray]:
    count, size = rows * columns, 64
    packed = rng.integers(0, 256, (count + 1) // 2, np.uint8)
    blocks = -(-count // size)
    state = {"quant_type": kind, "blocksize": size, "dtype": "float16", "shape": [rows, columns]}
    tensors: Tensors = {"weight": ("U8", (packed.size, 1), packed.tobytes())}
    if nested:
        stored = rng.integers(0, 256, blocks, np.uint8)
        table = np.sort(rng.uniform(-1, 1, 256)).astype(F32)
        outer = rng.uniform(0.1, 1, -(-blocks // 256)).astype(F32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.13}
        absmax = np.array([F32(table[q] * outer[i // 256]) + F32(0.13) for i, q in enumerate(stored)], F32)
        tensors |= {
            "weight.absmax": ("U8", (blocks,), stored.tobytes()),
            "weight.nested_quant_map": _floats(table, 256),
            "weight.nested_absmax": _floats(outer, outer.size),
        }
    else:
        absmax = rng.uniform(0.001, 0.2, blocks).astype(F32)
        tensors["weight.absmax"] = _floats(absmax, blocks)
    table = np.array(NF4 if kind == "nf4" else FP4 + [-value for value in FP4], F32)
    tensors["weight.quant_map"] = _floats(table, 16)
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = _marker(**state)
    out = np.array([table[_nibble(packed, e)] * absmax[e // size] for e in range(count)], F32)
    return tensors, out.reshape(rows, columns)


def _int8(rng: np.random.Generator, rows: int, columns: int, own: str) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(-128, 128, (rows, columns), np.int8)
    scales = rng.uniform(0.001, 0.2, rows).astype(F32)
    tensors: Tensors = {"weight": ("I8", (rows, columns), codes.tobytes())}
    if own == "bitsandbytes":
        tensors["SCB"] = _floats(scales, rows)
        return tensors, (codes.astype(F32) * scales[:, None]) * F32(7.874015718698502e-3)
    group = {"comfy": 1, "rotated": 16}[own]
    said = {"convrot": True, "convrot_groupsize": group} if group > 1 else {}
    tensors |= {"weight_scale": _floats(scales, rows, 1), "comfy_quant": _marker(format="int8_tensorwise", **said)}
    sums = codes.astype(np.float64)
    if group > 1:
        h4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float64)
        sums = (sums.reshape(rows, -1, group) @ np.kron(h4, h4)).reshape(rows, columns) / 4  # exact: small integers
    return tensors, sums.astype(F32) * scales[:, None]


def _tiled(scales: np.ndarray) -> bytes:
    rows, blocks = scales.shape
    out = np.zeros((-(-rows // 128) * 128, -(-blocks // 4) * 4), np.uint8)
    flat = out.reshape(-1)
    for i in range(rows):
        for j in range(blocks):
            tile = i // 128 * -(-blocks // 4) + j // 4
            flat[tile * 512 + i % 32 * 16 + i % 128 // 32 * 4 + j % 4] = scales[i, j]
    return out.tobytes()


def _nvfp4(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    stored = (-(-rows // 16) * 16, -(-columns // 16) * 16)
    packed = rng.integers(0, 256, (stored[0], stored[1] // 2), np.uint8)
    scales = rng.integers(1, 120, (stored[0], stored[1] // 16), np.uint8)
    second = F32(0.37)
    table = np.array(E2M1 + [-value for value in E2M1], F32)
    out = np.zeros((rows, columns), F32)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = table[_nibble(packed[i], j)] * F32(second * F32(e4m3(int(scales[i, j // 16]))))
    grid = (-(-stored[0] // 128) * 128, -(-stored[1] // 64) * 4)
    return {
        "weight": ("U8", packed.shape, packed.tobytes()),
        "weight_scale": ("F8_E4M3", grid, _tiled(scales)),
        "weight_scale_2": _floats(np.array([second]), *()),
        "comfy_quant": _marker(format="nvfp4", orig_shape=[rows, columns]),
    }, out


def _mxfp8(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, np.ndarray]:
    stored = (-(-rows // 32) * 32, -(-columns // 32) * 32)
    codes = rng.integers(0, 120, stored, np.uint8)
    scales = rng.integers(100, 140, (stored[0], stored[1] // 32), np.uint8)
    out = np.zeros((rows, columns), F32)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = F32(e4m3(int(codes[i, j]))) * F32(2.0 ** (int(scales[i, j // 32]) - 127))
    grid = (-(-stored[0] // 128) * 128, -(-stored[1] // 128) * 4)
    return {
        "weight": ("F8_E4M3", stored, codes.tobytes()),
        "weight_scale": ("F8_E8M0", grid, _tiled(scales)),
        "comfy_quant": _marker(format="mxfp8", orig_shape=[rows, columns]),
    }, out


KINDS: dict[str, Callable[[np.random.Generator, int, int], tuple[Tensors, np.ndarray]]] = {
    "fp8 of one scale": lambda *of: _fp8(*of, "tensor", "F8_E4M3"),
    "fp8 e5m2 by row": lambda *of: _fp8(*of, "row", "F8_E5M2"),
    "fp8 by row, flat": lambda *of: _fp8(*of, "flat", "F8_E4M3"),
    "fp8 by block": lambda *of: _fp8(*of, "inverse", "F8_E4M3"),
    "nf4": lambda *of: _four_bits(*of, "nf4", False),
    "nf4 nested": lambda *of: _four_bits(*of, "nf4", True),
    "fp4": lambda *of: _four_bits(*of, "fp4", False),
    "int8 of bitsandbytes": lambda *of: _int8(*of, "bitsandbytes"),
    "int8 by row": lambda *of: _int8(*of, "comfy"),
    "int8 rotated": lambda *of: _int8(*of, "rotated"),
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
}


def layer(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[Tensors, np.ndarray]:
    """A layer's tensors by the rest of their names, and its weights."""
    return KINDS[kind](np.random.default_rng(seed), rows, columns)


def write(
    path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None = None
) -> Path:
    """A safetensors file of raw tensors."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return path


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The layer's tensors under their full names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
