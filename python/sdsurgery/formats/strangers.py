"""Files that no reader takes: what they are, by their first bytes, and what to do. For the refusal only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import printable
from ..report.warnings import Warned, warned
from .pickle_follow import Pickle
from .pickle_machine import REFUSED

if TYPE_CHECKING:
    from .._native import Source

_UNPACK = "unpack it first"
_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch the file itself with git lfs pull"),
    (b"GGUF", "a GGUF file, whose weights are quantised for other programs; take the model's safetensors or .ckpt"),
    (b"\x1f\x8b", f"compressed by gzip; {_UNPACK}"),
    (b"BZh", f"compressed by bzip2; {_UNPACK}"),
    (b"\xfd7zXZ\0", f"compressed by xz; {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive; {_UNPACK}"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras); convert it where it was made"),
    (b"\x93NUMPY", "a NumPy array; save it as safetensors where it was made"),
    (b"%PDF-", "a PDF document; give the model's own file"),
    (b"\x7fELF", "a program; give the model's own file, and don't run a program that you did not expect"),
    (b"MZ", "a program; give the model's own file, and don't run a program that you did not expect"),
    (b"d8:announce", "a torrent; open it with a torrent program, which fetches the model"),
    (b"[InternetShortcut]", "a shortcut to a web page; download the model from there"),
    (b"\x08\x07\x12\x07pytorch", "an ONNX file; take the model's safetensors or .ckpt"),
    (b"\x08\x08\x12\x07pytorch", "an ONNX file; take the model's safetensors or .ckpt"),
)
_AGAIN = "download the file again"
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"RIFF????WEBP", "WebP"),
    (b"????ftypavif", "AVIF"),
    (b"BM", "BMP"),
)
_VIDEOS = (b"????ftyp", b"RIFF????AVI ", b"\x1aE\xdf\xa3")
_PICTURE = "picture, the preview of a model or an embedding kept in one; give the model's own file"
_PAGE = "a web page in place of a checkpoint, as a failed download or a login leaves it; download the file again"


def described(source: Source) -> str | None:
    """What a file is that no format recognises, and what to do; None when that is not known either."""
    head = source.read(0, min(512, source.size))
    found = next((text for start, text in _STARTS if head.startswith(start)), None)
    if found is not None:
        return found
    if not head.strip(b"\0"):
        return f"only zeros: space that a downloader reserved and never filled; {_AGAIN}"
    picture = next((name for start, name in _PICTURES if _begins(head, start)), None)
    if picture is not None:
        return f"a {picture} {_PICTURE}"
    if any(_begins(head, start) for start in _VIDEOS):
        return "a video, the preview of a model; give the model's own file"
    if head.lstrip().startswith(b"<") and re.search(rb"<(!doctype )?html\b", head, re.IGNORECASE):
        return _PAGE
    first = Pickle(source)
    return _pickle(_stream(source, first)) if first.is_text or first.exhausted else _text(source)


def _begins(head: bytes, start: bytes) -> bool:
    """Whether a file begins so; a question mark stands for any byte."""
    return len(head) >= len(start) and all(each in (b"?"[0], other) for each, other in zip(start, head, strict=False))


def _stream(source: Source, first: Pickle) -> list[Pickle]:
    """The first pickles of a file; torch's old streams are five before the data."""
    found = [first]
    while len(found) < 5 and found[-1].ended and found[-1].end < source.size:
        found.append(Pickle(source, found[-1].end))
    return found


def _text(source: Source) -> str | None:
    """An error that a server sent in the file's place, or another short text."""
    data = source.read(0, min(4096, source.size)).lstrip(b"\xef\xbb\xbf \t\r\n")
    begin = data[:1]
    if begin not in b"{[<" and source.size > len(data) + 16:
        return None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        plain = str(data, "utf-16" if wide else "utf-8").strip()
    except UnicodeDecodeError:
        return None
    text, begin = " ".join(plain.split()), plain[:1].encode()
    if not text.isprintable() or not any(letter.isalpha() for letter in text):
        return None
    shown = printable(text, 60)
    if begin == b"<":
        return f"an XML text in place of a checkpoint, as a failed download leaves it ({shown}); {_AGAIN}"
    if begin in b"{[":
        if (settings := _settings(source, plain)) is not None:
            return settings
        return (
            f"a JSON text in place of a checkpoint: a model's settings, or the error of a failed download ({shown}); "
            f"give the file with the weights, or {_AGAIN}"
        )
    if re.match(r"\w+:( |\n|$)", plain) and ":" in plain.partition("\n")[2]:
        return f"a YAML text, a model's settings ({shown}); give the file with the weights"
    return f"a short text in place of a checkpoint, as a failed download leaves it ({shown}); {_AGAIN}"


def _settings(source: Source, text: str) -> str | None:
    """The description of a model whose weights lie in other files."""
    import os

    kind = re.search(r'"_class_name"\s*:\s*"(\w{1,60})"|"architectures"\s*:\s*\[\s*"(\w{1,60})"', text)
    if kind is None:
        return None
    found = _weights(os.path.dirname(source.path) or os.curdir)
    there = f"; its weights lie in other files, such as {printable(found[0])}" if found else ""
    return f"a model's settings ({kind[1] or kind[2]}), not its weights{there}; give the file with the weights"


def _weights(path: str) -> list[str]:
    """Files with weights in a folder and in those below it, the U-Net's first."""
    import os

    suffixes = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
    found = []
    for name in ("", *sorted(os.listdir(path))):
        inside = os.path.join(path, name) if name else path
        if os.path.isdir(inside):
            found += [os.path.join(inside, each) for each in sorted(os.listdir(inside)) if each.endswith(suffixes)]
    return sorted(found, key=lambda each: os.path.basename(os.path.dirname(each)) not in ("unet", "transformer"))


def shard(path: str, number: int, count: int) -> Warned:
    """The warning of one of several files that are a model together."""
    import os

    folder, name = os.path.split(path)
    front = re.sub(r"-\d{5}-of-\d{5}.*$", "", name)
    beside = [each for each in os.listdir(folder or os.curdir) if each.endswith(".index.json")]
    index = next(iter(sorted(beside, key=lambda each: not each.startswith(front))), None)
    advice = "get all of them, with their index (….index.json), and give that"
    if index is not None:
        advice = f"give {printable(os.path.join(folder, index))} for the whole"
    return warned("shard", number=number, count=count, path=printable(path), advice=advice)


def folder(path: str) -> str | None:
    """What to do with a folder that was given for a file; None when nothing in it is known."""
    import os

    try:
        names = sorted(os.listdir(path))
    except OSError:
        return None
    index = next((name for name in names if name.endswith(".index.json")), None)
    if index is not None:
        return f"a folder with a model in shards; give its index, {printable(os.path.join(path, index))}"
    try:
        weights = _weights(path)
    except OSError:
        weights = []
    such = f"; give one of these files, such as {printable(weights[0])}" if weights else ", but none is there"
    if "model_index.json" in names:
        return f"a diffusers folder, with a file for each component{such}"
    return f"a folder{such}" if weights else None


def _pickle(pickles: list[Pickle]) -> str:
    """A pickle of protocol 0 or 1: torch.save writes 2 and later, and no tensor in it could be read in place."""
    refused = [REFUSED[opcode] for opcode in sorted(set().union(*(pickle.rare for pickle in pickles)))]
    opcodes = f" with the opcode{'s' if len(refused) > 1 else ''} {', '.join(refused)}" if refused else ""
    harms = list(dict.fromkeys(name for pickle in pickles for name in pickle.harms))
    harm = ", ".join(printable(name, 60) for name in harms[:6])
    return (
        (f"suspicious: loading it could have run {harm}. Nothing was run here; it is " if harm else "")
        + f"a pickle of protocol 0 or 1{opcodes}, which is not read: torch.save writes protocol 2 and later. "
        "Load it where it was made and save the tensors with torch.save or as safetensors"
    )
