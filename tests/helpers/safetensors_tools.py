"""Headers of safetensors files as text, and what the reference implementation and ours make of them."""

from __future__ import annotations

import json

import pytest
import safetensors as reference
from pickle_builder import Memory
from sdsurgery.checkpoint import Contents
from sdsurgery.errors import InputRefused
from sdsurgery.formats.kinds import safetensors as ours


def file(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("utf-8")
    return len(raw).to_bytes(8, "little") + raw + data


def entry(name: str = "a", **fields: str) -> str:
    """One tensor's member of the header; by default F32 [1] at 0..4. ``None`` values are left out."""
    values = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"} | fields
    return json.dumps(name) + ":{" + ",".join(f'"{key}":{value}' for key, value in values.items() if value) + "}"


def one(**fields: str) -> str:
    return "{" + entry(**fields) + "}"


def parse(data: bytes) -> Contents:
    return ours.read(Memory(data))  # type: ignore[arg-type]


def our_view(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    tensors = parse(data).tensors
    return {t.name: (t.dtype.name, list(t.shape), data[t.offset : t.offset + t.nbytes]) for t in tensors}


def reference_view(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        found = reference.deserialize(data)
    except reference.SafetensorError:
        return None
    return {name: (info["dtype"], info["shape"], bytes(info["data"])) for name, info in found}


def reference_metadata(data: bytes, folder) -> dict[str, str]:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    with reference.safe_open(str(path), framework="np") as opened:
        return dict(opened.metadata() or {})


def refusal(data: bytes) -> str:
    with pytest.raises(InputRefused) as caught:
        parse(data)
    return str(caught.value)
