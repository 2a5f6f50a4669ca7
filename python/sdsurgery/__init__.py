"""sdsurgery: exact, flat-memory surgery on Stable Diffusion checkpoints.

    import sdsurgery

    sdsurgery.merge("add-diff", ["a.safetensors", "b.safetensors", "c.safetensors"], alpha=0.7, out="out.safetensors")

Names are imported on first use, so that ``import sdsurgery`` costs nothing.
"""

from __future__ import annotations

import os

# In the source tree the package ``kernels`` lies beside ``python``; installed, it is a folder of this package.
_TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if not os.path.isdir(os.path.join(__path__[0], "kernels")) and os.path.isfile(f"{_TREE}/kernels/elementwise.cu"):
    __path__.append(_TREE)

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .checkpoint import Checkpoint, TensorInfo
    from .checkpoint import open_checkpoint as open
    from .errors import InputRefused, Interrupted, RunFailed, SdsError, UsageError, VerificationDiffers
    from .formats.scan import scan
    from .interop import apply, apply_many
    from .methods import registered as methods
    from .verbs.cast import cast
    from .verbs.compare import Comparison, compare
    from .verbs.components import extract, replace
    from .verbs.convert import convert, convert_all
    from .verbs.ema import ema
    from .verbs.fix_clip import fix_clip
    from .verbs.inspect import inspect
    from .verbs.merge import merge
    from .verbs.prune import prune
    from .verbs.report import Report
    from .verbs.verify import verify

_PLACES = {
    "Checkpoint": ("checkpoint", "Checkpoint"),
    "Comparison": ("verbs.compare", "Comparison"),
    "InputRefused": ("errors", "InputRefused"),
    "Interrupted": ("errors", "Interrupted"),
    "Report": ("verbs.report", "Report"),
    "RunFailed": ("errors", "RunFailed"),
    "SdsError": ("errors", "SdsError"),
    "TensorInfo": ("checkpoint", "TensorInfo"),
    "UsageError": ("errors", "UsageError"),
    "VerificationDiffers": ("errors", "VerificationDiffers"),
    "apply": ("interop", "apply"),
    "apply_many": ("interop", "apply_many"),
    "cast": ("verbs.cast", "cast"),
    "compare": ("verbs.compare", "compare"),
    "convert": ("verbs.convert", "convert"),
    "convert_all": ("verbs.convert", "convert_all"),
    "ema": ("verbs.ema", "ema"),
    "extract": ("verbs.components", "extract"),
    "fix_clip": ("verbs.fix_clip", "fix_clip"),
    "inspect": ("verbs.inspect", "inspect"),
    "merge": ("verbs.merge", "merge"),
    "methods": ("methods", "registered"),
    "open": ("checkpoint", "open_checkpoint"),
    "prune": ("verbs.prune", "prune"),
    "replace": ("verbs.components", "replace"),
    "scan": ("formats.scan", "scan"),
    "verify": ("verbs.verify", "verify"),
}

__all__ = [
    "Checkpoint",
    "Comparison",
    "InputRefused",
    "Interrupted",
    "Report",
    "RunFailed",
    "SdsError",
    "TensorInfo",
    "UsageError",
    "VerificationDiffers",
    "__version__",
    "apply",
    "apply_many",
    "cast",
    "compare",
    "convert",
    "convert_all",
    "ema",
    "extract",
    "fix_clip",
    "inspect",
    "merge",
    "methods",
    "open",
    "prune",
    "replace",
    "scan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sdsurgery' has no attribute '{name}'")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return __all__
