"""``scan`` of what ``joblib.dump`` writes: arrays lie between the opcodes, and ``pickle.load`` takes them for opcodes.

The files are written byte for byte as joblib 1.6 writes them, so that joblib need not be installed.
"""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
from attacks import Watch
from pickle_builder import MAGIC, Memory, call, dict_of, integer, list_of, name, pickled, text, tuple_of
from scan_corpus import made
from sdsurgery.formats.scan import scan_source

WRAPPER = name("joblib.numpy_pickle", "NumpyArrayWrapper")
EVIL = made("/canary")
NONE, FALSE, TRUE = b"N", b"\x89", b"\x88"
PADDING = b"\x05" + b"\xff" * 5


def state(*parts: bytes, size: int = -1, flags: int = 0) -> bytes:
    """A dtype's; ``parts``: subarray, names and fields."""
    return tuple_of(integer(3), text("<"), *(parts or (NONE, NONE, NONE)), integer(size), integer(-1), integer(flags))


def dtype(kind: str, *parts: bytes, size: int = -1, flags: int = 0) -> bytes:
    return call("numpy", "dtype", text(kind), FALSE, TRUE) + state(*parts, size=size, flags=flags) + b"b"


def array(data: bytes, element: bytes, shape: bytes, *, aligned: bool = True, **more: bytes) -> bytes:
    """A wrapper, and the array's bytes behind it."""
    given = {
        "subclass": name("numpy", "ndarray"), "shape": shape, "order": text("C"), "dtype": element,
        "allow_mmap": FALSE,
    }  # fmt: skip
    given |= {"numpy_array_alignment_bytes": integer(16)} if aligned else {}
    return WRAPPER + b")\x81" + dict_of(given | more) + b"b" + data


def objects(content: bytes, *, flags: int = 63, kind: str = "O8") -> bytes:
    return array(content, dtype(kind, flags=flags), tuple_of(integer(2)))


TWO = tuple_of(integer(2))
F8 = dtype("f8")
NUMBERS = PADDING + np.array([1.5, -2.0]).tobytes()
BOXED = np.array([{"a": 1}, "b"], dtype=object)
FIELDS = (NONE, tuple_of(text("a"), text("b")))
TRIPLE = dtype("V12", tuple_of(dtype("f4"), tuple_of(integer(3))), NONE, NONE, size=12)
PARTS = dict_of({"a": tuple_of(F8, integer(0)), "b": tuple_of(TRIPLE, integer(8))})
RECORD = dtype("V20", *FIELDS, PARTS, size=20, flags=16)
SOUND = {
    "floats": array(NUMBERS, F8, TWO),
    "before alignment": array(NUMBERS[6:], F8, TWO, aligned=False),
    "in a list": list_of(array(NUMBERS, F8, TWO), text("x"), array(NUMBERS, F8, TWO)),
    "in a dict": dict_of({"x": array(NUMBERS, F8, TWO), "y": objects(pickle.dumps(BOXED, 4))}),
    "no dimensions": array(NUMBERS[:-8], F8, b")"),
    "no elements": array(b"\x00", F8, tuple_of(integer(0), integer(3))),
    "texts": array(b"\x00" + "abcdef".encode("utf-32-le"), dtype("U3", size=12, flags=8), TWO),
    "records": array(b"\x00" + bytes(40), RECORD, TWO),
    **{f"objects {protocol}": objects(pickle.dumps(BOXED, protocol)) for protocol in (2, 4, 5)},
}
STATE_OF_OBJECTS = state(flags=63)
STREAM = (MAGIC, pickled(integer(1001)), pickled(b"}"), pickled(EVIL), pickled(list_of()))
HIDDEN = b"0" + MAGIC[2:] + b"".join(STREAM[1:])
FRAMED = b"\x80\x04\x95" + (20).to_bytes(8, "little") + b"N.".ljust(20, b"N")
HOSTILE = {
    "behind an array": list_of(array(NUMBERS, F8, TWO), EVIL),
    "in objects": objects(pickled(EVIL)),
    "behind objects": list_of(objects(pickled(NONE)), EVIL),
    "for other loaders": array(b"0" + EVIL + b".", dtype("u1"), tuple_of(integer(len(EVIL) + 2)), aligned=False),
    "for torch": array(HIDDEN, dtype("u1"), tuple_of(integer(len(HIDDEN))), aligned=False),
    "a method": array(NUMBERS, F8, TWO, read=name("mailbox", "Maildir")),
    "flags of objects": objects(pickled(EVIL), kind="f8", flags=1),
    "another flag of objects": objects(pickled(EVIL), kind="V8", flags=63),
    "not a dtype": array(pickled(EVIL), call("types", "SimpleNamespace") + dict_of({"hasobject": TRUE}) + b"b", TWO),
    "NumPy's own dtype": list_of(
        call("numpy", "dtype", text("f8"), FALSE, FALSE) + state(flags=1) + b"b", array(NUMBERS, F8, TWO)
    ),
    "a dtype set twice": array(pickled(EVIL), F8 + STATE_OF_OBJECTS + b"b", TWO),
    "sizes that are not known": array(NUMBERS, F8, call("builtins", "tuple", list_of(integer(2)))),
    "sizes beyond 64 bits": array(NUMBERS, F8, tuple_of(integer(1 << 32), integer(1 << 32))),
    "a subclass": array(NUMBERS, F8, TWO, subclass=name("mailbox", "Maildir")),
    "mapped objects": array(pickled(NONE), dtype("O8", flags=63), TWO, allow_mmap=TRUE),
    "objects that end within a frame": list_of(objects(FRAMED)),
    "records that reach outside": array(
        NUMBERS, dtype("V4", *FIELDS[:1], tuple_of(text("a")), dict_of({"a": tuple_of(F8, integer(0))}), size=4), TWO
    ),
}


def verdict(data: bytes) -> tuple[str, list[str]]:
    with Watch():
        found = scan_source("x", Memory(data))
    return found.verdict, list(found.findings())


@pytest.mark.parametrize("case", SOUND)
def test_arrays_are_no_alarm(case: str) -> None:
    for data in (pickled(SOUND[case]), gzip.compress(pickled(SOUND[case], protocol=4))):
        assert verdict(data) == ("clean", [])


@pytest.mark.parametrize("case", HOSTILE)
def test_what_any_loader_would_run_is_named(case: str) -> None:
    found, findings = verdict(pickled(HOSTILE[case]))
    assert found != "clean"
    assert findings


def test_an_array_that_is_read_again_is_named() -> None:
    """joblib puts an array in the wrapper's place; the memo still has the wrapper."""
    body = WRAPPER + b")\x81q\x00" + array(b"", F8, TWO)[len(WRAPPER) + 2 :] + NUMBERS
    again = b"0h\x00" + dict_of({"dtype": dtype("O8", flags=63)}) + b"b" + pickled(EVIL)
    assert verdict(pickled(body))[0] == "clean"
    assert verdict(pickled(body + again))[0] != "clean"


def test_an_array_inside_a_frame_is_named() -> None:
    """joblib reads it behind the frame, and goes on with what is left of the frame."""
    body = array(b"", F8, TWO)
    framed = b"\x80\x04\x95" + (len(body) + 2).to_bytes(8, "little") + body + b"0."
    assert verdict(framed + NUMBERS)[0] != "clean"
    exact = b"\x80\x04\x95" + len(body).to_bytes(8, "little") + body + NUMBERS + b"."
    assert verdict(exact) == ("clean", [])


def test_a_cut_file_is_no_clean_one() -> None:
    whole = pickled(SOUND["floats"])
    assert {verdict(whole[:size])[0] for size in range(len(whole) - 20, len(whole))}.isdisjoint(("clean",))
