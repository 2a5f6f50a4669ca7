"""Every writing verb writes the tensors that it wrote when bench/results/outputs-tiny-*.json was recorded."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli_support import sds

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """bench/output_digests.py as a module."""
    spec = importlib.util.spec_from_file_location("output_digests", BENCH / "output_digests.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks for it there
    spec.loader.exec_module(module)
    return module


def test_the_tensors_are_those_recorded(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_process = tool.Run._python

    def run(self: Any, *arguments: str) -> int:
        if arguments[:2] != ("-m", "sdsurgery"):
            code: int = in_a_process(self, *arguments)
            return code
        monkeypatch.setenv("SDS_CACHE", str(self.folder / "cache"))
        return sds(*arguments[2:], cwd=self.folder).rc

    monkeypatch.setattr(tool.Run, "_python", run)  # a process of its own for each of the commands shows no more
    in_this_thread = SimpleNamespace(map=map)  # where handlers of signals may be set
    monkeypatch.setattr(tool, "ThreadPoolExecutor", lambda _: contextlib.nullcontext(in_this_thread))
    recorded = json.loads(max((BENCH / "results").glob("outputs-tiny-*.json")).read_text(encoding="utf-8"))
    families = ["sd1"]
    found = tool.record(sys.executable, full=False, families=families, folder=tmp_path, jobs=1)
    recorded["files"] = {name: one for name, one in recorded["files"].items() if name.split("/")[0] in families}
    assert recorded["files"]
    assert [line for line in tool.differences(recorded, found) if "metadata differs" not in line] == []


def test_a_difference_is_listed_by_what_it_touches(tool: ModuleType) -> None:
    old = {
        "same": {"bytes": 1, "file": "1", "tensors": "2"},
        "texts": {"bytes": 1, "file": "3", "tensors": "4"},
        "tensors": {"bytes": 1, "file": "5", "tensors": "6"},
        "ckpt": {"bytes": 1, "file": "7"},
        "refused": {"bytes": 1, "file": "8"},
        "gone": {"exit": 3},
    }
    new = {
        "same": old["same"],
        "texts": {"bytes": 1, "file": "30", "tensors": "4"},
        "tensors": {"bytes": 2, "file": "50", "tensors": "60"},
        "ckpt": {"bytes": 1, "file": "70"},
        "refused": {"exit": 2},
        "added": {"exit": 3},
    }
    assert tool.differences({"files": old}, {"files": new}) == [
        "texts: the metadata differs, the tensors don't",
        "tensors: 1 bytes before, 2 now, and other tensors",
        "ckpt: 1 bytes before, 1 now, and other bytes",
        "refused: written before, exit code 2 now",
        "gone: only before",
        "added: only now",
    ]
