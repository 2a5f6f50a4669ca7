"""Builds pickles opcode by opcode, and torch files around them, so that tests can make what torch would never write."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from struct import pack

MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."


class Memory:
    """Stands in for the native Source, and fails on any read outside the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.largest = 0

    def read(self, offset: int, count: int) -> bytes:
        assert 0 <= offset <= offset + count <= self.size, "the reader asked for bytes beyond the file"
        self.largest = max(self.largest, count)
        return self.data[offset : offset + count]


# --- opcodes ---------------------------------------------------------------------------------------------------------


def pickled(*parts: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(items: Mapping[str, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    pairs = [(text(key), value) for key, value in items.items()] if isinstance(items, Mapping) else list(items)
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def call(module: str, attribute: str, *args: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*args) + b"R"


def storage(key: str, numel: int, kind: str = "FloatStorage", *more: bytes) -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), integer(numel), *more) + b"Q"


def tensor(
    shape: Iterable[int],
    stride: Iterable[int],
    *,
    key: str = "0",
    numel: int = 6,
    offset: int = 0,
    kind: str = "FloatStorage",
    flags: bytes = b"",
) -> bytes:
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(key, numel, kind),
        integer(offset),
        tuple_of(*map(integer, shape)),
        tuple_of(*map(integer, stride)),
        b"\x89",
        call("collections", "OrderedDict"),
        *([flags] if flags else []),
    )


# --- files -----------------------------------------------------------------------------------------------------------


def zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for entry, data in entries.items():
            archive.writestr(zipfile.ZipInfo(entry), data, method)
    return out.getvalue()


def torch_zip(pickle: bytes, storages: Mapping[str, bytes], *, root: str = "archive", **more: bytes) -> bytes:
    entries = {f"{root}/data.pkl": pickle}
    entries |= {f"{root}/{key}": data for key, data in more.items()}
    entries |= {f"{root}/data/{key}": data for key, data in storages.items()}
    return zipped(entries | {f"{root}/version": b"3\n"})


def legacy(pickle: bytes, storages: Mapping[str, tuple[int, bytes]], *, little: bool = True) -> bytes:
    """``storages``: key -> (number of elements, raw bytes)."""
    system = pickled(dict_of({"little_endian": b"\x88" if little else b"\x89"}))
    keys = pickled(list_of(*map(text, storages)))
    data = b"".join(pack("<q", numel) + raw for numel, raw in storages.values())
    return MAGIC + pickled(integer(1001)) + system + pickle + keys + data
