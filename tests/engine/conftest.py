"""What the tests of failing system calls share."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_driver import compiled, write_inputs


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail (tests/helpers/faults.c), for LD_PRELOAD."""
    return compiled(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs for every verb."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))
