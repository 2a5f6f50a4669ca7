"""What a file is made of, by what its metadata say: one formula in file names for each generation, the youngest first.

Read are our own recipes, and those of the programs that write ``sd_merge_recipe`` and ``sd_merge_models`` too: the web
UI (``modules/extras.py``; Forge Neo writes the same), SD.Next (``modules/extras.py``), supermerger
(``scripts/mergers/mergers.py``) and Chattiori's merger (``merge.py``). All of it is a stranger's: what is not
understood is left out, and nothing raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..ancestors import HASH_KEYS, MODELS, RECIPE, entries
from ..errors import printable
from ..strict_json import parse

_OURS = "sdsurgery"
MOST = 200
"""Generations that are followed."""
_BLOCKS = {
    25: [*(f"IN{k:02}" for k in range(12)), "M00", *(f"OUT{k:02}" for k in range(12))],
    19: [*(f"IN{k:02}" for k in range(9)), "M00", *(f"OUT{k:02}" for k in range(9))],
}
"""What a list of that many numbers stands for; one more is BASE, in front."""


@dataclass(frozen=True)
class Origin:
    """An input of a generation. ``sha256`` is None where the metadata don't say it."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class Generation:
    """One file and how it was made. ``blocks``: by ratio, the numbers of merge blocks where they differ; other blocks
    have that of ``parameters``. ``command`` makes it again, where one of ours can (``report.command``)."""

    name: str
    sha256: str | None
    tool: str
    method: str
    formula: str
    inputs: list[Origin]
    parameters: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, dict[str, float]] = field(default_factory=dict)
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Made(NamedTuple):
    """A recipe in our words, as ``report.formula`` takes it; the inputs' keys in ``sd_merge_models`` and the names that
    the recipe itself gives them."""

    recipe: Mapping[str, Any]
    inputs: Sequence[tuple[str | None, str]]


def ancestry(metadata: Mapping[str, str], path: str) -> list[Generation]:
    """The generations that the metadata of the file ``path`` know, the file itself first. Empty without a recipe."""
    table = parse(metadata.get(MODELS))
    models = {key: entry for key, entry in entries(table) if isinstance(entry, dict)} if isinstance(table, dict) else {}
    files: dict[str, str] = {}  # key -> name
    found: list[tuple[str, str, _Made]] = []  # the key of a file (the root's is empty), the tool, how it was made
    waiting = [("", _stem(path), metadata.get(RECIPE))]
    while waiting and len(found) < MOST:
        key, name, text = waiting.pop(0)
        if key in files:
            continue
        files[key] = name
        made = _read(text)
        if made is None:
            continue
        found.append((key, *made))
        for parent, given in made[1].inputs:
            entry = models.get(parent or "", {})
            waiting.append((parent or given, _stem(entry.get("name")) or given, entry.get(RECIPE)))
    names = _distinct(files)
    return [_generation(key, tool, made, names) for key, tool, made in found]


def _read(text: object) -> tuple[str, _Made] | None:
    """The tool that wrote a recipe, and what it says."""
    recipe = parse(text) if isinstance(text, str) else text
    if not isinstance(recipe, dict):
        return None
    tool = str(recipe.get("type", ""))
    try:
        name, read = _TOOLS[tool]
        made = read(recipe)
        _generation("", name, made, {"": ""})
        return name, made
    except (KeyError, TypeError, ValueError, AttributeError):
        inputs = [(str(key), _short(key)) for key in (recipe.get(name) for name in (*HASH_KEYS, *_MODELS)) if key]
        return printable(tool, 40), _Made({"method": _word(recipe), "parameters": {}}, inputs)


def _word(recipe: Mapping[str, Any]) -> str:
    words = (recipe.get(name) for name in ("method", "merge_method", "interp_method", "mode", "merge_mode"))
    return printable(next((word for word in words if word), "merge"), 40)


def _generation(key: str, tool: str, made: _Made, names: Mapping[str, str]) -> Generation:
    origins = [Origin(names.get(parent or given, given), parent and _sha256(parent)) for parent, given in made.inputs]
    blocks = {
        str(ratio): {str(block): float(number) for block, number in weights.items()}
        for ratio, weights in made.recipe.get("blocks", {}).items()
    }
    shown = _said(made.recipe, [origin.name for origin in origins])
    method, numbers = str(made.recipe.get("method", "")), dict(made.recipe.get("parameters") or {})
    again = _again(made.recipe, [origin.name for origin in origins]) if tool == _OURS else ""
    return Generation(names[key], _sha256(key), tool, method, shown, origins, numbers, blocks, again)


def _again(recipe: Mapping[str, Any], names: Sequence[str]) -> str:
    from ..report.command import command  # late, as the formula

    try:
        return command(recipe, names)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return ""


def _said(recipe: Mapping[str, Any], names: Sequence[str]) -> str:
    """The formula in mathematicians' signs. Names are put in last: they may hold any sign themselves."""
    from ..report.formula import formula  # which needs the methods, for a file that is a merge

    method = str(recipe.get("method", ""))
    if method == "cast" and names:
        vae = f", VAE of {names[1]}" if len(names) > 1 else ""
        return f"{printable(recipe.get('dtype'), 40)}({names[0]}){vae}"
    marks = [f"\uf8ff{number}\uf8fe" for number in range(len(names))]  # of the private use area
    text = formula(method, recipe, marks).replace(" × ", "·")
    return re.sub("\uf8ff([0-9]+)\uf8fe", lambda mark: names[int(mark[1])], text)


def _distinct(files: Mapping[str, str]) -> dict[str, str]:
    """The files' names; two files of one name are told apart by their hashes."""
    names = list(files.values())
    return {key: f"{name} [{_short(key)}]" if key and names.count(name) > 1 else name for key, name in files.items()}


def _stem(path: object) -> str:
    """``models\\anime.safetensors`` as ``anime``."""
    base = re.split(r"[\\/]", path)[-1] if isinstance(path, str) else ""
    stem, suffix = os.path.splitext(base)
    known = suffix.lower() in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    return printable(stem if known else base, 60)


def _sha256(key: str) -> str | None:
    return key.lower() if re.fullmatch("[0-9a-fA-F]{64}", key) else None


def _short(key: object) -> str:
    """What a file is called of which only the hash is known."""
    text = str(key)
    return text[:10] if _sha256(text) else printable(text, 30)


# ---- the programs' recipes


def _ours(recipe: Mapping[str, Any]) -> _Made:
    inputs = []
    for model in recipe["models"]:
        name, sha256, legacy = (model.get(each) for each in ("name", "sha256", "legacy_hash"))
        key = sha256 or (f"legacy_hash:{legacy} {name}" if legacy else None)
        inputs.append((key, _stem(name)))
    return _Made(recipe, inputs)


def _hashed(recipe: Mapping[str, Any], keys: Iterable[str], count: int = 3) -> list[tuple[str | None, str]]:
    given = [recipe.get(key) for key in keys][:count]
    return [(str(key), _short(key)) for key in given if key]


def _merge(
    method: str, inputs: Sequence[tuple[str | None, str]], numbers: Mapping[str, Any], vae: object = "",
    blocks: Mapping[str, Mapping[str, float]] = {},
) -> _Made:  # fmt: skip
    """``numbers`` and ``blocks`` by ratio; what is None or empty is left out."""
    recipe: dict[str, Any] = {
        "method": method, "parameters": {name: float(value) for name, value in numbers.items() if value is not None},
        "blocks": {ratio: weights for ratio, weights in blocks.items() if weights},
    }  # fmt: skip
    if isinstance(vae, str) and vae not in ("", "None"):
        recipe["vae"] = vae
        inputs = [*inputs, (None, _stem(vae))]
    return _Made(recipe, inputs)


def _copy(recipe: Mapping[str, Any], half: bool, vae: object) -> _Made:
    made = _merge("cast", _hashed(recipe, HASH_KEYS, 1), {}, vae)
    return made._replace(recipe={**made.recipe, "dtype": "fp16" if half else "copy"})


def _webui(recipe: Mapping[str, Any]) -> _Made:
    """``multiplier`` is the weight of B, or of B − C."""
    word, vae = str(recipe["interp_method"]), recipe.get("bake_in_vae")
    if word == "No interpolation":
        return _copy(recipe, bool(recipe.get("save_as_half")), vae)
    method, count = {"Weighted sum": ("weighted-sum", 2), "Add difference": ("add-diff", 3)}.get(word, (word, 3))
    return _merge(method, _hashed(recipe, HASH_KEYS, count), {"alpha": recipe.get("multiplier")}, vae)


def _sdnext(recipe: Mapping[str, Any]) -> _Made:
    word = str(recipe["merge_mode"])
    method = {"add_difference": "add-diff"}.get(word, word.replace("_", "-"))
    inputs = _hashed(recipe, HASH_KEYS)
    ratios = ("alpha", "beta") if len(inputs) > 2 and method != "add-diff" else ("alpha",)
    return _merge(method, inputs, {ratio: recipe.get(ratio) for ratio in ratios}, recipe.get("bake_in_vae"))


_MODELS = ("model_a", "model_b", "model_c")
_SUPERMERGER = {
    "Weight sum": ("weighted-sum", 2), "Add difference": ("add-diff", 3), "Triple sum": ("triple-sum", 3),
    "sum Twice": ("sum-twice", 3),
}  # fmt: skip


def _supermerger(recipe: Mapping[str, Any]) -> _Made:
    """``mode`` may have its formula behind a colon; ``weights_alpha`` are the blocks behind BASE, whose number is
    ``base_alpha``."""
    word, how = str(recipe["mode"]).partition(":")[0], str(recipe.get("calcmode") or "normal")
    method, count = _SUPERMERGER.get(word, (word, 3))
    inputs = _hashed(recipe, _MODELS, count)
    ratios = ("alpha", "beta") if count == 3 and method != "add-diff" else ("alpha",)
    numbers = {ratio: recipe.get(f"base_{ratio}") for ratio in ratios}
    blocks = {
        ratio: _by_block(recipe.get(f"weights_{ratio}"), recipe.get(f"base_{ratio}"))
        for ratio in ratios
        if recipe.get("mbw", True)
    }
    return _merge(method if how == "normal" else f"{how} {word}", inputs, numbers, blocks=blocks)


_CHATTIORI = {
    "Weight Sum": "weighted-sum", "Weighted Sum": "weighted-sum", "Add Difference": "add-diff",
    "Triple Sum": "triple-sum", "Sum Twice": "sum-twice",
}  # fmt: skip


def _chattiori(recipe: Mapping[str, Any]) -> _Made:
    word, vae = str(recipe["merge_method"]), recipe.get("bake_in_vae")
    if word == "No Interpolation":
        return _copy(recipe, recipe.get("fp") == "fp16" or bool(recipe.get("save_as_half")), vae)
    inputs = _hashed(recipe, HASH_KEYS)
    numbers = {ratio: _number(recipe.get(ratio, recipe.get(f"{ratio}_info"))) for ratio in ("alpha", "beta")}
    if len(inputs) < 3 or word == "Add Difference":
        del numbers["beta"]
    blocks = {ratio: _by_block(recipe.get(f"{ratio}_weights"), numbers[ratio]) for ratio in numbers}
    method = word if recipe.get("calculation") else _CHATTIORI.get(word, word)
    return _merge(method, inputs, numbers, vae, blocks)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _by_block(given: object, base: object) -> dict[str, float]:
    """A list of numbers, or a text of one, by merge block; none where it is no such list."""
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    numbers = [_number(word) for word in words]
    whole = [number for number in numbers if number is not None]
    first = _number(base)
    if len(whole) != len(numbers):
        return {}
    if len(whole) not in _BLOCKS and len(whole) - 1 in _BLOCKS:
        first, *whole = whole
    rows = dict(zip(_BLOCKS.get(len(whole), ()), whole, strict=False))
    return {**({"BASE": first} if first is not None else {}), **rows} if rows else {}


_TOOLS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], _Made]]] = {
    "sdsurgery": (_OURS, _ours),
    "webui": ("web UI", _webui),
    "Neo": ("Forge Neo", _webui),
    "SDNext": ("SD.Next", _sdnext),
    "sd-webui-supermerger": ("supermerger", _supermerger),
    "merge-models-chattiori": ("Chattiori's merger", _chattiori),
}
"""By the ``type`` of a recipe: what its program is called, and how it is read."""
