"""A model in shards: the index of transformers and diffusers, ``{"weight_map": {tensor: file}}``, opens them as one.

The files lie beside the index. Source: huggingface_hub ``serialization/_base.py``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from ...checkpoint import Contents
from ...errors import InputRefused, printable
from ...files import open_source
from .. import Format, recognise

if TYPE_CHECKING:
    from ..._native import Source

MAX_INDEX = 32 << 20
"""Bytes of an index that is read."""
_WINDOW = 1 << 16


def sniff(source: Source) -> bool:
    head = source.read(0, min(source.size, _WINDOW)).lstrip()
    return head.startswith(b"{") and b'"weight_map"' in head


def read(source: Source, *, allow_suspicious: bool = False, allow_inflate: bool = False) -> Contents:
    """The tensors of all shards, in the order of the index's files. Raises InputRefused with one line when a shard is
    missing or damaged, or when shards and index do not name the same tensors."""
    names = _weight_map(source)
    folder = os.path.dirname(source.path)
    shards = list(dict.fromkeys(names.values()))
    found = Contents("shards", [], files=[os.path.join(folder, shard) for shard in shards])
    options = {"allow_suspicious": allow_suspicious, "allow_inflate": allow_inflate}
    for number, path in enumerate(found.files):
        part = _shard(path, options)
        if part.temporary:
            raise InputRefused(f"shard '{printable(shards[number])}' is compressed; save it again first")
        wanted = [name for name, shard in names.items() if shard == shards[number]]
        held = {info.name: info for info in part.tensors}
        lacking = next((name for name in wanted if name not in held and name not in part.unusable), None)
        if lacking is not None:
            raise InputRefused(f"shard '{printable(shards[number])}' lacks tensor '{printable(lacking)}' of the index")
        own = (info for info in part.tensors if names.get(info.name) == shards[number])
        found.tensors += [info.with_form(info.form._replace(file=number)) for info in own]
        found.records += [record._replace(file=number) for record in part.records]
        found.unusable |= part.unusable
        found.metadata = {**part.metadata, **found.metadata}
    found.notes.append(f"{len(shards)} shards read as one")
    return found


def _weight_map(source: Source) -> dict[str, str]:
    if source.size > MAX_INDEX:
        raise InputRefused(f"an index of {source.size} bytes; at most {MAX_INDEX} are read")
    try:
        index = json.loads(source.read(0, source.size))
    except (ValueError, RecursionError):
        raise InputRefused("an index of shards that is not valid JSON") from None
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise InputRefused("an index of shards without a 'weight_map' of tensor names to files")
    for file in names.values():
        if os.path.basename(file) != file or file in ("", ".", ".."):
            raise InputRefused(f"the index names a file outside its folder: '{printable(file)}'")
    return names


def _shard(path: str, options: dict[str, bool]) -> Contents:
    if not os.path.lexists(path):
        raise InputRefused(
            f"shard '{printable(os.path.basename(path))}' is missing; download it into the same folder",
            code="not_found",
        )
    part = open_source(path)
    try:
        reader = recognise(part)
        if reader is None or reader is FORMAT:
            raise InputRefused(f"shard '{printable(os.path.basename(path))}' is not of a known format")
        return reader.read(part, **{name: value for name, value in options.items() if name in reader.options})
    finally:
        part.close()


FORMAT = Format("shards", sniff, read, ("allow_suspicious", "allow_inflate"))
