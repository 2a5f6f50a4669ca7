"""Recipe and ancestry of an output: ``sd_merge_recipe`` and ``sd_merge_models``, made of what its parents' files say.

What parents' files say is hostile until proven otherwise: whatever does not parse is left out, with a note in the
recipe, and is never an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .strict_json import clean, cost, dump, parse

if TYPE_CHECKING:
    from .metadata import Kind, Parent

RECIPE, MODELS = "sd_merge_recipe", "sd_merge_models"
MAX_ANCESTRY = 1_000_000
"""Bytes that ``sd_merge_models`` may take in a header; the oldest generations are left out of a longer one."""

HASH_KEYS = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
_MAX_ENTRY = 100_000
_A1111_METHODS = {"weighted-sum": "Weighted sum", "add-diff": "Add difference"}
_PLACEHOLDER = r"_{4,}[0-9]+"


def name_of(parent: Parent) -> str:
    return clean(re.split(r"[\\/]", parent.name)[-1])


def ancestry(
    recipe: Mapping[str, object], parents: Sequence[Parent], title: str, kind: Kind, version: str
) -> dict[str, str]:
    notes: list[str] = []
    models = _models(parents, notes)
    ours: dict[str, object] = {"type": "sdsurgery", "version": version, **recipe}
    ours.update(_a1111_keys(recipe, parents, title, kind))
    ours["models"] = [
        {"name": name_of(parent), "sha256": parent.sha256, "legacy_hash": parent.legacy_hash} for parent in parents
    ]
    if notes:
        ours["notes"] = notes
    ours.update(type="sdsurgery", version=version)  # whatever the recipe says
    return {RECIPE: dump(ours), MODELS: dump(models)}


def _a1111_keys(recipe: Mapping[str, object], parents: Sequence[Parent], title: str, kind: Kind) -> dict[str, object]:
    """What A1111's own recipes hold: the first three inputs' SHA-256 or None, and its form's fields in its words."""
    method, parameters = str(recipe.get("method", "")), recipe.get("parameters")
    hashes = [*(parent.sha256 for parent in parents[:3]), None, None, None]
    numbers = parameters if isinstance(parameters, Mapping) else {}
    several = numbers.get("weights") or "blocks" in recipe or "rules" in recipe
    return {
        **dict(zip(HASH_KEYS, hashes, strict=False)),
        "interp_method": _A1111_METHODS.get(method, method),
        "multiplier": None if several else numbers.get("alpha"),  # one number for the whole merge, or none
        "save_as_half": recipe.get("dtype") == "fp16",
        "custom_name": clean(title),
        "config_source": 3,  # "Don't": no .yaml is copied
        "bake_in_vae": clean(str(recipe.get("vae") or "None")),
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
        entry: dict[str, object] = {"name": name_of(parent), "legacy_hash": parent.legacy_hash, RECIPE: own}
        if own is not None and cost({"_" * 64: entry}) > min(room, _MAX_ENTRY):
            notes.append(f"the recipe of input {number + 1} is too long and was left out")
            entry[RECIPE] = None
        room -= cost({"_" * 64: entry})
        # Without SHA-256 (--no-hash) the next best name keeps the ancestry together.
        models.setdefault(parent.sha256 or f"legacy_hash:{parent.legacy_hash} {name_of(parent)}", entry)
    ancestors = _by_generation(parents, _ancestors(parents, notes))
    for count, (key, ancestor) in enumerate(ancestors.items()):
        room -= cost({key: ancestor})
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
    parsed = parse(text)
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
        models = parse(text)
        if not isinstance(models, dict):
            notes.append(f"the ancestry of input {number + 1} is not a valid JSON object and was left out")
            continue
        bad = 0
        for key, entry in entries(models):
            if _is_sound_entry(key, entry):
                found.setdefault(key, entry)
            else:
                bad += 1
        if bad:
            notes.append(f"{bad} invalid ancestors of input {number + 1} were left out")
    return found


def entries(models: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The entries; some tools (Forge Neo) nest a parent's table under its own key instead of adding its entries."""
    for key, entry in models.items():
        inner = parse(entry) if key == MODELS and isinstance(entry, str) else entry
        if key == MODELS and isinstance(inner, dict):
            yield from inner.items()
        else:
            yield key, entry


def _is_sound_entry(key: str, entry: object) -> bool:
    if not isinstance(entry, dict) or len(key) > 128 or re.fullmatch(_PLACEHOLDER, key):
        return False
    return cost(entry) <= _MAX_ENTRY


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
    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, dict):
        return
    named = [recipe.get(key) for key in HASH_KEYS]
    models = recipe.get("models")
    if isinstance(models, list):
        named += [model.get("sha256") for model in models if isinstance(model, dict)]
    for key in named:
        if isinstance(key, str):
            yield key
