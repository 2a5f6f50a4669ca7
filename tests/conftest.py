"""Fixtures of several test files: the CPU targets of this machine, and a registry that forgets what a test adds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Without a GPU the Triton kernel is tested in Triton's interpreter, which has to be chosen before Triton is imported.
if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _no_inherited_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests choose the CPU target themselves."""
    monkeypatch.delenv("SDS_CPU", raising=False)


@pytest.fixture
def registry() -> Iterator[None]:
    """Methods that a test registers are gone after it."""
    from sdsurgery import methods

    before = dict(methods.registered())
    yield
    for name in set(methods.registered()) - set(before):
        del methods._METHODS[name]
