"""The settings that verbs share. ``Settings`` is the one table of them: its rows are the options of the command line,
the keywords of the Python functions, and the table in docs/verbs/README.md.

A new setting is a row of ``Settings`` and its type in ``Keywords``; a verb that reads it gets no other edit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from .dtypes import BY_NAME, BY_OPTION, F16, TORCH, DType
from .errors import UsageError, printable
from .suggest import did_you_mean

Progress = Callable[[int, int], None]
"""Called now and then, and at the end, with the bytes done and the bytes in all."""


class TorchDtype(Protocol):
    """``torch.float16`` and the like, wherever a dtype is asked for."""

    @property
    def itemsize(self) -> int: ...
    @property
    def is_floating_point(self) -> bool: ...


Dtype = Literal["keep", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp8_scaled"] | TorchDtype
Overflow = Literal["default", "inf", "saturate", "error"]
OnNonfinite = Literal["keep", "error"]
Compute = Literal["fp32", "fp64"]
Io = Literal["auto", "mmap", "pread"]
Fallback = Literal["none", "cpu"]
Hash = bool | Literal["full"]
Pairs = Mapping[str, str] | Iterable[str] | tuple[tuple[str, str], ...]
"""Metadata: a dictionary, or texts like ``KEY=VALUE``."""


class Option(NamedTuple):
    """How a setting is spelled on the command line (``flag``, empty where only Python has it) and explained.

    ``words``: the values that it may have, the first is the default. ``metavar``: what its value is called, empty for
    a switch. ``off``: a second flag, which sets it to False; it may then be True too, which is the default.
    ``group``: under which title ``--help`` lists it.
    """

    help: str
    flag: str = ""
    words: tuple[str, ...] = ()
    metavar: str = ""
    off: str = ""
    off_help: str = ""
    group: str = ""


def _word(group: str, flag: str, words: Iterable[str], help: str) -> Any:
    words = tuple(words)
    return field(default=words[0], metadata={"option": Option(help, flag, words, "WORD", group=group)})


def _row(group: str, default: Any, flag: str, help: str, metavar: str = "") -> Any:
    return field(default=default, metadata={"option": Option(help, flag, metavar=metavar, group=group)})


OUTPUT, NUMBERS, REPAIRS, HOW = "output", "dtypes and rounding", "repairs", "how it is done"
METADATA, PICKLES = "metadata of the output", "reading pickles"
"""Titles in ``--help``."""


@dataclass(frozen=True)
class Settings:
    """What a verb is asked for besides its inputs and its output. docs/verbs/README.md lists the fields.

    UsageError for a value that a field cannot have.
    """

    dtype: str = _word(
        NUMBERS,
        "--dtype",
        ("keep", *BY_OPTION, "fp8_scaled"),
        "dtype of the output's weights; keep: A's, tensor by tensor",
    )
    overflow: str = _word(NUMBERS,
        "--overflow", ("default", "inf", "saturate", "error"),
        "a value too large for the dtype becomes Inf (default; fp8 saturates), the largest value, or an error",
    )  # fmt: skip
    on_nonfinite: str = _word(
        NUMBERS,
        "--on-nonfinite",
        ("keep", "error"),
        "NaN or Inf in an input is carried through and counted, or an error",
    )
    compute: str = _word(NUMBERS, "--compute", ("fp32", "fp64"), "precision of the arithmetic")
    io: str = _word(
        HOW, "--io", ("auto", "mmap", "pread"), "how inputs are read: mapped, in pieces, or what is faster here"
    )
    backend: str = _row(HOW, "auto", "--backend", "auto, cpu, cuda, triton or reference", "NAME")
    gpu_memory: int = _row(HOW, 0, "--gpu-memory", "buffers on each GPU, like 512M (default 256M)", "SIZE")
    fallback: str = _word(HOW, "--fallback", ("none", "cpu"), "what takes over when the GPU cannot be used or fails")
    threads: int = _row(HOW, 0, "--threads", "how many threads; 0: one for each processor", "N")
    fix_clip: bool = _row(REPAIRS, False, "--fix-clip", "write the text encoders' position_ids as int64 0…76")
    fix_names: bool = _row(REPAIRS, False, "--fix-names", "read old and foreign tensor names as those of the family")
    dry_run: bool = _row(OUTPUT, False, "--dry-run", "print the plan and write nothing")
    overwrite: bool = _row(OUTPUT, False, "--force", "replace an existing output")
    allow_unlike: bool = _row(OUTPUT, False, "--allow-unlike", "merge models with little in common")
    hash: bool | str = field(default=True, metadata={"option": Option(
        "also the SHA-256 (and AutoV2) of the whole output, which is read again for it", "--hash", ("full",), "WORD",
        "--no-hash", "don't compute SHA-256 of inputs and output", OUTPUT,
    )})  # fmt: skip
    title: str = _row(METADATA, "", "--title", "the model's title in the metadata (default: the file's name)", "TEXT")
    author: str = _row(METADATA, "", "--author", "the author in the metadata (default: A's)", "TEXT")
    license: str = _row(METADATA, "", "--license", "the licence in the metadata (default: A's)", "TEXT")
    metadata: Pairs = _row(METADATA, (), "--metadata", "an entry of the metadata; may be repeated", "KEY=VALUE")  # noqa: RUF009
    store_recipe: bool = _row(METADATA, True, "--no-recipe", "leave recipe and ancestry out of the metadata")
    store_names: bool = _row(METADATA, True, "--no-names", "leave the names of files out of the metadata")
    sync: bool = _row(OUTPUT, True, "--no-sync", "don't wait for the disk before the rename")
    allow_suspicious: bool = _row(
        PICKLES, False, "--allow-suspicious", "read pickles that name dangerous functions (none is ever run)"
    )
    allow_inflate: bool = _row(
        PICKLES, False, "--allow-inflate", "inflate compressed tensors into a temporary file (in TMPDIR)"
    )
    part: str = _row(PICKLES, "", "--part", "which of several dictionaries of weights to read from a pickle", "NAME")
    html: str | os.PathLike[str] | None = _row(OUTPUT, None, "--html", "also write the report as a page", "FILE.html")  # noqa: RUF009
    tile_bytes: int = _row("", 0, "", "bytes that a thread works on at a time; 0: what suits the processor")
    progress: Progress | bool | None = _row("", None, "", "called with the bytes done and their total; True: a bar")  # noqa: RUF009

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_word(self.dtype))
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if option.words and not (option.off and isinstance(value, bool)):
                require_word(name, value)
            if not option.words:
                _require_kind(name, value)
        object.__setattr__(self, "metadata", _pairs(self.metadata))
        if not hasattr(self.threads, "__index__") or not 0 <= self.threads <= 1024:
            raise UsageError(
                f"threads= must be a whole number between 0 (all) and 1024, not {self.threads!r}", code="bad_value"
            )

    @property
    def callback(self) -> Progress | None:
        """What is called with the progress; a bar (``progress=True``) is made of it by ``api``."""
        return None if isinstance(self.progress, bool) else self.progress

    @property
    def target_dtype(self) -> DType | None:
        """The asked output dtype, None to keep each tensor's own."""
        return F16 if self.scaled else BY_OPTION.get(self.dtype)

    @property
    def scaled(self) -> bool:
        """Whether linear layers become scaled fp8; everything else is F16 then."""
        return self.dtype == "fp8_scaled"

    def dtype_of(self, shape: Sequence[int]) -> DType | None:
        """The asked dtype of a tensor of that shape. Norms and biases stay F16 in fp8 files: programs read the kind of
        an SD 2 model off a norm's bias, and they are next to nothing of the file."""
        dtype = self.target_dtype
        return F16 if dtype is not None and dtype.bits == 8 and len(shape) < 2 else dtype

    @property
    def watched(self) -> bool:
        """Whether a NaN must be noticed even in a tensor that is only copied."""
        return self.on_nonfinite == "error"

    @property
    def recorded(self) -> dict[str, Any]:
        """What a recipe says of these settings: all that changes the output's tensors."""
        repairs = {name: True for name in ("fix_clip", "fix_names") if getattr(self, name)}
        return {"dtype": self.dtype, "overflow": self.overflow, **repairs}

    @property
    def given_metadata(self) -> dict[str, str]:
        """Metadata that the user wants to be written."""
        named = {"title": self.title, "author": self.author, "license": self.license}
        return {**{f"modelspec.{key}": text for key, text in named.items() if text}, **dict(_pairs(self.metadata))}

    @property
    def opening(self) -> Reading:
        """How inputs are opened: arguments of ``open_checkpoint``."""
        return {"allow_suspicious": self.allow_suspicious, "allow_inflate": self.allow_inflate, "part": self.part}


OPTIONS: Mapping[str, Option] = {item.name: item.metadata["option"] for item in fields(Settings)}
DEFAULTS: Mapping[str, Any] = {item.name: item.default for item in fields(Settings)}
READING = ("allow_suspicious", "allow_inflate", "part")
"""Settings of all verbs that read checkpoints."""
COMPUTING = ("backend", "gpu_memory", "fallback", "threads")
"""Settings of all verbs that compute: what with."""
SHOWING = ("html", "overwrite")
"""Settings of verbs that write nothing but a page or picture of what they found."""
WRITING = tuple(name for name, option in OPTIONS.items() if option.flag)
"""Settings of all verbs that write a checkpoint, as the command line has them."""


class Reading(TypedDict, total=False):
    """Keywords of ``open`` and ``inspect``."""

    allow_suspicious: bool
    allow_inflate: bool
    part: str


class Keywords(Reading, total=False):
    """Keywords of all verbs that write a checkpoint: the fields of ``Settings``."""

    dtype: Dtype
    overflow: Overflow
    on_nonfinite: OnNonfinite
    compute: Compute
    io: Io
    backend: str
    gpu_memory: int
    fallback: Fallback
    threads: int
    fix_clip: bool
    fix_names: bool
    dry_run: bool
    overwrite: bool
    allow_unlike: bool
    hash: Hash
    title: str
    author: str
    license: str
    metadata: Pairs
    store_recipe: bool
    store_names: bool
    sync: bool
    html: str | os.PathLike[str] | None
    tile_bytes: int
    progress: Progress | bool | None


def _pairs(given: Any) -> tuple[tuple[str, str], ...]:
    """``{"key": "value"}`` or ``["key=value"]`` as pairs. UsageError for anything else."""
    items = given.items() if isinstance(given, Mapping) else given
    found = []
    for item in [items] if isinstance(items, str) else items:
        key, equals, text = item.partition("=") if isinstance(item, str) else (item[0], "=", item[1])
        if not (equals and key and isinstance(key, str) and isinstance(text, str)):
            raise UsageError(f"metadata= needs texts like KEY=VALUE, not '{printable(item)}'", code="bad_value")
        found.append((key, text))
    return tuple(found)


def settings_of(
    function: str, given: Mapping[str, Any], own: Iterable[str] = (), allowed: Iterable[str] = Keywords.__annotations__
) -> Settings:
    """Keywords as Settings. TypeError, with close matches, for one that ``function`` doesn't take; ``own`` are the
    names of its other arguments."""
    for name in given:
        if name not in allowed:
            hint = did_you_mean(name, [*allowed, *own])
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
    return Settings(**given)


def _require_kind(name: str, value: object) -> None:
    """UsageError unless the setting is of the kind of its default: a switch, a text, a whole number or a callable."""
    default = DEFAULTS[name]
    if isinstance(default, bool):
        right, kind = value in (True, False), "True or False"
    elif isinstance(default, str):
        right, kind = isinstance(value, str), "text"
    elif isinstance(default, int):
        right, kind = hasattr(value, "__index__"), "a whole number"
    else:
        right, kind = name != "progress" or value is None or isinstance(value, bool) or callable(value), "a function"
    if not right:
        raise UsageError(f"{name}= must be {kind}, not {value!r}", code="bad_value")


def require_word(name: str, value: object) -> None:
    """UsageError, with close matches, unless the setting may have that value."""
    allowed = OPTIONS[name].words
    if value not in allowed:
        hint = did_you_mean(str(value), allowed) or f"; known: {', '.join(allowed)}"
        raise UsageError(f"{name}= cannot be '{printable(value)}'{hint}", code="bad_value")


_CALLED = {
    "fp32": "float32 float full f32 single",
    "fp16": "float16 half f16",
    "bf16": "bfloat16",
    "fp8_e4m3": "e4m3 e4m3fn fp8_e4m3fn float8_e4m3 float8_e4m3fn f8_e4m3",
    "fp8_e5m2": "e5m2 float8_e5m2 f8_e5m2",
}
_SYNONYMS = {word: option for option, words in _CALLED.items() for word in words.split()}
"""What other programs call the dtypes."""


def dtype_word(value: Any) -> Any:
    """``torch.float16`` as ``"fp16"``; everything else unchanged."""
    if isinstance(value, str):
        word = value.lower().removeprefix("torch.")
        return value if value in BY_OPTION else _SYNONYMS.get(word, word if word in BY_OPTION else value)
    if value is None:
        return value
    names = {f"torch.{torch_name}": BY_NAME[name].option for name, torch_name in TORCH.items()}
    return names.get(str(value)) or str(value)
