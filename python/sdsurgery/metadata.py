"""The text metadata of an output: its recipe, its ancestry, ModelSpec's keys and the header-free hash.

What is written, and who reads it:

- ``format`` = ``pt``: the web UIs, safetensors.torch, diffusers.
- ``sd_merge_recipe``, a JSON text: the keys that A1111's ``run_modelmerger`` writes, under our own ``type``, with our
  own fields beside them (``method``, ``parameters``, ``models``: every input with its hashes, ``notes``).
- ``sd_merge_models``, a JSON text: SHA-256 of a file → its name, AutoV1 and own recipe; the parents, then what their
  files say of their own parents, youngest first, as long as that stays below ``MAX_ANCESTRY``.
- ``modelspec.*``: Stability-AI/ModelSpec 1.0.1.
- ``modelspec.hash_sha256`` and ``sshs_model_hash``: SHA-256 of the tensor data. Of an adapter also ``sshs_legacy_hash``
  (``adapters/writing.py``).

There is no date and no path in it, so the same merge gives the same bytes. What parents' files say is hostile until
proven otherwise: whatever does not parse is left out, with a note in the recipe, and is never an error.

**Length.** Rendered with ``placeholder_hashes`` the metadata are at least as long as with the real hashes: every hash
takes 64 characters, what is left out never depends on a hash, and two entries can only fall together (when a parent is
given twice, or is also an ancestor of another one). So a header laid out with placeholders has room for the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .ancestors import MODELS, RECIPE, ancestry, name_of
from .strict_json import clean, is_text, parse

KEPT = (
    "modelspec.author", "modelspec.license", "modelspec.description", "modelspec.usage_hint",
    "modelspec.trigger_phrase", "modelspec.tags", "modelspec.thumbnail", "modelspec.encoder_layer",
    "ss_base_model_version",
)  # fmt: skip
"""What of A's metadata still holds of a merge."""

_TITLE, _MERGED_FROM = "modelspec.title", "modelspec.merged_from"
_MAX_KEPT = 1_000_000  # characters of a thumbnail, say
_RESOLUTION = r"[0-9]{2,5}x[0-9]{2,5}"
# Hashes of a file that is no longer this one. modelspec.hash_* may name any algorithm.
_STALE = r"modelspec\.hash_.*|sshs_model_hash|sshs_legacy_hash"
# What a cast makes untrue.
_DTYPES = ("modelspec.unet_dtype", "modelspec.vae_dtype")


class Parent(NamedTuple):
    """An input as the output's metadata describe it: base name without suffix, own metadata, AutoV1, SHA-256."""

    name: str
    metadata: Mapping[str, str]
    legacy_hash: str | None
    sha256: str | None


class Kind(NamedTuple):
    """What an output is: ModelSpec's id (None: no ModelSpec), the code whose tensor names it has, the usual resolution,
    and ``inpainting`` or ``edit`` for a model that is made for that."""

    architecture: str | None = None
    implementation: str = ""
    resolution: str = ""
    task: str = ""


class Metadata(NamedTuple):
    """An output's metadata as a value: all but the hashes, which are known only at the end of a run.

    ``source`` are the own metadata of the input that the output is made from, None for a merge of several; a file
    without ``parents`` carries ``source`` unchanged.
    """

    source: Mapping[str, str] | None = None
    parents: tuple[Parent, ...] = ()
    recipe: Mapping[str, Any] | None = None
    title: str = ""
    kind: Kind = Kind()
    version: str = ""
    given: Mapping[str, str] = {}  # what the user wants to be written
    with_recipe: bool = True
    with_names: bool = True
    is_adapter: bool = False

    def texts(self, hashes: Sequence[str | None], body: str | None, window: str | None = None) -> dict[str, str]:
        """The metadata with the inputs' SHA-256, that of the tensor data and, of an adapter, that of the part of them
        which ``sshs_legacy_hash`` is about (None where they are not known)."""
        found = self._texts(hashes, body)
        return found if window is None else {**found, "sshs_legacy_hash": window[:8]}

    def _texts(self, hashes: Sequence[str | None], body: str | None) -> dict[str, str]:
        if not self.parents:
            return {**(self.source or {}), **self.given}
        # inputs that are not parents (tensors that were computed) come last
        parents = [item._replace(sha256=digest) for item, digest in zip(self.parents, hashes, strict=False)]
        title = self.given.get(_TITLE, self.title if self.with_names else "untitled")
        if not self.with_names:
            parents = [item._replace(name=_lettered(number)) for number, item in enumerate(parents)]
        facts: dict[str, Any] = {
            "parents": parents, "title": title, "kind": self.kind, "version": self.version, "body_sha256": body,
        }  # fmt: skip
        if self.source is None:
            texts = merge_metadata(recipe=self.recipe or {}, **facts)
        else:
            texts = single_input_metadata(source=self.source, recipe=self.recipe, **facts)
        if not self.with_recipe:
            texts = {key: text for key, text in texts.items() if key not in (RECIPE, MODELS, _MERGED_FROM)}
        return {**texts, **{key: clean(text) for key, text in self.given.items()}}

    def left_out(self) -> tuple[str, ...]:
        """A's own metadata that a file made from several does not have."""
        if self.source is not None or not self.parents:
            return ()
        written = self.texts([None] * len(self.parents), None)
        return tuple(key for key in self.parents[0].metadata if key not in written and not re.fullmatch(_STALE, key))


def _lettered(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"input {number + 1}"


def placeholder_hashes(count: int) -> tuple[str, ...]:
    """Stand-ins for SHA-256 that are not known yet: 64 characters each, all different, none a possible hash."""
    return tuple(f"{number:_>64}" for number in range(count))


def merge_metadata(
    *,
    recipe: Mapping[str, object],
    parents: Sequence[Parent],
    title: str,
    kind: Kind,
    body_sha256: str | None,
    version: str,
) -> dict[str, str]:
    """Metadata of a file made from several.

    ``recipe`` is what the verb did, in JSON types: method, parameters, dtype. What the first parent says of its author,
    licence and use still holds of the child (``KEPT``). The parents' training facts (``ss_*``) and graphs (``prompt``,
    ``workflow``) are not the child's and are left out.
    Raises UsageError when a parameter of ``recipe`` is not a finite number.
    """
    metadata = {"format": "pt", **ancestry(recipe, parents, title, kind, version)}
    agreed = _agreed(parents)
    metadata.update(_modelspec(agreed, title, kind))
    if "modelspec.prediction_type" in agreed:
        metadata["modelspec.prediction_type"] = agreed["modelspec.prediction_type"]
    first = parents[0].metadata if parents else {}
    metadata |= {key: first[key] for key in KEPT if is_text(first.get(key)) and len(first[key]) <= _MAX_KEPT}
    metadata[_MERGED_FROM] = ", ".join(name_of(parent).replace(",", " ") for parent in parents)
    return metadata | _body_hash(body_sha256)


def single_input_metadata(
    *,
    source: Mapping[str, str],
    recipe: Mapping[str, object] | None,
    parents: Sequence[Parent],
    title: str,
    kind: Kind,
    body_sha256: str | None,
    version: str,
) -> dict[str, str]:
    """Metadata of a file made from one: the input's own (``source``), less what is no longer true of the output.

    ``parents`` are the input and, behind it, the donors of single components.
    Stale hashes are replaced, or removed when ``body_sha256`` is None. With a ``recipe`` the input's own recipe moves
    into ``sd_merge_models``; without one both are unchanged. ModelSpec's required keys are added where they lack.
    Raises UsageError when a parameter of ``recipe`` is not a finite number.
    """
    kept = {key: value for key, value in source.items() if is_text(key) and is_text(value)}
    metadata = {key: value for key, value in kept.items() if not re.fullmatch(_STALE, key)}
    if recipe is not None:
        if recipe.get("dtype") not in (None, "keep"):
            for key in _DTYPES:
                metadata.pop(key, None)
        metadata.update(ancestry(recipe, parents, title, kind, version))
    defaults = _modelspec(kept, title, kind)
    return {**defaults, **metadata, "format": "pt", **_body_hash(body_sha256)}


def stated_architecture(parents: Sequence[Parent]) -> str | None:
    """The ModelSpec id that all parents' files state; None where they state none or different ones."""
    return _agreed(parents).get("modelspec.architecture")


def stated_body_hash(metadata: Mapping[str, str]) -> str | None:
    """SHA-256 of the tensor data that a file states of itself: 64 digits in small letters."""
    for key in ("sshs_model_hash", "modelspec.hash_sha256"):
        digits = metadata.get(key, "").strip().lower().removeprefix("0x")
        if re.fullmatch("[0-9a-f]{64}", digits):
            return digits
    return None


def recipe_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The stored recipe, whichever tool wrote it; None when there isn't one or it is not a valid JSON object."""
    recipe = parse(metadata.get(RECIPE))
    return recipe if isinstance(recipe, dict) else None


# ---------------------------------------------------------------- ModelSpec


def _agreed(parents: Sequence[Parent]) -> dict[str, str]:
    """The metadata that all parents have, with the same value."""
    if not parents:
        return {}
    first, *others = (parent.metadata for parent in parents)
    return {
        key: value
        for key, value in first.items()
        if is_text(value) and all(other.get(key) == value for other in others)
    }


def _modelspec(known: Mapping[str, str], title: str, kind: Kind) -> dict[str, str]:
    """ModelSpec's required keys; none when the architecture is unknown, since a spec without one is not valid."""
    if not kind.architecture:
        return {}
    keys = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": kind.architecture,
        "modelspec.implementation": kind.implementation,
        "modelspec.title": clean(title),
    }
    stated = known.get("modelspec.resolution", "")
    resolution = stated if re.fullmatch(_RESOLUTION, stated) else kind.resolution
    return keys | ({"modelspec.resolution": resolution} if resolution else {})


def _body_hash(body_sha256: str | None) -> dict[str, str]:
    if body_sha256 is None:
        return {}
    return {"modelspec.hash_sha256": f"0x{body_sha256}", "sshs_model_hash": body_sha256}
