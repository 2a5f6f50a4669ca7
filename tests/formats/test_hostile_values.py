"""Pickles and archives whose values are not what a reader expects: each is read unchanged, or refused in one line."""

from __future__ import annotations

import io
import zipfile
from struct import pack

import pytest
import sdsurgery
from attacks import GOOD_TENSOR, RECORD, answer
from pickle_builder import (
    MAGIC,
    call,
    dict_of,
    integer,
    legacy,
    list_of,
    name,
    pickled,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
    zipped,
)
from sdsurgery.errors import InputRefused
from sdsurgery.formats.scan import scan


def file(body: bytes) -> bytes:
    return torch_zip(pickled(body, protocol=4), {"0": RECORD})


def with_tensor(**more: bytes) -> bytes:
    return file(dict_of({"w": GOOD_TENSOR, **more}))


def weight(value: bytes) -> bytes:
    return file(dict_of({"w": value}))


def rebuilt(key: bytes, view: bytes = b"", size: int = 6) -> bytes:
    """A tensor of a storage with any key, and any view of it."""
    parts = (text("storage"), name("torch", "FloatStorage"), key, text("cpu"), integer(6), *([view] if view else []))
    stored = tuple_of(*parts) + b"Q"
    return call("torch._utils", "_rebuild_tensor", stored, integer(0), tuple_of(integer(size)), tuple_of(integer(1)))


def large(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


class _Unseekable(io.RawIOBase):
    """A stream into which zipfile writes sizes behind the data (data descriptors)."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        self.kept += data
        return len(data)


def streamed(entries: dict[str, bytes]) -> bytes:
    out = _Unseekable()
    with zipfile.ZipFile(out, "w") as archive:
        for entry, data in entries.items():
            with archive.open(zipfile.ZipInfo(entry), "w") as target:
                target.write(data)
    return bytes(out.kept)


ENTRIES = {"a/data.pkl": pickled(dict_of({"w": GOOD_TENSOR}), protocol=4), "a/data/0": RECORD, "a/version": b"3\n"}
SOUND = zipped(ENTRIES)
STATE = dict_of({"a": b"N"})
CYCLE = name("a", "B") + b")\x81\x94h\x00b"  # an object that is its own state

READ = {
    "memo of the largest index": file(dict_of({"w": GOOD_TENSOR}) + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff"),
    "keys that no dict can have": file(dict_of([(list_of(b"N"), b"N"), (b"}", b"N"), (text("w"), GOOD_TENSOR)])),
    "a tensor for a key": file(dict_of([(GOOD_TENSOR, b"N"), (text("w"), GOOD_TENSOR)])),
    "state for a set": with_tensor(x=b"\x8f" + STATE + b"b"),
    "state for a list": with_tensor(x=b"]" + STATE + b"b"),
    "state for a tensor": with_tensor(x=GOOD_TENSOR + STATE + b"b"),
    "a dict made by NEWOBJ": file(
        name("collections", "OrderedDict") + b")\x81(" + text("w") + GOOD_TENSOR + b"u" + STATE + b"b"
    ),
    "a cycle of wrappers": file(b"}\x94(" + text("state_dict") + b"h\x00" + text("w") + GOOD_TENSOR + b"u"),
    "a cycle of lists": with_tensor(x=b"]\x94(h\x00h\x00e"),
    "a cycle of objects": with_tensor(x=CYCLE),
    "an argument that contains itself": with_tensor(x=name("a", "B") + b"]\x94h\x00a\x85R"),
    "tuples 300,000 deep": with_tensor(x=b"N" + b"\x85" * 300_000),
    "dicts 9,000 deep": file(dict_of({"w": GOOD_TENSOR})[:-1] + (text("k") + b"}(") * 9000 + b"u" * 9000 + b"u"),
    "an empty tensor of 2⁶² rows": file(dict_of({"w": GOOD_TENSOR, "x": tensor((1 << 62, 0), (1, 1), offset=1 << 62)})),
    "64 dimensions": file(dict_of({"w": GOOD_TENSOR, "x": tensor((1,) * 64, (7,) * 64)})),
    "a storage of two types": file(dict_of({"w": GOOD_TENSOR, "x": tensor((3,), (1,), kind="DoubleStorage", numel=3)})),
    "a NumPy scalar of an odd dtype": with_tensor(
        x=call(
            "numpy.core.multiarray",
            "scalar",
            call("numpy", "dtype", text("f8")) + tuple_of(b"]", b"]") + b"b",
            b"C\x08" + bytes(8),
        )
    ),
    "a NumPy scalar of no dtype": with_tensor(
        x=call("numpy.core.multiarray", "scalar", call("numpy", "dtype", integer(8)), b"C\x08" + bytes(8))
    ),
    "a frame that is too long": torch_zip(
        b"\x80\x04\x95" + pack("<Q", 1 << 63) + dict_of({"w": GOOD_TENSOR}) + b".", {"0": RECORD}
    ),
    "names for a terminal": file(dict_of({"w": GOOD_TENSOR, "a\x1b[31m\n\u202e\0b": GOOD_TENSOR, "": GOOD_TENSOR})),
    "text with half a surrogate": file(
        dict_of({"state_dict": dict_of({"w": GOOD_TENSOR}), "x\ud800": text("y\ud800\n")})
    ),
    "sizes behind the data": streamed(ENTRIES),
    "an archive with a comment": SOUND[:-2] + pack("<H", 5) + b"hello",
    "a folder called data.pkl": zipped({"a/data.pkl/": b"", **ENTRIES}),
    "system information of lists": MAGIC
    + pickled(integer(1001))
    + pickled(dict_of([(b"]", b"]"), (text("little_endian"), b"]")]))
    + pickled(dict_of({"w": GOOD_TENSOR}))
    + pickled(list_of(text("0")))
    + pack("<q", 6)
    + RECORD,
}

REFUSED = {
    **{
        f"state for {kind}": (with_tensor(x=target + STATE + b"b"), "BUILD on a")
        for kind, target in {
            "a tuple": b")",
            "a number": integer(3),
            "a text": text("x"),
            "None": b"N",
            "a class": name("a", "B"),
            "a storage": storage("0", 6),
        }.items()
    },
    "a number and a text for one name": (
        file(dict_of([(integer(1), GOOD_TENSOR), (text("1"), GOOD_TENSOR)])),
        "'1' appears twice",
    ),
    "bytes and a text for one name": (
        file(dict_of([(b"C\x01a", b"N"), (text("a"), GOOD_TENSOR)])),
        "'a' appears twice",
    ),
    "a dotted name twice": (
        file(dict_of({"a": dict_of({"b": GOOD_TENSOR}), "a.b": GOOD_TENSOR})),
        "'a.b' appears twice",
    ),
    "half a surrogate in a name": (file(dict_of({"a\ud800b": GOOD_TENSOR})), r"a\ud800b"),
    "a size of 63 bits": (weight(tensor(((1 << 63) - 1,), (1,))), "reaches element"),
    "a size of 200 bits": (
        weight(
            call(
                "torch._utils",
                "_rebuild_tensor",
                storage("0", 6),
                integer(0),
                tuple_of(large(1 << 200)),
                tuple_of(integer(1)),
            )
        ),
        "damaged tensor shape",
    ),
    "a product over 64 bits": (weight(tensor((1 << 40, 1 << 40), (0, 0))), "overlapping elements"),
    "a storage of 2⁶² elements": (weight(tensor((2, 3), (3, 1), numel=1 << 62)), "has 24 bytes"),
    "an offset of 63 bits": (weight(tensor((1,), (1,), offset=(1 << 63) - 1)), "reaches element"),
    "a scalar behind the end": (weight(tensor((), (), offset=6)), "reaches element 6"),
    "a negative stride": (weight(tensor((2,), (-1,), offset=3)), "negative"),
    "a terabyte of one element": (weight(tensor((1 << 40,), (0,))), "overlapping elements"),
    "a thousand tensors of 64 MiB of one element": (
        file(dict_of({f"w{i}": tensor((1 << 24,), (0,)) for i in range(1000)})),
        "67108864000 bytes would be made of 24",
    ),
    "65 dimensions": (weight(tensor((1,) * 65, (1,) * 65)), "65 dimensions"),
    "a list for a storage's key": (weight(rebuilt(list_of(text("0")))), "damaged storage key"),
    "a path for a storage's key": (weight(rebuilt(text("../data/0"))), "'../data/0' is missing"),
    "a text for a persistent id": (file(text("0") + b"Q"), "damaged persistent id"),
    "a text of 4 GB": (file(b"X\xff\xff\xff\xffabc"), "more than the limit"),
    "bytes of 8 EB": (file(b"\x8e" + pack("<Q", 1 << 63) + b"abc"), "more than the limit"),
    "an integer of 2 GB": (file(b"\x8b" + pack("<i", (1 << 31) - 1) + b"abc"), "more than the limit"),
    "triples for a dict": (
        file(call("collections", "OrderedDict", list_of(tuple_of(text("v"), b"N", b"N")))),
        "damaged dict",
    ),
    "a parameter of nothing": (weight(call("torch._utils", "_rebuild_parameter")), "holds no tensors"),
    "an end record in the comment": (
        SOUND[:-2] + pack("<H", 22) + b"PK\x05\x06" + bytes(18),
        "not where the end record says",
    ),
    "an archive in the comment": (SOUND[:-2] + pack("<H", len(SOUND)) + SOUND, "not where the end record says"),
    "an archive behind the archive": (SOUND + SOUND, "not where the end record says"),
    "NUL in an entry's name": (SOUND.replace(b"a/version", b"a/ve\0sion"), r"a/ve\x00sion"),
    "an entry's name that is not UTF-8": (
        zipped({**ENTRIES, "a/vé": b""}).replace("vé".encode(), b"v\xff\xff"),
        "not UTF-8",
    ),
    "a drive": (zipped({**ENTRIES, "C:/x": b""}), "outside"),
    "backslashes": (zipped({**ENTRIES, "a\\..\\x": b""}), "outside"),
    "another root in front": (zipped({"b/x": b"", **ENTRIES}), "has no b/data.pkl"),
    "a byteorder of no meaning": (zipped({**ENTRIES, "a/byteorder": b"little\0"}), "byteorder"),
    "LZMA": (zipped(ENTRIES, zipfile.ZIP_LZMA), "method 14"),
    "a legacy key twice": (
        MAGIC
        + pickled(integer(1001))
        + pickled(b"}")
        + pickled(dict_of({"w": GOOD_TENSOR}))
        + pickled(list_of(text("0"), integer(0)))
        + pack("<q", 6)
        + RECORD,
        "listed twice",
    ),
    "a legacy storage of -1 elements": (
        legacy(pickled(dict_of({"w": tensor((0,), (1,), numel=-1)})), {"0": (-1, b"")}),
        "-1 elements",
    ),
    "a legacy view behind the end": (
        legacy(
            pickled(dict_of({"w": rebuilt(text("0"), tuple_of(text("v"), integer(5), integer(2)), 2)})),
            {"0": (6, RECORD)},
        ),
        "leaves a storage of 6",
    ),
    "a zip behind a legacy stream's magic number": (MAGIC + SOUND, "of protocol 0 or 1"),
}


@pytest.mark.parametrize("case", READ)
def test_odd_values_do_not_stop_the_tensors_from_being_read(case, tmp_path):
    assert answer(READ[case]).startswith("torch-")
    (tmp_path / "x.ckpt").write_bytes(READ[case])
    sdsurgery.convert(tmp_path / "x.ckpt", out=tmp_path / "y.safetensors", sync=False)
    with sdsurgery.open(tmp_path / "y.safetensors") as found:
        assert found.read(found.info("w")) == RECORD
    assert not scan(tmp_path / "x.ckpt").suspicious


@pytest.mark.parametrize("case", REFUSED)
def test_odd_values_are_refused_in_one_line(case, tmp_path):
    data, words = REFUSED[case]
    assert words in answer(data)
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(InputRefused):
        sdsurgery.convert(tmp_path / "x.ckpt", out=tmp_path / "y.safetensors", sync=False)
    assert not (tmp_path / "y.safetensors").exists()
    scan(tmp_path / "x.ckpt")


def test_metadata_that_repeat_a_text_without_end_are_left_out(tmp_path):
    keys = b"".join(text(str(i)) + b"h\x00" for i in range(1000))
    metadata = b"}" + text("x" * 60_000) + b"\x940(" + keys + b"u"
    (tmp_path / "x.ckpt").write_bytes(
        file(dict_of({"state_dict": dict_of({"w": GOOD_TENSOR}), "__metadata__": metadata}))
    )
    with sdsurgery.open(tmp_path / "x.ckpt") as found:
        assert sum(map(len, found.metadata().values())) <= 24 << 20
        assert any("metadata of more than 24 MiB were left out" in note for note in found.notes)
