"""Pickles that run code in the real unpickler, by many routes, and a watch that notices if anything runs here."""

from __future__ import annotations

import pickle
import struct
import sys

from pickle_builder import (
    MAGIC,
    Memory,
    call,
    dict_of,
    integer,
    legacy,
    list_of,
    name,
    pickled,
    stack_name,
    tensor,
    text,
    torch_zip,
    tuple_of,
)
from sdsurgery import formats
from sdsurgery.errors import SdsError
from sdsurgery.formats.strangers import described

RECORD = struct.pack("<6f", *range(6))
GOOD_TENSOR = tensor((2, 3), (3, 1))
FORBIDDEN = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "marshal.",
    "code.",
)

watching = False
events: list[str] = []


def _audit(event: str, _: object) -> None:
    if watching and event.startswith(FORBIDDEN):
        events.append(event)


sys.addaudithook(_audit)
"x".encode("cp437")
formats.recognise(Memory(b"the readers are imported now, so that reading imports nothing"))


class Watch:
    """No event of ``FORBIDDEN`` may happen inside."""

    def __enter__(self) -> None:
        global watching  # noqa: PLW0603
        events.clear()
        watching = True

    def __exit__(self, *exc: object) -> None:
        global watching  # noqa: PLW0603
        watching = False
        assert events == [], f"reading a file caused {events[:5]}"


def answer(data: bytes, **options: bool) -> str:
    """What reading a file ends in: its format, or the one line of its refusal. Anything else is a failure."""
    source = Memory(data)
    with Watch():
        reader = formats.recognise(source)
        if reader is None:
            return described(source) or "not a checkpoint"
        try:
            found = reader.read(source, **(options if reader.name.startswith("torch") else {}))
        except SdsError as error:
            message = str(error)
            assert "\n" not in message and message.isprintable() and len(message) < 2000
            return message
    for info in found.tensors:
        span = info.nbytes
        if info.strides is not None:
            span = info.dtype.itemsize * (1 + sum((n - 1) * s for n, s in zip(info.shape, info.strides, strict=True)))
        assert 0 <= info.offset <= info.offset + span <= len(data), "a tensor outside the file"
    assert all(text.isprintable() for text in (*found.notes, *found.metadata))
    return found.format


def attacks(canary: str) -> dict[str, bytes]:
    """Pickle bodies (without PROTO and STOP) that run code in the real unpickler, by many routes."""
    command = text(f"touch {canary}")
    python = text(f"open({canary!r}, 'w').close()")
    inner = pickle.dumps({"x": 1})
    run = call("os", "system", command)
    return {
        "reduce": run,
        "reduce posix": call("posix", "system", command),
        "reduce nt": call("nt", "system", command),
        "reduce eval": call("builtins", "eval", python),
        "reduce exec": call("builtins", "exec", python),
        "reduce python 2 eval": call("__builtin__", "eval", python),
        "reduce import": call("builtins", "__import__", text("antigravity")),
        "reduce getattr": call("builtins", "getattr", name("os", "path"), text("os")),
        "reduce subprocess": call("subprocess", "check_output", list_of(text("touch"), text(canary))),
        "reduce commands": call("commands", "getoutput", command),
        "reduce runpy": call("runpy", "run_path", text(canary)),
        "reduce torch.load": call("torch", "load", text(canary)),
        "reduce torch.hub": call("torch.hub", "load", text("a/b"), text("c")),
        "nested pickle": call("pickle", "loads", b"C" + bytes([len(inner)]) + inner),
        "nested torch": call("torch.storage", "_load_from_bytes", b"C" + bytes([len(inner)]) + inner),
        "stack global": stack_name("os", "system") + tuple_of(command) + b"R",
        "memo global": text("os") + b"q\x00" + text("system") + b"q\x01h\x00h\x01\x93" + tuple_of(command) + b"R",
        "memo function": name("os", "system") + b"q\x05" + b"0h\x05" + tuple_of(command) + b"R",
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + name("os", "system") + command + b"o",
        "newobj": name("subprocess", "Popen") + tuple_of(list_of(text("touch"), text(canary))) + b"\x81",
        "newobj_ex": name("subprocess", "Popen") + b")" + dict_of({"args": text(canary)}) + b"\x92",
        "build setstate": name("a", "B") + b")\x81" + dict_of({"__setstate__": name("os", "system")}) + b"bNb",
        "build on a class": name("collections", "OrderedDict") + dict_of({"__reduce__": name("os", "system")}) + b"b",
        "extension": b"\x82\x01" + tuple_of(command) + b"R",
        "persistent id text": b"Pos.system\n",
        "persistent id call": tuple_of(text("storage"), run, text("0"), text("cpu"), integer(6)) + b"Q",
        "dotted name": name("os", "path.os.system") + tuple_of(command) + b"R",
        "dotted stack name": stack_name("builtins", "__import__.__self__.eval") + tuple_of(python) + b"R",
        "rebuild from type": call(
            "torch._tensor", "_rebuild_from_type_v2", name("os", "system"), name("a", "B"), tuple_of(command), b"N"
        ),
        "parameter of a call": call("torch._utils", "_rebuild_parameter", run, b"\x88", b"N"),
        "default factory": call("collections", "defaultdict", name("os", "system")),
        "dict of a call": call("collections", "OrderedDict", list_of(list_of(text("a"), run))),
        "partial": call("functools", "partial", name("os", "system"), command) + b")R",
        "map": call("builtins", "map", name("os", "system"), list_of(command)),
        "numpy object array": call("numpy", "load", text(canary)),
        "call of a call": run + tuple_of(command) + b"R",
        "codecs": call("_codecs", "encode", run),
        "device": call("torch", "device", run),
        "attribute of torch": call("torch._utils", "os", command),
        "popped": run + b"0" + b"N",
        "inside a list": list_of(run, GOOD_TENSOR),
        "as a key": dict_of([(run, b"N")]),
    }  # fmt: skip


NAMES = sorted(attacks("canary"))


def files(body: bytes, protocol: int = 4) -> dict[str, bytes]:
    """The attack as a whole file, as a value beside a good state dict, and inside it; zip, legacy and plain."""
    beside = dict_of({"state_dict": dict_of({"w": GOOD_TENSOR}), "evil": body})
    inside = dict_of({"w": GOOD_TENSOR, "evil": body})
    whole = pickled(body, protocol=protocol)
    return {
        "plain": whole,
        "zip whole": torch_zip(whole, {"0": RECORD}),
        "zip beside": torch_zip(pickled(beside, protocol=protocol), {"0": RECORD}),
        "zip inside": torch_zip(pickled(inside, protocol=protocol), {"0": RECORD}),
        "legacy beside": legacy(pickled(beside, protocol=protocol), {"0": (6, RECORD)}),
        "legacy magic": pickled(body, protocol=protocol) + MAGIC,
        "legacy system info": MAGIC + pickled(integer(1001)) + whole,
        "legacy keys": MAGIC + pickled(integer(1001)) + pickled(b"}") + pickled(inside) + whole,
    }
