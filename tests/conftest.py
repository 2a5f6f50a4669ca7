"""Fixtures of several test files: small checkpoints, and a registry that forgets what a test adds."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import hypothesis
except ImportError:  # some tests run where nothing but pytest is installed
    pass
else:  # no test passes or fails by the time that it takes: machines differ, and some are busy
    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("untimed")

# NumPy's linear algebra has one thread in the tests' own process: several wait for each other where other workers hold
# the processors, and take ten times the processor time then. OpenBLAS reads the variable as it is loaded; the processes
# that tests start don't get it.
if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with contextlib.suppress(ImportError):
        import numpy  # noqa: F401
    del os.environ["OPENBLAS_NUM_THREADS"]

# Without a GPU the Triton kernel is tested in Triton's interpreter, which has to be chosen before Triton is imported.
if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail when no test that needs a GPU could run")


@pytest.hookimpl(tryfirst=True)  # before xdist starts its workers
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With --require-gpu all tests run in one process: several would take each other's memory on the device."""
    if config.getoption("--require-gpu") and hasattr(config.option, "numprocesses"):
        config.option.numprocesses = 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What collecting makes, the modules and thousands of tests, stays until the end: the garbage collector needn't go
    through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries complain of leaks as Python ends
        gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With --require-gpu, a run in which every GPU test was skipped has failed."""
    if not session.config.getoption("--require-gpu") or exitstatus not in (0, 5):
        return
    if hasattr(session.config, "workerinput"):
        return  # one of several workers: their reports come together in the session that started them
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = reporter.stats.get("passed", []) if reporter else []
    if not any("gpu" in report.keywords for report in passed):
        print("\nno GPU test ran: --require-gpu makes that a failure")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _no_inherited_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests choose the CPU target themselves."""
    monkeypatch.delenv("SDS_CPU", raising=False)


@pytest.fixture
def registry() -> Iterator[None]:
    """Methods that a test registers are gone after it."""
    from sdsurgery.methods import registry

    before = dict(registry.registered())
    yield
    for name in set(registry.registered()) - set(before):
        del registry._METHODS[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A, B and C of the SD 1.5 layout (fp16); A has an EMA twin."""
    from sdsurgery.testing import write_checkpoint

    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_checkpoint(folder / f"{name}.safetensors", "sd1", size="tiny", seed=seed, ema=name == "a")
    return folder


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A, B and C of the SD 1.5 layout, of different dtypes."""
    from sdsurgery.testing import write_checkpoint

    folder = tmp_path_factory.mktemp("trio")
    files = [folder / f"{name}.safetensors" for name in "abc"]
    for seed, (file, dtype) in enumerate(zip(files, ("fp16", "fp16", "bf16"), strict=True)):
        write_checkpoint(file, "sd1", dtype=dtype, seed=seed, size="tiny")
    return files


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the reference tables of the layouts."""
    from layout_tools import reference_tables

    return reference_tables()


@pytest.fixture(scope="session")
def adapters() -> Path:
    """The folder with the golden values and the key lists of adapters."""
    from layout_tools import reference_tables

    folder = reference_tables().parent / "lora"
    if not folder.is_dir():
        pytest.skip("without the reference values of adapters")
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[str]:
    """A path that a hostile file would create if any code in it ran."""
    path = str(tmp_path / "canary")
    yield path
    assert not os.path.exists(path), "code from a file ran"
