"""The handler of SIGBUS: there while a run reads mapped files, and at no other time."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest
import sdsurgery
from cli_support import plain
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at the C library's struct sigaction of Linux")


def handler() -> int:
    """The address of the process's handler of SIGBUS; 0 for the system's default."""
    action = ctypes.create_string_buffer(512)
    assert ctypes.CDLL(None).sigaction(signal.SIGBUS, None, action) == 0
    return ctypes.cast(action, ctypes.POINTER(ctypes.c_size_t))[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    write_checkpoint(path, "sdxl-base", size="tiny")
    return path


@pytest.mark.parametrize("hash", [True, False])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_it_is_installed_for_the_time_of_a_run(
    model: Path, tmp_path: Path, io: Literal["mmap", "pread"], hash: bool
) -> None:
    before, during, over = handler(), set(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            during.add(handler())

    watching = threading.Thread(target=watch)
    watching.start()
    for number in range(3):
        out = tmp_path / f"{number}.safetensors"
        sdsurgery.cast(model, dtype="bf16", out=out, io=io, hash=hash, sync=False, tile_bytes=4096)
        assert handler() == before
    over.set()
    watching.join()
    assert len(during) == (2 if io == "mmap" else 1)


def test_a_handler_of_others_is_back_after_a_run_that_failed(model: Path, tmp_path: Path) -> None:
    faulthandler.enable()
    before = handler()
    path = plain(tmp_path / "nan.safetensors", float("nan"), 1.0)
    with pytest.raises(sdsurgery.InputRefused):
        sdsurgery.cast(path, dtype="bf16", out=tmp_path / "out.safetensors", io="mmap", on_nonfinite="error")
    assert handler() == before != 0
