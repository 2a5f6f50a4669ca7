"""Files for ``scan``: hostile ones of many kinds, each with the loader that falls for it.

Every hostile file would create the folder ``canary`` if its loader ran it (``LOADERS``, in a child process).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import signal
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from struct import pack

import torch
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
    text,
    torch_zip,
    tuple_of,
)
from scan_methods import methods

LOADERS = {
    "pickle": "import pickle\nwith open(path, 'rb') as f:\n    while True: pickle.load(f)",
    "memory": "import io, pickle; pickle.load(io.BytesIO(open(path, 'rb').read()))",
    "python": "import pickle\nwith open(path, 'rb') as f:\n    while True: pickle._load(f)",
    "torch": "import torch; torch.load(path, weights_only=False)",
    "twice": "import torch\nwith open(path, 'rb') as f:\n    while True: torch.load(f, weights_only=False)",
    "numpy": "import numpy; found = numpy.load(path, allow_pickle=True)\nfor key in found: found[key]",
    "gzip": "import gzip, pickle; pickle.load(gzip.open(path))",
    "bz2": "import bz2, pickle; pickle.load(bz2.open(path))",
    "lzma": "import lzma, pickle; pickle.load(lzma.open(path))",
    "zlib": "import zlib, pickle; pickle.loads(zlib.decompress(open(path, 'rb').read()))",
}
"""How a program loads each kind; ``path`` is the file. Run in a child process by ``run_loader``."""

GOOD = dict_of(
    {
        "w": call(
            "torch._utils",
            "_rebuild_tensor_v2",
            storage("0", 6, "FloatStorage", b"N"),
            integer(0),
            tuple_of(integer(2), integer(3)),
            tuple_of(integer(3), integer(1)),
            b"\x89",
            call("collections", "OrderedDict"),
        )
    }
)
RECORD = pack("<6f", *range(6))
TORCH_NUMBER = 0x1950A86A20F9469CFC6C

Corpus = dict[str, tuple[str, bytes]]  # name: loader, file


def made(canary: str) -> bytes:
    """A body that makes the folder."""
    return call("os", "mkdir", text(canary))


def calls(canary: str) -> Corpus:
    """Plain pickles: functions and ways to reach them that no list of names is complete without."""
    path, write = text(canary), text("w")
    code = text(f"import os; os.mkdir({canary!r})")
    expression = text(f"__import__('os').mkdir({canary!r})")
    command = text(f"mkdir {canary}")
    words = list_of(text("mkdir"), path)
    wild = name("mailbox", "Maildir")  # makes a folder, and stands in no list of dangerous names
    bodies = {
        "os.mkdir": made(canary),
        "posix.mkdir": call("posix", "mkdir", path),
        "os.makedirs": call("os", "makedirs", path),
        "os.popen": call("os", "popen", command),
        "subprocess.run": call("subprocess", "run", words),
        "commands.getoutput": call("commands", "getoutput", command),
        "cStringIO.open": call("cStringIO", "open", path, write),
        "StringIO.open": call("StringIO", "open", path, write),
        "io.open": call("io", "open", path, write),
        "_io.FileIO": call("_io", "FileIO", path, write),
        "codecs.open": call("codecs", "open", path, write),
        "builtins.eval": call("builtins", "eval", expression),
        "__builtin__.execfile": call("builtins", "exec", code),
        "builtins.__getattribute__": call("builtins", "__getattribute__", text("eval")) + tuple_of(expression) + b"R",
        "builtins.__dict__": call("operator", "getitem", name("builtins", "__dict__"), text("eval"))
        + tuple_of(expression)
        + b"R",
        "operator.call": call("operator", "call", wild, path),
        "typing._eval_type": call("typing", "_eval_type", call("typing", "ForwardRef", expression), b"}", b"}"),
        "dataclasses._create_fn": call(
            "dataclasses",
            "_create_fn",
            text("f"),
            tuple_of(text("a=" + f"__import__('os').mkdir({canary!r})")),
            tuple_of(text("pass")),
        ),
        "numpy open_memmap": call(
            "numpy.lib.format", "open_memmap", path, text("w+"), name("builtins", "float"), tuple_of(integer(1))
        ),
        "numpy.memmap": call("numpy", "memmap", path, text("uint8"), text("w+"), integer(0), tuple_of(integer(1))),
        "numpy.savetxt": call("numpy", "savetxt", path, list_of(integer(1))),
        "torch.save": call("torch", "save", integer(1), path),
        "torch.serialization.save": call("torch.serialization", "save", integer(1), path),
        "mailbox.Maildir": call("mailbox", "Maildir", path),
        "logging.FileHandler": call("logging", "FileHandler", path),
        "logging.handlers": call("logging.handlers", "WatchedFileHandler", path),
        "sqlite3.connect": call("sqlite3", "connect", path),
        "zipfile.ZipFile": call("zipfile", "ZipFile", path, write),
        "timeit": call("timeit", "timeit", code, text("pass"), name("time", "perf_counter"), integer(1)),
        "cProfile.run": call("cProfile", "run", code),
        "pydoc.pipepager": call("pydoc", "pipepager", text("x"), command),
        "shutil.copytree": call("shutil", "copytree", text("/etc/apt/apt.conf.d"), path),
        "multiprocessing": call(
            "multiprocessing.util", "spawnv_passfds", b"C\x0a/bin/mkdir", list_of(text("mkdir"), path), tuple_of()
        ),
        "zipapp": call("venv", "create", path),
        "pathlib dotted": name("pathlib", "Path.mkdir") + tuple_of(call("pathlib", "Path", path)) + b"R",
        "xml": call(
            "xml.etree.ElementTree",
            "ElementTree.write",
            call("xml.etree.ElementTree", "ElementTree", call("xml.etree.ElementTree", "Element", text("a"))),
            path,
        ),
        "map in list": call("builtins", "list", call("builtins", "map", name("os", "mkdir"), list_of(path))),
        "functools.partial": call("functools", "partial", wild, path) + b")R",
        "functools.reduce": call("functools", "reduce", name("os", "mkdir"), list_of(path, integer(0o700))),
        "itertools.starmap": call("builtins", "list", call("itertools", "starmap", wild, list_of(tuple_of(path)))),
        "defaultdict in a ChainMap": call(
            "collections",
            "OrderedDict",
            call(
                "collections",
                "ChainMap",
                call("collections", "defaultdict", call("functools", "partial", wild, path)),
                dict_of({"k": b"N"}),
            ),
        ),
        "setstate in the state": name("collections", "OrderedDict")
        + b")R"
        + dict_of({"__setstate__": wild})
        + b"b"
        + path
        + b"b",
        "setstate in slots": name("collections", "OrderedDict")
        + b")R"
        + tuple_of(b"N", dict_of({"__setstate__": wild}))
        + b"b"
        + path
        + b"b",
        "setstate by items": name("collections", "OrderedDict")
        + b")R"
        + call("collections", "OrderedDict", list_of(list_of(text("__setstate__"), wild)))
        + b"b"
        + path
        + b"b",
        "append in the state": name("collections", "OrderedDict")
        + b")R"
        + dict_of({"append": wild})
        + b"b"
        + path
        + b"a",
        "append of a namespace": name("argparse", "Namespace") + b")R" + dict_of({"append": wild}) + b"b" + path + b"a",
        "rebuild from type": call(
            "torch._tensor", "_rebuild_from_type_v2", wild, name("torch", "Tensor"), tuple_of(path), b"N"
        ),
        "reconstructor": call("copyreg", "_reconstructor", wild, name("builtins", "object"), b"N")
        + dict_of({"a": made(canary)})
        + b"b",
        "newobj of a class": name("_io", "FileIO") + tuple_of() + b"\x81" + b"0" + made(canary),
        "generator constructor": call("numpy.random._pickle", "__generator_ctor", path, wild),
        "inst": b"(" + path + b"imailbox\nMaildir\n",
        "obj": b"(" + wild + path + b"o",
        "build on a class": name("argparse", "Namespace")
        + tuple_of(b"N", dict_of({"__setstate__": wild}))
        + b"b0"
        + name("argparse", "Namespace")
        + b")\x81"
        + path
        + b"b",
        "escaped names": b"V\\u006fs\nV\\u006dkdir\n\x93" + tuple_of(path) + b"R",
        "escaped bytes": b"S'o\\x73'\nS'mk\\144ir'\n\x93" + tuple_of(path) + b"R",
        "names from the memo": text("mkdir") + b"q\x070" + text("os") + b"h\x07\x93" + tuple_of(path) + b"R",
        "names duplicated and popped": text("os")
        + text("mkdir")
        + text("x")
        + b"20"
        + b"0\x93"
        + tuple_of(path)
        + b"R",
        "no stop": made(canary),
        "runs and then fails": made(canary) + b"\xff",
        "argument by a mark": b"(" + name("os", "mkdir") + b"0" + made(canary) + b"1N",
        "as a key": dict_of([(made(canary), b"N")]),
        "within a list": list_of(integer(1), made(canary)),
    }
    found: Corpus = {}
    for key, body in bodies.items():
        stop = b"" if key == "no stop" else b"."
        protocol = 4 if "dotted" in key or key == "xml" or b"\x93" in body else 2
        found[key] = ("pickle", b"\x80" + bytes([protocol]) + body + stop)
    found["pure Python"] = ("python", b"\x80\x02" + made(canary) + b".")
    return found


def plain(canary: str) -> Corpus:
    """Plain pickles of every protocol, behind others, and behind what looks like something else."""
    evil = pickled(made(canary))
    textual = b"cos\nmkdir\n(V" + canary.encode() + b"\ntR."
    number = b"\x80\x02N."
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    bodies = {f"protocol {protocol}": pickled(made(canary), protocol=protocol) for protocol in range(6)}
    bodies |= {
        "without a mark": textual,
        "mark within": b"N0N0" + evil,
        "twenty constants before": b"N0" * 20 + textual,
        "inst at the end of the file": b"(V" + canary.encode() + b"\nios\nmkdir!",
        "inst of protocol 0": b"(V" + canary.encode() + b"\nimailbox\nMaildir\n.",
        "second pickle": number + evil,
        "tenth pickle": number * 9 + evil,
        "behind a pickle without a mark": b"N." + textual,
        "behind a list of protocol 0": b"(lp0\nI1\naI2\na." + textual,
        "second of protocol 0": b"I1\n." + textual,
        "frames": b"\x80\x04\x95" + pack("<Q", 3) + evil[2:],
        "frames that lie": b"\x80\x04\x95" + pack("<Q", 1) + b"N0" + evil[2:],
        # The reader in C takes what lies behind the frame for the line: "os", where others read "collections.os".
        "a frame that ends within a name": b"\x80\x04\x95"
        + pack("<Q", 13)
        + b"ccollections.os\nmkdir\n"
        + evil[evil.index(b"(") :],
        "long text before": b"\x80\x02" + text("x" * 300_000) + b"0" + evil[2:],
        "long line before": b"V" + b"x" * 300_000 + b"\n0" + textual,
        "begins as safetensors": b"X\x04\0\0\0\0\0\0{" + b"0" + textual,
        "begins as a short header": b"\x80\x02X\x02\0\0\0\0{0" + evil[2:] + b" " * 1000,
        "is safetensors too": b"",
    }
    for lead in b"V":  # takes all up to the first newline
        filled = header.ljust(lead + 256) if lead + 256 > len(header) else header
        bodies["is safetensors too"] = len(filled).to_bytes(8, "little") + filled + b"x\n0" + textual
    # A text takes all of the member's header, its own first bytes excepted.
    tar = bytearray(_tar(b"0" + evil[2:], tarfile.USTAR_FORMAT))
    tar[:8] = b"\x80\x02X" + pack("<I", 512 - 7) + b"x"
    bodies["is a tar archive too"] = _with_sum(tar, 0)
    others = {"a frame that ends within a name": "memory", "inst at the end of the file": "python"}
    return {key: (others.get(key, "pickle"), data) for key, data in bodies.items()}


def streams(canary: str) -> Corpus:
    """torch's legacy stream, by every way to write its first number, with the harm in any of its pickles."""
    system = pickled(dict_of({"little_endian": b"\x88"}))
    version = pickled(integer(1001))
    raw = TORCH_NUMBER.to_bytes(10, "little")
    good, evil, keys = pickled(GOOD), pickled(made(canary)), pickled(list_of(text("0")))
    data = pack("<q", 6) + RECORD
    numbers = {
        "usual": MAGIC,
        "padded": b"\x80\x02\x8a\x0e" + raw + b"\0\0\0\0" + b".",
        "LONG4": b"\x80\x02\x8b\x0a\0\0\0" + raw + b".",
        "behind constants": b"\x80\x02" + b"N0" * 20 + b"\x8a\x0a" + raw + b".",
        "INT": b"I" + str(TORCH_NUMBER).encode() + b"\n.",
        "hexadecimal": b"I" + hex(TORCH_NUMBER).encode() + b"\n.",
        "LONG": b"L" + str(TORCH_NUMBER).encode() + b"L\n.",
        "from the memo": b"\x80\x02\x8a\x0a" + raw + b"q\x000h\x00.",
        "from a tuple": b"\x80\x02\x8a\x0a" + raw + b"q\x00\x850h\x00.",
        "protocol 5": b"\x80\x05\x8a\x0a" + raw + b".",
    }
    found: Corpus = {}
    for key, number in numbers.items():
        found[f"object, {key}"] = ("torch", number + version + system + evil + pickled(list_of()))
    parts = {"number": 0, "version": 1, "system": 2, "object": 3, "keys": 4}
    for key, index in parts.items():
        stream = [MAGIC, version, system, good, keys]
        body = stream[index][2:-1] if index else MAGIC[2:-1]
        stream[index] = pickled(made(canary) + b"0" + body)
        found[f"in the {key}"] = ("torch", b"".join(stream) + data)
    found["behind the storages"] = ("twice", legacy(good, {"0": (6, RECORD)}) + evil)
    found["a second stream"] = ("twice", legacy(good, {"0": (6, RECORD)}) + MAGIC + version + system + evil + keys)
    arithmetic = pickled(call("operator", "add", integer(TORCH_NUMBER - 1), integer(1)))
    found["computed number"] = ("torch", arithmetic + version + system + evil + pickled(list_of()))
    converted = pickled(call("builtins", "int", text(str(TORCH_NUMBER))))
    found["converted number"] = ("torch", converted + version + system + evil + pickled(list_of()))
    # Its first byte is "V", which takes all up to the first newline for a text: that of the tensor's data.
    body = b"\n0L%dL\n." % TORCH_NUMBER + version + system + evil + pickled(list_of())
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(body), len(body))
    length = ord("V") + 256
    found["is safetensors too"] = ("torch", length.to_bytes(8, "little") + header.ljust(length) + body)
    return found


def archives(canary: str) -> Corpus:
    """Zip and tar archives, NumPy's files and packed ones."""
    evil = pickled(made(canary))
    store = {"0": RECORD}
    found: Corpus = {
        "torch zip": ("torch", torch_zip(evil, store)),
        "upper case": ("torch", torch_zip(evil, store).replace(b"data.pkl", b"DATA.PKL")),
        "mixed case": ("torch", torch_zip(evil, store).replace(b"data.pkl", b"Data.Pkl")),
        "behind the pickle": ("torch", torch_zip(evil[:-1] + b"0N." + pickled(GOOD), store)),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/version", b"3\n")
    found["deflated"] = ("torch", out.getvalue())
    forms = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    found |= {f"tar {form}": ("torch", _tar(evil, value)) for form, value in forms.items()}
    found["tar v7"] = ("torch", _tar(evil, tarfile.GNU_FORMAT, strip=True))
    found["tar base-256"] = ("torch", _tar(evil, tarfile.GNU_FORMAT, binary=True))
    found["tar sparse"] = ("torch", _tar(evil, tarfile.PAX_FORMAT, sparse=True))
    found["tar second pickle of a member"] = ("torch", _tar(evil, tarfile.GNU_FORMAT, late=True))
    npy = _npy("|O", evil)
    found["npy of objects"] = ("numpy", npy)
    found["npy version 2"] = ("numpy", _npy("|O", evil, version=2))
    found["npy of records"] = ("numpy", _npy([("a", "<i4"), ("b", "|O")], evil))
    spellings = ("object", "object_", "O8", "i4,O", "2O", "(2,)O")
    found |= {f"npy of {spelling}": ("numpy", _npy(spelling, evil)) for spelling in spellings}
    for form, method in (("stored", 0), ("deflated", 8), ("bzip2", 12)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            archive.writestr("x.npy", npy)
        found[f"npz {form}"] = ("numpy", out.getvalue())
    found |= {
        "gzip": ("gzip", gzip.compress(evil, mtime=0)),
        "gzip of protocol 0": ("gzip", gzip.compress(b"cos\nmkdir\n(V" + canary.encode() + b"\ntR.", mtime=0)),
        "gzip with all fields": (
            "gzip",
            b"\x1f\x8b\x08\x1c" + bytes(6) + pack("<H", 4) + b"abcdname\0text\0" + gzip.compress(evil, mtime=0)[10:],
        ),
        "gzip members": ("gzip", gzip.compress(evil[:5], mtime=0) + gzip.compress(evil[5:], mtime=0)),
        "gzip members behind zeros": (
            "gzip",
            gzip.compress(evil[:5], mtime=0) + bytes(40) + gzip.compress(evil[5:], mtime=0),
        ),
        "bzip2": ("bz2", bz2.compress(evil)),
        "xz": ("lzma", lzma.compress(evil)),
        "lzma": ("lzma", lzma.compress(evil, lzma.FORMAT_ALONE)),
        "zlib": ("zlib", zlib.compress(evil)),
        "zlib, fast": ("zlib", zlib.compress(evil, 1)),
        "zlib, small window": ("zlib", _deflated(evil, 12)),
        "lzma, small window": ("lzma", _lzma(evil, dict_size=4096)),
        "lzma, other settings": ("lzma", _lzma(evil, dict_size=3 << 20, lc=0, lp=2, pb=0)),
    }
    inner = io.BytesIO()
    torch.save(torch.zeros(1), inner)
    for form, nested in {
        "legacy": MAGIC + pickled(integer(1001)) + pickled(b"}") + evil + pickled(list_of()),
        "zip": torch_zip(evil, store),
    }.items():
        body = b"B" + pack("<I", len(nested)) + nested
        found[f"nested {form}"] = ("pickle", pickled(call("torch.storage", "_load_from_bytes", body)))
        latin = call("_codecs", "encode", text(nested.decode("latin-1")), text("latin1"))
        found[f"nested {form} as text"] = ("pickle", pickled(call("torch.storage", "_load_from_bytes", latin)))
    return found


def _deflated(data: bytes, window: int) -> bytes:
    engine = zlib.compressobj(wbits=window)
    return engine.compress(data) + engine.flush()


def _lzma(data: bytes, **settings: int) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, **settings}])


def _tar(
    evil: bytes, form: int, *, strip: bool = False, binary: bool = False, late: bool = False, sparse: bool = False
) -> bytes:
    """The oldest form of torch, with the harm in its first member, in a later pickle of that, or behind a list of the
    holes in it."""
    first = pickled(integer(1)) + evil if late else evil
    if binary:
        first += b" " * (512 - len(first) % 512)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, content in {"storages": first, "tensors": pickled(integer(0)), "pickle": pickled(b"N")}.items():
            info, data = tarfile.TarInfo(member), content
            if sparse and member == "storages":
                info.pax_headers = {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.realsize": str(len(content)),
                    "GNU.sparse.name": member,
                }
                data = (b"1\n0\n%d\n" % len(content)).ljust(512, b"\0") + content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    raw = bytearray(out.getvalue())
    for pos in (at for at in range(0, len(raw), 512) if raw[at + 257 : at + 262] == b"ustar"):
        if strip:
            raw[pos + 257 : pos + 512] = bytes(255)
        if binary:
            size = int(bytes(raw[pos + 124 : pos + 135]), 8)
            raw[pos + 124 : pos + 136] = b"\x80" + size.to_bytes(11, "big")
        raw[:] = _with_sum(raw, pos)
    return bytes(raw)


def _with_sum(raw: bytearray, pos: int) -> bytes:
    """A tar archive with the right checksum in the header at ``pos``."""
    raw[pos + 148 : pos + 156] = b" " * 8
    raw[pos + 148 : pos + 156] = b"%06o\0 " % sum(raw[pos : pos + 512])
    return bytes(raw)


def _npy(descr: object, data: bytes, version: int = 1) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": (1,)}).encode()
    width = 2 if version == 1 else 4
    header += b" " * (-(8 + width + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little") + header + data


def hostile(canary: str) -> Corpus:
    """All of it."""
    found: Corpus = {}
    for kind in (calls, plain, streams, archives, methods):
        found |= {f"{kind.__name__}: {key}": value for key, value in kind(canary).items()}
    return found


def run_all(corpus: Corpus, folder: Path, canary: Path) -> set[str]:
    """The names of those that run when their loader loads them. Each gets a process of its own."""
    ran = set()
    for number, (key, (loader, data)) in enumerate(corpus.items()):
        path = folder / f"{number}{'.npz' if 'npz' in key else ''}"
        path.write_bytes(data)
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            signal.alarm(30)
            try:
                exec(LOADERS[loader], {"path": str(path)})
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        path.unlink()
        for _ in range(20):  # a program that was started may still be at work
            if os.path.lexists(canary):
                break
            time.sleep(0.01)
        if os.path.lexists(canary):
            ran.add(key)
            if canary.is_dir():
                shutil.rmtree(canary)
            else:
                canary.unlink()
    return ran
