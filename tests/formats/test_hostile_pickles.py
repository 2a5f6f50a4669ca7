"""Files made to harm: whatever they try, no code runs, nothing crashes or grows, and the answer is one clear line.

Every attack would create a canary file (or print, or import) if any part of it ran. An audit hook watches for imports,
executions and file or process events while a hostile file is being read.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zipfile

import pytest
from attacks import GOOD_TENSOR, NAMES, RECORD, Watch, answer, attacks, files
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
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
    zipped,
)
from sdsurgery import formats
from sdsurgery.errors import InputRefused
from sdsurgery.formats.kinds import torch_legacy
from sdsurgery.formats.kinds import torch_zip as zip_format
from sdsurgery.formats.pickle_graph import MAX_NODES
from sdsurgery.formats.scan import scan_source


@pytest.mark.parametrize("attack", NAMES)
def test_no_attack_runs_and_each_is_refused_in_one_line(attack, canary):
    for form, data in files(attacks(canary)[attack]).items():
        message = answer(data)
        assert not message.startswith("torch-"), f"{form} was accepted"


@pytest.mark.parametrize("attack", NAMES)
def test_allow_suspicious_reads_the_tensors_and_still_runs_nothing(attack, canary):
    data = files(attacks(canary)[attack])
    strict = answer(data["zip beside"])
    lenient = answer(data["zip beside"], allow_suspicious=True)
    assert (lenient == "torch-zip") is strict.startswith("suspicious:")
    assert answer(data["legacy beside"], allow_suspicious=True).startswith("torch-") is (lenient == "torch-zip")


def test_the_attacks_are_real(canary, tmp_path):
    """The same bodies do run code in the real unpickler (a few, in a child process), so the tests above mean
    something.
    """
    bodies = attacks(canary)
    for attack in ("reduce", "stack global", "memo global", "inst", "obj", "inside a list", "popped"):
        body = bodies[attack].replace(storage("0", 6), b"N")
        path = tmp_path / "attack"
        path.write_bytes(pickled(body, protocol=4))
        code = "import pickle, sys\ntry: pickle.load(open(sys.argv[1], 'rb'))\nexcept Exception: pass"
        subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True)
        assert os.path.exists(canary), attack
        os.unlink(canary)


# --- blow-ups --------------------------------------------------------------------------------------------------------


def shared_text() -> bytes:
    """One text, referred to by two million opcodes."""
    return pickled(text("x" * 60_000) + b"\x94" + b"(" + b"h\x00" * 1_900_000 + b"t0", protocol=4)


def wide_nodes() -> bytes:
    """As many containers, memo entries, and as much text as the limits allow, in 64 MiB."""
    half = MAX_NODES // 2 - 10
    body = b"(" + b"]\x94" * half + b"}\x94" * (half - 300) + text("\U0001f600" * 15_000) * 99
    body += b"B" + struct.pack("<I", 28 << 20) + random.Random(1).randbytes(28 << 20) + b"t"  # hard to compress
    return pickled(body, protocol=4)


def wide_objects() -> bytes:
    """Unknown objects with items, all in the memo."""
    each = b"h\x00)\x81Na\x94"
    body = (
        name("a", "B")
        + b"\x940("
        + each * (MAX_NODES - 100)
        + b"B"
        + struct.pack("<I", 60 << 20)
        + bytes(60 << 20)
        + b"t"
    )
    return pickled(body, protocol=4)


def wide_tensors() -> bytes:
    """Tensors of different shapes, all in the memo."""
    shapes = tuple_of(*[b"K\x01"] * 3) + b"\x94"
    head = storage("0", 6) + b"\x940" + shapes + b"0" + name("torch._utils", "_rebuild_tensor") + b"\x940"
    each = b"h\x02(h\x00K\x00h\x01h\x01tR\x94"
    body = head + b"(" + each * (MAX_NODES // 2 - 100) + b"B" + struct.pack("<I", 60 << 20) + bytes(60 << 20) + b"t"
    return pickled(body, protocol=4)


def many_tensors() -> bytes:
    """The same tensor under 100,000 long names."""
    keys = b"".join(text(f"{'k' * 60}{i}") + b"h\x00" for i in range(100_000))
    return pickled(GOOD_TENSOR + b"\x94" + b"0}(" + keys + b"u", protocol=4)


def long_names() -> bytes:
    """A key of 60,000 characters over a hundred thousand tensors: their dotted names would take 6 GB."""
    keys = b"".join(text(str(i)) + b"h\x00" for i in range(90_000))
    inner = b"}(" + keys + b"u"
    return pickled(GOOD_TENSOR + b"\x94" + b"0}(" + text("k" * 60_000) + inner + b"u", protocol=4)


def looping_wrappers() -> bytes:
    """A huge dict without tensors that lies under every wrapper's key, itself included."""
    keys = b"".join(text(str(i)) + b"N" for i in range(150_000))
    wrappers = b"".join(
        text(key) + b"h\x00" for key in ("state_dict", "model", "module", "net", "params", "ema", "unet")
    )
    return pickled(b"}\x94(" + keys + wrappers + b"u", protocol=4)


def shared_metadata(many: bool) -> bytes:
    """Metadata of one text, referred to so often that it would take 6 or 23 GB if it were put together."""
    once = text("x" * 60_000) + b"\x940"
    texts = b"".join(text(str(i)) + b"h\x00" for i in range(100_000)) if many else b""
    body = (
        b"}" + once + b"(" + texts + b"u"
        if many
        else dict_of([(text("a"), b"]" + once + b"(" + b"h\x00" * 390_000 + b"e")])
    )
    return pickled(dict_of({"state_dict": dict_of({"w": GOOD_TENSOR}), "__metadata__": body}), protocol=4)


def shared_lists() -> bytes:
    """A list of 100,000 items, referred to 100,000 times."""
    items = b"](" + b"N" * 100_000 + b"e\x94"
    return pickled(items + b"0](" + b"h\x00" * 100_000 + GOOD_TENSOR + b"e", protocol=4)


def many_shapes() -> bytes:
    """A shape of 64 dimensions, shared by a hundred thousand tensors."""
    shape = tuple_of(*[b"K\x01"] * 64) + b"\x94"
    head = storage("0", 6) + b"\x940" + shape + b"0" + name("torch._utils", "_rebuild_tensor") + b"\x940"
    return pickled(head + b"](" + b"h\x02(h\x00K\x00h\x01h\x01tR" * 100_000 + b"e", protocol=4)


BOMBS = {
    "shared text": lambda: torch_zip(shared_text(), {}),
    "wide": lambda: torch_zip(wide_nodes(), {}),
    "wide objects": lambda: torch_zip(wide_objects(), {}),
    "wide tensors": lambda: torch_zip(wide_tensors(), {"0": RECORD}),
    "wide legacy": lambda: MAGIC + pickled(integer(1001)) + pickled(b"}") + wide_nodes(),
    "wide deflated": lambda: zipped({"a/data.pkl": wide_nodes()}, zipfile.ZIP_DEFLATED),
    "many tensors": lambda: torch_zip(many_tensors(), {"0": RECORD}),
    "long names": lambda: torch_zip(long_names(), {"0": RECORD}),
    "looping wrappers": lambda: torch_zip(looping_wrappers(), {}),
    "shared lists": lambda: torch_zip(shared_lists(), {"0": RECORD}),
    "many shapes": lambda: torch_zip(many_shapes(), {"0": RECORD}),
    "long metadata": lambda: torch_zip(shared_metadata(many=False), {"0": RECORD}),
    "many metadata": lambda: torch_zip(shared_metadata(many=True), {"0": RECORD}),
    "text opcodes": lambda: b"(lp1\n" + b"N0" * (32 << 20),
    "text opcodes in turn": lambda: b"N.".join([b"(lp1\n" + b"N0" * 900_000] * 30),
    "many entries": lambda: zipped({f"a/data/{i}": b"" for i in range(60_000)}),
    "many names": lambda: torch_zip(
        wide_nodes(), {f"{'k' * 100}{i}\U0001f600": b"" for i in range(15_000)}, **{str(i): b"" for i in range(30_000)}
    ),
    "many nested pickles": lambda: zipped({f"a/{i}.pkl": pickled(b"N0" * 100_000 + b"N") for i in range(200)}),
    "marks": lambda: torch_zip(pickled(b"(" * 3_000_000), {}),
    "64 MiB of opcodes": lambda: torch_zip(pickled(b"N0" * (32 << 20)), {}),
    "deep": lambda: torch_zip(pickled(b"N" + b"\x85" * 390_000), {}),
    "deep calls": lambda: torch_zip(pickled(name("a", "b") + b")R" * 390_000), {}),
}
AS_WIDE = {
    "wide",
    "many tensors",
    "wide legacy",
    "wide objects",
    "wide deflated",
    "text opcodes in turn",
    "deep calls",
    "long metadata",
}
"""Others of the same kind in another wrapping, at the same limit."""
PROBE = """
import sys, time
from sdsurgery.checkpoint import open_checkpoint
from sdsurgery.errors import SdsError
from sdsurgery.formats.scan import scan
begin = time.perf_counter()
try:
    with open_checkpoint(sys.argv[1]) as checkpoint:
        print("tensors", len(checkpoint))
except SdsError as error:
    print(str(error)[-150:])
opened = time.perf_counter()
scan(sys.argv[1])
print(f"{opened - begin:.2f} s, scan {time.perf_counter() - opened:.2f} s")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    "bomb", [pytest.param(name, marks=pytest.mark.slow) if name in AS_WIDE else name for name in BOMBS]
)
def test_no_file_takes_more_than_256_mib(bomb, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[bomb]())
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    *shown, peak = done.stdout.splitlines()
    print(bomb, *shown, f"{int(peak) >> 10} MiB")
    assert int(peak) < 256 << 10


# --- fuzzing ---------------------------------------------------------------------------------------------------------

CASES = 60_000
PROTOCOL_0 = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"(S'x'\nia.b\nC\np0\n.",
    b"(dp0\nVa\np1\n(lp2\nI1\naF2.5\nag1\nas.",
    b"L119547037146038801333356L\n.I1001\n.(dp0\n.Vos\nVsystem\nV!\n0\x93(Vtrue\ntR.",
)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, *b"(RbctuQ.\x81\x85\x93\x94sa0jhqr")


def seeds(canary: str) -> list[bytes]:
    dtype = call("numpy", "dtype", text("f8"), b"\x89", b"\x88") + tuple_of(integer(3), text("<"), b"N") + b"b"
    array = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), tuple_of(integer(0)), b"C\x01b")
    array += tuple_of(integer(1), tuple_of(integer(2)), dtype, b"\x89", b"C\x10" + bytes(16)) + b"b"
    plain = pickled(dict_of({"w": GOOD_TENSOR, "v": tensor((3,), (2,)), "n": integer(3)}))
    lightning = dict_of(
        {
            "epoch": integer(3),
            "state_dict": dict_of({"a": GOOD_TENSOR, "b": call("torch._utils", "_rebuild_parameter", GOOD_TENSOR)}),
            "callbacks": dict_of([(name("a.b", "C"), call("a.b", "C", text("x")) + dict_of({"k": b"N"}) + b"b")]),
            "scalar": call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("f8")), b"C\x08" + bytes(8)),
            "array": array,
            "set": b"\x8f(K\x01K\x02\x90",
            "hyper": call("collections", "OrderedDict", list_of(list_of(text("lr"), b"G" + bytes(8)))),
        }
    )  # fmt: skip
    bodies = [plain, pickled(lightning, protocol=4)]
    bodies += [pickled(dict_of({"w": GOOD_TENSOR, "e": body}), protocol=4) for body in attacks(canary).values()]
    return bodies


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out))
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice(INTERESTING)
        elif kind == 2:
            out[at:at] = bytes([rng.choice(INTERESTING)]) * rng.choice((1, 2, 40))
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8))]
        elif kind == 4:
            begin = rng.randrange(len(other))
            out[at:at] = other[begin : begin + rng.randrange(1, 40)]
        elif kind == 5:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)))
        elif kind == 6:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**32, 2**63 - 1, 2**63, 2**64 - 1)))
        else:
            begin = rng.randrange(len(out))
            out[at:at] = out[begin : begin + rng.randrange(1, 60)]
        if not out:
            return b"."
    return bytes(out)


def fuzz_case(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A hostile file: a mutated pickle in a sound container, a mutated container, or a mutated pickle of protocol 0."""
    pickle_, other = rng.choice(corpus), rng.choice(corpus)
    if rng.random() < 0.1:
        return mutated(rng, rng.choice(PROTOCOL_0), rng.choice(PROTOCOL_0))
    if rng.random() < 0.7:
        pickle_ = mutated(rng, pickle_, other)
        return torch_zip(pickle_, {"0": RECORD}) if rng.random() < 0.5 else legacy(pickle_, {"0": (6, RECORD)})
    sound = torch_zip(pickle_, {"0": RECORD}) if rng.random() < 0.7 else legacy(pickle_, {"0": (6, RECORD)})
    return mutated(rng, sound, other)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_sixty_thousand_mutated_files_do_no_harm(part, canary):
    rng = random.Random(f"hostile {part}")
    corpus = seeds(canary)
    accepted = 0
    for case in range(CASES // 4):
        data = fuzz_case(rng, corpus)
        accepted += answer(data, allow_suspicious=case % 2 == 0).startswith("torch-")
        if case % 10 == 0:
            with Watch():
                scan_source("x", Memory(data))
    assert accepted > CASES // 400, "the mutations are too violent to reach anything"
    assert not os.path.exists(canary)


def test_files_of_random_bytes_do_no_harm():
    rng = random.Random(7)
    for case in range(2000):
        head = rng.choice((b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", MAGIC, b"PK\x05\x06", b"c", b"("))
        data = head + rng.randbytes(rng.randrange(200))
        answer(data)
        if case % 4 == 0:
            scan_source("x", Memory(data))


def test_readers_are_reached_by_the_registry():
    assert formats.recognise(Memory(torch_zip(pickled(b"}"), {}))) is zip_format.FORMAT
    assert formats.recognise(Memory(legacy(pickled(b"}"), {}))) is torch_legacy.FORMAT
    with pytest.raises(InputRefused):
        zip_format.read(Memory(b"PK\x03\x04" + bytes(40)))
