"""Triton for the tests: where the test extra brings it, a missing or broken one is a failure."""

from __future__ import annotations

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
    return triton
