"""Mutated files of torch, thousands of them, seeded: where ``torch.load(weights_only=True)`` and this reader both
accept one, they get the same tensors.
"""

from __future__ import annotations

import io
import os
import random
import zipfile
import zlib
from collections.abc import Iterator
from struct import pack

import pytest
import torch
from pickle_builder import Memory
from sdsurgery import formats
from sdsurgery.checkpoint import Contents
from sdsurgery.errors import SdsError
from torch_support import elements, raw, saved

ROUNDS = int(os.environ.get("SDS_DIFFERENTIAL_ROUNDS", "3000"))
"""Files of each form; more by hand."""


def state() -> dict[str, object]:
    """Every kind of tensor that the reader takes, and values beside them."""
    shared = torch.arange(12.0)
    return {
        "a": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "b": shared.reshape(3, 4).t(),
        "c": shared[2:8],
        "d": torch.arange(6, dtype=torch.int16).reshape(2, 3).expand(2, 3),
        "half": torch.ones(5, dtype=torch.float16),
        "brain": torch.zeros((2, 0, 3), dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "p": torch.nn.Parameter(torch.ones(2, 2)),
        "epoch": 3,
        "inner": {"x": torch.tensor([True, False]), "y": [torch.tensor([5], dtype=torch.uint8)]},
    }


def parts(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def joined(entries: list[tuple[str, bytes]]) -> bytes:
    """A zip archive; unlike zipfile, without complaints about names that are there twice."""
    body, directory = bytearray(), bytearray()
    for name, data in entries:
        raw_name = name.encode()
        head = pack("<5H3L2H", 20, 0, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(raw_name), 0)
        directory += b"PK\1\2" + pack("<H", 20) + head + pack("<3H2L", 0, 0, 0, 0, len(body)) + raw_name
        body += b"PK\3\4" + head + raw_name + data
    end = b"PK\5\6" + pack("<4H2LH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return bytes(body + directory + end)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, put in, or taken away."""
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out))
        kind = rng.random()
        if kind < 0.6:
            out[at] = rng.choice((rng.randrange(256), out[at] ^ (1 << rng.randrange(8)), (out[at] + 1) % 256))
        elif kind < 0.75:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
        elif kind < 0.9:
            del out[at : min(at + rng.randrange(1, 4), len(out) - 1)]
        else:
            start = rng.randrange(len(out))
            out[at : at + 8] = out[start : start + 8]
    return bytes(out)


def other_name(rng: random.Random, name: str, names: list[str]) -> str:
    root, _, rest = name.partition("/")
    return rng.choice(
        (
            name.upper(), name.swapcase(), name.lower(), f"{root}/{rest.upper()}", f"{root.upper()}/{rest}",
            f"x/{rest}",
            f"{root}/x/{rest}", rest or name, rng.choice(names), f"{root}//{rest}", f"./{name}", name + "/", name + " ",
        )
    )  # fmt: skip


def mutated_zip(rng: random.Random, entries: list[tuple[str, bytes]]) -> bytes:
    """An archive whose entries, their order, names or pickle differ."""
    out = list(entries)
    names = [name for name, _ in out]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(out))
        name, data = out[at]
        kind = rng.random()
        if kind < 0.2:
            rng.shuffle(out)
        elif kind < 0.35:
            out[at] = (other_name(rng, name, names), data)
        elif kind < 0.6:  # another entry of nearly this name, with other bytes
            other = bytes(len(data)) if rng.random() < 0.7 else rng.choice(out)[1]
            out.insert(rng.randrange(len(out) + 1), (other_name(rng, name, names), other))
        elif kind < 0.65:
            del out[at]
            if not out:
                return b"PK\5\6" + bytes(18)
        else:
            at = next((index for index, (name, _) in enumerate(out) if name.endswith("data.pkl")), at)
            out[at] = (out[at][0], mutated_bytes(rng, out[at][1]))
    data = joined(out)
    return mutated_bytes(rng, data) if rng.random() < 0.1 else data


def flat(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that torch got, by dotted names as this reader has them."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
            yield from flat(item, f"{name}.{text}" if name else text)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}.{index}" if name else str(index))


def ours(data: bytes) -> Contents | None:
    source = Memory(data)
    try:
        reader = formats.recognise(source)
        return reader.read(source) if reader and reader.name.startswith("torch") else None
    except SdsError:
        return None


def theirs(data: bytes) -> object:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:
        return None


def difference(data: bytes) -> str:
    """'' when only one accepts it, or both and with the same tensors; '=' in front of the second."""
    found = ours(data)
    if found is None:
        return ""
    value = theirs(data)
    if value is None:
        return ""
    tensors = dict(flat(value))
    for info in found.tensors:
        name = info.name
        if name not in tensors:
            name = next((other for other in tensors if other.endswith(f".{name}")), name)  # ours is unwrapped
        if name not in tensors:
            return f"'{info.name}' is not in {sorted(tensors)}"
        want = tensors[name]
        if tuple(want.shape) != info.shape or elements(data, info) != raw(want):
            return f"'{info.name}' differs"
    return "="


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_both_get_the_same_tensors_or_one_refuses(form):
    rng = random.Random(f"differential {form}")
    whole = saved(state(), form)
    entries = parts(whole) if form == "zip" else []
    assert difference(whole) == "="
    same = 0
    for number in range(ROUNDS):
        data = mutated_zip(rng, entries) if entries else mutated_bytes(rng, whole)
        found = difference(data)
        assert found in ("", "="), (form, number, found)
        same += found == "="
    assert same > ROUNDS // 20  # else nothing was compared


def test_entries_whose_names_differ_in_case_are_refused_in_every_order():
    entries = parts(saved({"w": torch.tensor([1.0, 2.0, 3.0, 4.0])}))
    rng = random.Random(5)
    for _ in range(300):
        data = [*entries, ("archive/DATA/0", bytes(16))]
        rng.shuffle(data)
        assert ours(joined(data)) is None
