"""Triton for the tests: where the test extra brings it, a missing or broken one is a failure."""

from __future__ import annotations

import functools
import importlib
import platform
from typing import Any

import pytest

BROUGHT = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def require_triton(*, interpreted: bool = False) -> Any:
    """The module; skips the test where there is none to be had, or where it is compiled but must be interpreted."""
    triton = importlib.import_module("triton") if BROUGHT else pytest.importorskip("triton")
    if interpreted and not triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here, so Triton compiles (tests/backends/test_gpu.py)", allow_module_level=True)
    if triton.knobs.runtime.interpret:
        _patch_once()
    return triton


@functools.cache
def _patch_once() -> None:
    """The interpreter replaces the language's functions by its own at each launch, and the same ones again in each call
    of a function within the launch, which takes two thirds of its time: only the launch does it from now on."""
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def unless_patched(function: Any) -> Any:
        return patch(function) if language.core.is_builtin(language.load) else None

    interpreter._patch_lang = unless_patched
