"""sdsurgery: exact, flat-memory surgery on Stable Diffusion checkpoints.

    import sdsurgery

    sdsurgery.merge("add-diff", ["a.safetensors", "b.safetensors", "c.safetensors"], alpha=0.7, out="out.safetensors")

Names are imported on first use, so that ``import sdsurgery`` costs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# In the source tree the package ``kernels`` lies beside ``python``; installed, it is a folder of this package.
_TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if not os.path.isdir(os.path.join(__path__[0], "kernels")) and os.path.isfile(f"{_TREE}/kernels/elementwise.cu"):
    __path__.append(_TREE)

# The first import of a subpackage sets the package's attribute of that name. Done here, before the function ``methods``
# is defined, it cannot replace the function later.
from . import methods as _methods  # noqa: E402, F401

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .adapters.lora import Lora, lora
    from .api.adapters import bake, extract_lora, merge_lora, resize_lora
    from .api.analysis import compare, inspect, relations, unmix, verify
    from .api.checkpoints import cast, convert, convert_all, ema, extract, fix_clip, prune, replace
    from .api.merging import merge, sweep
    from .checkpoint import Checkpoint, TensorInfo, TensorSlice
    from .checkpoint import open_checkpoint as open
    from .errors import DeviceFailed, InputRefused, Interrupted, RunFailed, SdsError, UsageError, VerificationDiffers
    from .formats.scan import FileScan, ScanReport, scan
    from .interop.calls import apply, apply_many
    from .interop.saving import save
    from .methods.registry import Method, load_methods
    from .recipe import Call, Leaf, Model, Opened, Recipe, formula, model
    from .recipe import from_json as recipe_from_json
    from .recipe import load as load_recipe
    from .settings import Settings
    from .surgery.compare import Comparison, Place, TensorComparison
    from .surgery.convert import Conversion
    from .surgery.inspect import Component, Inspection
    from .surgery.ratios import BlockWeights, RuleSet
    from .surgery.relations import Relations
    from .surgery.report import Report
    from .surgery.unmix import Unmixing
    from .surgery.verify import Verification

_PLACES = {
    "Component": ("surgery.inspect", "Component"),
    "Conversion": ("surgery.convert", "Conversion"),
    "DeviceFailed": ("errors", "DeviceFailed"),
    "FileScan": ("formats.scan", "FileScan"),
    "Inspection": ("surgery.inspect", "Inspection"),
    "Likeness": ("surgery.likeness", "Likeness"),
    "Place": ("surgery.compare", "Place"),
    "ScanReport": ("formats.scan", "ScanReport"),
    "Settings": ("settings", "Settings"),
    "TensorComparison": ("surgery.compare", "TensorComparison"),
    "TensorSlice": ("checkpoint", "TensorSlice"),
    "Unmixing": ("surgery.unmix", "Unmixing"),
    "Verification": ("surgery.verify", "Verification"),
    "save": ("interop.saving", "save"),
    "Checkpoint": ("checkpoint", "Checkpoint"),
    "Comparison": ("surgery.compare", "Comparison"),
    "InputRefused": ("errors", "InputRefused"),
    "Interrupted": ("errors", "Interrupted"),
    "Relations": ("surgery.relations", "Relations"),
    "Report": ("surgery.report", "Report"),
    "RunFailed": ("errors", "RunFailed"),
    "SdsError": ("errors", "SdsError"),
    "TensorInfo": ("checkpoint", "TensorInfo"),
    "UsageError": ("errors", "UsageError"),
    "VerificationDiffers": ("errors", "VerificationDiffers"),
    "apply": ("interop.calls", "apply"),
    "apply_many": ("interop.calls", "apply_many"),
    "Lora": ("adapters.lora", "Lora"),
    "bake": ("api.adapters", "bake"),
    "cast": ("api.checkpoints", "cast"),
    "compare": ("api.analysis", "compare"),
    "convert": ("api.checkpoints", "convert"),
    "convert_all": ("api.checkpoints", "convert_all"),
    "ema": ("api.checkpoints", "ema"),
    "extract": ("api.checkpoints", "extract"),
    "extract_lora": ("api.adapters", "extract_lora"),
    "fix_clip": ("api.checkpoints", "fix_clip"),
    "formula": ("recipe", "formula"),
    "inspect": ("api.analysis", "inspect"),
    "Call": ("recipe", "Call"),
    "Model": ("recipe", "Model"),
    "Opened": ("recipe", "Opened"),
    "lora": ("adapters.lora", "lora"),
    "merge": ("api.merging", "merge"),
    "merge_lora": ("api.adapters", "merge_lora"),
    "resize_lora": ("api.adapters", "resize_lora"),
    "model": ("recipe", "model"),
    "load_methods": ("methods.registry", "load_methods"),
    "load_recipe": ("recipe", "load"),
    "recipe_from_json": ("recipe", "from_json"),
    "open": ("checkpoint", "open_checkpoint"),
    "prune": ("api.checkpoints", "prune"),
    "relations": ("api.analysis", "relations"),
    "replace": ("api.checkpoints", "replace"),
    "scan": ("formats.scan", "scan"),
    "sweep": ("api.merging", "sweep"),
    "unmix": ("api.analysis", "unmix"),
    "verify": ("api.analysis", "verify"),
}

__all__ = [
    "Call",
    "Checkpoint",
    "Comparison",
    "Component",
    "Conversion",
    "DeviceFailed",
    "FileScan",
    "InputRefused",
    "Inspection",
    "Interrupted",
    "Likeness",
    "Lora",
    "Model",
    "Opened",
    "Place",
    "Relations",
    "Report",
    "RunFailed",
    "ScanReport",
    "SdsError",
    "Settings",
    "TensorComparison",
    "TensorInfo",
    "TensorSlice",
    "Unmixing",
    "UsageError",
    "Verification",
    "VerificationDiffers",
    "__version__",
    "apply",
    "apply_many",
    "bake",
    "cast",
    "compare",
    "convert",
    "convert_all",
    "ema",
    "extract",
    "extract_lora",
    "fix_clip",
    "formula",
    "inspect",
    "load_methods",
    "load_recipe",
    "lora",
    "merge",
    "merge_lora",
    "methods",
    "model",
    "open",
    "prune",
    "recipe_from_json",
    "relations",
    "replace",
    "resize_lora",
    "save",
    "scan",
    "sweep",
    "unmix",
    "verify",
]


def methods() -> dict[str, Method]:
    """All methods by name: what ``merge`` and ``apply`` take. Packages whose methods cannot be loaded are a warning in
    the log."""
    from . import log
    from .methods.registry import registered, unusable

    found = registered(others=True)
    for line in unusable():
        log.warning("%s", line)
    return found


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        if not name.startswith("_") and not _is_module(name) and (found := _method(name)) is not None:
            return found
        raise AttributeError(f"module 'sdsurgery' has no attribute '{name}'")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def _is_module(name: str) -> bool:
    """``from . import name`` asks for the attribute first, and must not load every method for that."""
    return any(os.path.exists(os.path.join(folder, name + end)) for folder in __path__ for end in ("", ".py"))


def _method(name: str) -> Any:
    """``weighted_sum`` and the like: a recipe of the method, for files or other recipes and its numbers."""
    from .methods.registry import registered

    method = registered().get(name.replace("_", "-"))
    if method is None:
        return None
    from .recipe import call

    def recipe(
        *inputs: Recipe | Leaf,
        variant: str | None = None,
        blocks: BlockWeights | Mapping[str, BlockWeights] | None = None,
        rules: RuleSet | Mapping[str, RuleSet] | None = None,
        **parameters: float | Sequence[float],
    ) -> Call:
        return call(name, inputs, variant=variant, blocks=blocks, rules=rules, **parameters)

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = method.body.__doc__
    return recipe


def __dir__() -> list[str]:
    return __all__
