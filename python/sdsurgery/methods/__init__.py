"""The merge methods: decorated functions whose body is the formula.

A body is plain arithmetic on its inputs. Called with NumPy arrays it is the reference; called with torch tensors it
is what a training script would write; traced (``program/``) it becomes the small program that the native engine
runs. Adding a function to a module of this package adds the method to the command line, the Python API, the docs
table and the conformance tests.

The names come from ``registry.py`` on first use: ``sdsurgery`` imports this package at once (see there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .across import Across
    from .parameters import Flag, Param, PerInput, Whole
    from .registry import Method, get, method, registered

__all__ = ["Across", "Flag", "Method", "Param", "PerInput", "Whole", "get", "method", "registered"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from . import registry

    return getattr(registry, name)
