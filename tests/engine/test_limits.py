"""Under any limit of the process every run ends with a result or a line: never by a signal, a traceback, or words of
others."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from cli_support import environment
from fault_driver import write_inputs
from test_read_faults import VERBS

if sys.platform != "linux":
    pytest.skip("limits of Linux", allow_module_level=True)
import resource

MB = 1_000_000
# Neighbours among the verbs meet other limits, so that together they meet all.
LITTLE = [(verb, 40 * MB + (number * 3 + step * 30) * MB) for number, verb in enumerate(VERBS) for step in range(2)]
SOME = ("merge", "cast", "convert", "scan", "verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def ends_well(folder: Path, kind: int, case: tuple[str, int]) -> int:
    """Run a verb under a limit; its exit code."""
    verb, limit = case
    own = f"out.{verb.replace(' ', '-')}.{kind}.{limit}"
    words = [word.replace("out.", f"{own}.") for word in (VERBS | WITH_NUMPY)[verb]]
    done = subprocess.run(
        [sys.executable, "-m", "sdsurgery", *words, "-q"], cwd=folder, env=environment(), capture_output=True,
        text=True, check=False, preexec_fn=partial(resource.setrlimit, kind, (limit, limit)),
    )  # fmt: skip
    left = [path.name for path in folder.iterdir() if path.name.startswith(own)]
    assert done.returncode in (0, 1, 4), (case, done.returncode, done.stderr)
    if done.returncode == 1:
        assert done.stderr.startswith("sdsurgery: ") and done.stderr.count("\n") == 1, (case, done.stderr)
        assert "internal error" not in done.stderr, (case, done.stderr)
        assert left == [], case
    for name in left:
        (folder / name).unlink()
    return done.returncode


# What NumPy's OpenBLAS says where it gets no memory is none of ours, and ends the process.
WITH_NUMPY = {
    "map": ["map", "in.safetensors", "in.b.safetensors"],
    "unmix": ["unmix", "in.safetensors", "in.b.safetensors", "in.ema.safetensors"],
    "extract-lora": [
        *("extract-lora", "in.safetensors", "in.b.safetensors", "--rank", "2", "-o", "out.safetensors"),
    ],
}
NUMPY_LIMITS = [(verb, limit * MB) for verb in WITH_NUMPY for limit in (45, 62, 65, 105, 165, 300)]


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        (resource.RLIMIT_AS, LITTLE),
        (resource.RLIMIT_AS, NUMPY_LIMITS),
        (resource.RLIMIT_DATA, [(verb, limit * MB) for verb in SOME for limit in (20, 35)]),
        (resource.RLIMIT_NOFILE, [(verb, limit) for verb in SOME for limit in (12, 20, 64)]),
        (resource.RLIMIT_FSIZE, [(verb, limit) for verb in SOME[:3] for limit in (0, 1 * MB)]),
    ],
    ids=["memory", "memory for NumPy", "data", "files", "size"],
)
def test_every_run_ends_with_a_result_or_a_line(folder: Path, kind: int, cases: list[tuple[str, int]]) -> None:
    with ThreadPoolExecutor(2) as pool:
        codes = set(pool.map(partial(ends_well, folder, kind), cases))
    assert codes & {0, 1}, "the limits were met, and some were not"
