"""Files that no reader takes: what they are, by their first bytes, and what to do. For the refusal only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import printable
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
)
_AGAIN = "download the file again"
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"\0\0\0\x1cftypavif", "AVIF"),
)
_PICTURE = "picture, the preview of a model or an embedding kept in one; give the model's own file"
_PAGE = "a web page in place of a checkpoint, as a failed download or a login leaves it; download the file again"


def described(source: Source) -> str | None:
    """What a file is that no format recognises, and what to do; None when that is not known either."""
    head = source.read(0, min(512, source.size))
    found = next((text for start, text in _STARTS if head.startswith(start)), None)
    if found is not None:
        return found
    if not head.strip(b"\0"):
        return f"only zeros, as space that a downloader reserved and never filled; {_AGAIN}"
    picture = next((name for start, name in _PICTURES if head.startswith(start)), None)
    if picture is not None:
        return f"a {picture} {_PICTURE}"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return _PAGE
    first = Pickle(source)
    return _pickle(_stream(source, first)) if first.is_text or first.exhausted else _text(source)


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
    try:
        text = " ".join(str(data, "utf-8").split())
    except UnicodeDecodeError:
        return None
    if not text.isprintable() or not any(letter.isalpha() for letter in text):
        return None
    shown = printable(text, 60)
    if begin == b"<":
        return f"an XML text in place of a checkpoint, as a failed download leaves it ({shown}); {_AGAIN}"
    if begin in b"{[":
        return (
            f"a JSON text in place of a checkpoint: a model's settings, or the error of a failed download ({shown}); "
            f"give the file with the weights, or {_AGAIN}"
        )
    return f"a short text in place of a checkpoint, as a failed download leaves it ({shown}); {_AGAIN}"


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
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".ckpt", ".pt", ".pth"))]
    if "model_index.json" in names:
        return (
            "a diffusers folder, with a file for each component; give one of these files, such as "
            f"{printable(os.path.join(path, 'unet', 'diffusion_pytorch_model.safetensors'))}"
        )
    return f"a folder; give a file in it, such as {printable(os.path.join(path, weights[0]))}" if weights else None


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
