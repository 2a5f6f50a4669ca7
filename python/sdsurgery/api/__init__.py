"""Every verb as a function. docs/api.md is about the package as a library.

Each verb that writes a checkpoint takes ``out`` (a file, or None for a dry run), keywords of its own, and the settings
of ``sdsurgery.Settings`` as keywords: ``dtype="fp16"``, ``overwrite=True``, ``threads=4``, ``progress=…``. It returns a
``Report``. It raises UsageError or InputRefused before the first output byte, RunFailed or Interrupted afterwards; the
target is then unchanged. A keyword that doesn't exist is a TypeError, with close matches.
"""

from __future__ import annotations

from .adapters import bake, extract_lora, merge_lora, resize_lora
from .analysis import compare, inspect, relations, unmix, verify
from .checkpoints import cast, convert, convert_all, ema, extract, fix_clip, prune, replace
from .common import Input, Path
from .merging import merge, sweep

__all__ = [
    "Input",
    "Path",
    "bake",
    "cast",
    "compare",
    "convert",
    "convert_all",
    "ema",
    "extract",
    "extract_lora",
    "fix_clip",
    "inspect",
    "merge",
    "merge_lora",
    "prune",
    "relations",
    "replace",
    "resize_lora",
    "sweep",
    "unmix",
    "verify",
]
