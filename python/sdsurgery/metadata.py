"""The text metadata of an output: its recipe, its ancestry, ModelSpec's keys and the header-free hash.

What is written, and who reads it:

- ``format`` = ``pt``: the web UIs, safetensors.torch, diffusers.
- ``sd_merge_recipe``, a JSON text: the keys that A1111's ``run_modelmerger`` writes, under our own ``type``, with our
  own fields beside them (``method``, ``parameters``, ``models``: every input with its hashes, ``notes``).
- ``sd_merge_models``, a JSON text: SHA-256 of a file → its name, AutoV1 and own recipe; the parents, then what their
  files say of their own parents, youngest first, as long as that stays below ``MAX_ANCESTRY``.
- ``modelspec.*``: Stability-AI/ModelSpec 1.0.1.
- ``modelspec.hash_sha256`` and ``sshs_model_hash``: SHA-256 of the tensor data.

There is no date and no path in it, so the same merge gives the same bytes. What parents' files say is hostile until
proven otherwise: whatever does not parse is left out, with a note in the recipe, and is never an error.

**Length.** Rendered with ``placeholder_hashes`` the metadata are at least as long as with the real hashes: every hash
takes 64 characters, what is left out never depends on a hash, and two entries can only fall together (when a parent is
given twice, or is also an ancestor of another one). So a header laid out with placeholders has room for the real ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isinf
from typing import Any, NamedTuple

from .errors import UsageError

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
MAX_ANCESTRY = 1_000_000
"""Bytes that ``sd_merge_models`` may take in a header; the oldest generations are left out of a longer one."""

KEPT = (
    "modelspec.author", "modelspec.license", "modelspec.description", "modelspec.usage_hint",
    "modelspec.trigger_phrase", "modelspec.tags", "modelspec.thumbnail", "modelspec.encoder_layer",
    "ss_base_model_version",
)  # fmt: skip
"""What of A's metadata still holds of a merge."""

_TITLE, _MERGED_FROM = "modelspec.title", "modelspec.merged_from"
_MAX_KEPT = 1_000_000  # characters of a thumbnail, say
_MAX_ENTRY = 100_000
_MAX_PARSED = 4_000_000
_MAX_DEPTH = 100
_HASH_KEYS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
_A1111_METHODS = {"weighted-sum": "Weighted sum", "add-diff": "Add difference"}
_PLACEHOLDER = r"_{4,}[0-9]+"
_RESOLUTION = r"[0-9]{2,5}x[0-9]{2,5}"
# Hashes of a file that is no longer this one. modelspec.hash_* may name any algorithm.
_STALE = r"modelspec\.hash_.*|sshs_model_hash|sshs_legacy_hash"
# What a cast makes untrue.
_DTYPES = ("modelspec.unet_dtype", "modelspec.vae_dtype")


@dataclass(frozen=True)
class Parent:
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


@dataclass(frozen=True)
class Metadata:
    """An output's metadata as a value: all but the hashes, which are known only at the end of a run.

    ``source`` are the own metadata of the input that the output is made from, None for a merge of several; a file
    without ``parents`` carries ``source`` unchanged.
    """

    source: Mapping[str, str] | None = None
    parents: tuple[Parent, ...] = ()
    recipe: Mapping[str, Any] | None = None
    title: str = ""
    kind: Kind = field(default_factory=Kind)
    version: str = ""
    given: Mapping[str, str] = field(default_factory=dict)  # what the user wants to be written
    with_recipe: bool = True
    with_names: bool = True

    def texts(self, hashes: Sequence[str | None], body: str | None) -> dict[str, str]:
        """The metadata with the inputs' SHA-256 and that of the tensor data (None where they are not known)."""
        if not self.parents:
            return {**(self.source or {}), **self.given}
        # inputs that are no parents (tensors that were computed) come last
        parents = [replace(item, sha256=digest) for item, digest in zip(self.parents, hashes, strict=False)]
        title = self.given.get(_TITLE, self.title if self.with_names else "untitled")
        if not self.with_names:
            parents = [replace(item, name=_lettered(number)) for number, item in enumerate(parents)]
        facts: dict[str, Any] = {
            "parents": parents, "title": title, "kind": self.kind, "version": self.version, "body_sha256": body,
        }  # fmt: skip
        if self.source is None:
            texts = merge_metadata(recipe=self.recipe or {}, **facts)
        else:
            texts = single_input_metadata(source=self.source, recipe=self.recipe, **facts)
        if not self.with_recipe:
            texts = {key: text for key, text in texts.items() if key not in (RECIPE, MODELS, _MERGED_FROM)}
        return {**texts, **{key: _clean(text) for key, text in self.given.items()}}

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
    metadata = {"format": "pt", **_ancestry(recipe, parents, title, kind, version)}
    agreed = _agreed(parents)
    metadata.update(_modelspec(agreed, title, kind))
    if "modelspec.prediction_type" in agreed:
        metadata["modelspec.prediction_type"] = agreed["modelspec.prediction_type"]
    first = parents[0].metadata if parents else {}
    metadata |= {key: first[key] for key in KEPT if _is_text(first.get(key)) and len(first[key]) <= _MAX_KEPT}
    metadata[_MERGED_FROM] = ", ".join(_name(parent).replace(",", " ") for parent in parents)
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
    kept = {key: value for key, value in source.items() if _is_text(key) and _is_text(value)}
    metadata = {key: value for key, value in kept.items() if not re.fullmatch(_STALE, key)}
    if recipe is not None:
        if recipe.get("dtype") not in (None, "keep"):
            for key in _DTYPES:
                metadata.pop(key, None)
        metadata.update(_ancestry(recipe, parents, title, kind, version))
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
    recipe = _parse(metadata.get(RECIPE))
    return recipe if isinstance(recipe, dict) else None


# ---------------------------------------------------------------- recipe and ancestry


def _ancestry(
    recipe: Mapping[str, object], parents: Sequence[Parent], title: str, kind: Kind, version: str
) -> dict[str, str]:
    notes: list[str] = []
    models = _models(parents, notes)
    ours: dict[str, object] = {"type": "sdsurgery", "version": version, **recipe}
    ours.update(_a1111_keys(recipe, parents, title, kind))
    ours["models"] = [
        {"name": _name(parent), "sha256": parent.sha256, "legacy_hash": parent.legacy_hash} for parent in parents
    ]
    if notes:
        ours["notes"] = notes
    ours.update(type="sdsurgery", version=version)  # whatever the recipe says
    return {RECIPE: _dump(ours), MODELS: _dump(models)}


def _a1111_keys(recipe: Mapping[str, object], parents: Sequence[Parent], title: str, kind: Kind) -> dict[str, object]:
    """What A1111's own recipes hold: the first three inputs' SHA-256 or None, and its form's fields in its words."""
    method, parameters = str(recipe.get("method", "")), recipe.get("parameters")
    hashes = [*(parent.sha256 for parent in parents[:3]), None, None, None]
    numbers = parameters if isinstance(parameters, Mapping) else {}
    several = numbers.get("weights") or "blocks" in recipe or "rules" in recipe
    return {
        **dict(zip(_HASH_KEYS, hashes, strict=False)),
        "interp_method": _A1111_METHODS.get(method, method),
        "multiplier": None if several else numbers.get("alpha"),  # one number for the whole merge, or none
        "save_as_half": recipe.get("dtype") == "fp16",
        "custom_name": _clean(title),
        "config_source": 3,  # "Don't": no .yaml is copied
        "bake_in_vae": "None",
        "discard_weights": "",
        "is_inpainting": kind.task == "inpainting",
        "is_instruct_pix2pix": kind.task == "edit",
    }


def _models(parents: Sequence[Parent], notes: list[str]) -> dict[str, object]:
    """``sd_merge_models``: the parents, then their ancestors from the youngest to the oldest, as far as they fit."""
    models: dict[str, object] = {}
    room = MAX_ANCESTRY
    for number, parent in enumerate(parents):
        if parent.sha256 is None and parent.legacy_hash is None:
            continue  # it was no file
        own = _own_recipe(parent, number, notes)
        entry: dict[str, object] = {"name": _name(parent), "legacy_hash": parent.legacy_hash, RECIPE: own}
        if own is not None and _cost({"_" * 64: entry}) > min(room, _MAX_ENTRY):
            notes.append(f"the recipe of input {number + 1} is too long and was left out")
            entry[RECIPE] = None
        room -= _cost({"_" * 64: entry})
        # Without SHA-256 (--no-hash) the next best name keeps the ancestry together.
        models.setdefault(parent.sha256 or f"legacy_hash:{parent.legacy_hash} {_name(parent)}", entry)
    ancestors = _by_generation(parents, _ancestors(parents, notes))
    for count, (key, ancestor) in enumerate(ancestors.items()):
        room -= _cost({key: ancestor})
        if room < 0:
            notes.append(f"{len(ancestors) - count} of the oldest ancestors were left out, for length")
            break
        models.setdefault(key, ancestor)
    return models


def _own_recipe(parent: Parent, number: int, notes: list[str]) -> object:
    """A parent's own recipe, parsed as A1111 does; a text that is not a JSON object is kept unchanged."""
    text = parent.metadata.get(RECIPE)
    if text is None:
        return None
    if not isinstance(text, str):
        notes.append(f"the recipe of input {number + 1} is not text and was left out")
        return None
    parsed = _parse(text)
    if isinstance(parsed, dict):
        return parsed
    if text.lstrip().startswith("{"):
        notes.append(f"the recipe of input {number + 1} is not valid JSON and was left out")
        return None
    return text


def _ancestors(parents: Sequence[Parent], notes: list[str]) -> dict[str, object]:
    """What the parents' files say of their own ancestors; of two entries for one file the first is taken."""
    found: dict[str, object] = {}
    for number, parent in enumerate(parents):
        text = parent.metadata.get(MODELS)
        if text is None:
            continue
        models = _parse(text)
        if not isinstance(models, dict):
            notes.append(f"the ancestry of input {number + 1} is not a valid JSON object and was left out")
            continue
        bad = 0
        for key, entry in _flat(models):
            if _is_sound_entry(key, entry):
                found.setdefault(key, entry)
            else:
                bad += 1
        if bad:
            notes.append(f"{bad} invalid ancestors of input {number + 1} were left out")
    return found


def _flat(models: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The entries; some tools (Forge Neo) nest a parent's table under its own key instead of adding its entries."""
    for key, entry in models.items():
        inner = _parse(entry) if key == MODELS and isinstance(entry, str) else entry
        if key == MODELS and isinstance(inner, dict):
            yield from inner.items()
        else:
            yield key, entry


def _is_sound_entry(key: str, entry: object) -> bool:
    if not isinstance(entry, dict) or len(key) > 128 or re.fullmatch(_PLACEHOLDER, key):
        return False
    return _cost(entry) <= _MAX_ENTRY


def _by_generation(parents: Sequence[Parent], ancestors: dict[str, object]) -> dict[str, object]:
    """``ancestors`` from the youngest to the oldest: those named in the parents' recipes, then in theirs, …

    Those without a name come last.
    """
    rest = dict(ancestors)
    ordered: dict[str, object] = {}
    wanted = [key for parent in parents for key in _named(parent.metadata.get(RECIPE))]
    while wanted:
        generation = {key: rest.pop(key) for key in wanted if key in rest}
        ordered.update(generation)
        wanted = [key for entry in generation.values() if isinstance(entry, dict) for key in _named(entry.get(RECIPE))]
    return ordered | rest


def _named(recipe: object) -> Iterator[str]:
    """The files that a recipe names by their SHA-256."""
    recipe = _parse(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, dict):
        return
    named = [recipe.get(key) for key in _HASH_KEYS]
    models = recipe.get("models")
    if isinstance(models, list):
        named += [model.get("sha256") for model in models if isinstance(model, dict)]
    for key in named:
        if isinstance(key, str):
            yield key


# ---------------------------------------------------------------- ModelSpec


def _agreed(parents: Sequence[Parent]) -> dict[str, str]:
    """The metadata that all parents have, with the same value."""
    if not parents:
        return {}
    first, *others = (parent.metadata for parent in parents)
    return {
        key: value
        for key, value in first.items()
        if _is_text(value) and all(other.get(key) == value for other in others)
    }


def _modelspec(known: Mapping[str, str], title: str, kind: Kind) -> dict[str, str]:
    """ModelSpec's required keys; none when the architecture is unknown, since a spec without one is not valid."""
    if not kind.architecture:
        return {}
    keys = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": kind.architecture,
        "modelspec.implementation": kind.implementation,
        "modelspec.title": _clean(title),
    }
    stated = known.get("modelspec.resolution", "")
    resolution = stated if re.fullmatch(_RESOLUTION, stated) else kind.resolution
    return keys | ({"modelspec.resolution": resolution} if resolution else {})


def _body_hash(body_sha256: str | None) -> dict[str, str]:
    if body_sha256 is None:
        return {}
    return {"modelspec.hash_sha256": f"0x{body_sha256}", "sshs_model_hash": body_sha256}


# ---------------------------------------------------------------- text and JSON


def _name(parent: Parent) -> str:
    return _clean(re.split(r"[\\/]", parent.name)[-1])


def _clean(text: str) -> str:
    """``text`` in a form that can be written: a file name that is not valid Unicode holds lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and (value.isascii() or _clean(value) == value)


def _dump(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise UsageError(
            "a parameter is not a finite number, so that the recipe cannot be stored", code="bad_value"
        ) from None


def _cost(value: object) -> int:
    """Bytes that a value takes in the header, where the JSON text is a string itself."""
    return len(json.dumps(json.dumps(value))) + 2


def _parse(text: object) -> Any:
    """A JSON value from an untrusted text; None when it is not strict JSON, too long or nested too deeply."""
    if not isinstance(text, str) or len(text) > _MAX_PARSED:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return None if _is_deep(value) else value


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _integer(text: str) -> int:
    if len(text) > 40:  # converting a long number costs quadratic time
        raise ValueError("a number of too many digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise ValueError("a number out of range")
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
