"""Methods of other packages, offered by entry points: one that is broken stops nothing else, and is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from cli_support import done, refused, started
from sdsurgery.testing import write_checkpoint

GOOD = """
from sdsurgery.functions import where
from sdsurgery.methods import Param, method


@method("larger-of-two", inputs="A B", share=Param(0.5, "share of the larger"))
def larger_of_two(a, b, share):
    \"\"\"A, moved towards the larger of A and B.\"\"\"
    return a + share * (where(abs(b) > abs(a), b, a) - a)
"""
BROKEN = {
    "import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    "1/0": "ZeroDivisionError: division by zero",
    "x = (": "SyntaxError: ",
    "raise SystemExit(3)": "SystemExit: 3",
    "thing = 5": "it registers no method (with @method)",
    GOOD.replace("larger-of-two", "slerp"): "ValueError: there is a method slerp already",
    GOOD.replace("Param(0.5,", "Param('half',"): "TypeError: the method larger-of-two: the default of share is 'half'",
    GOOD.replace('larger")', 'larger", "0..1")'): "ValueError: the method larger-of-two: the range of share is '0..1'",
}


def offered(folder: Path, package: str, body: str, value: str = "") -> None:
    """An installed package, as far as Python looks for one."""
    (folder / f"{package}_methods.py").write_text(body)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    value = value or f"{package}_methods"
    (info / "entry_points.txt").write_text(f"[sdsurgery.methods]\n{package}-method = {value}\n")


@pytest.fixture(name="words")
def _words(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    for seed, path in enumerate(files):
        write_checkpoint(path, "sd1", seed=seed, size="tiny")
    return ["merge", *files, "-o", str(tmp_path / "o.safetensors"), "--method"]


def environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_a_package_offers_methods_by_an_entry_point(words: list[str], tmp_path: Path) -> None:
    offered(tmp_path, "theirs", GOOD)
    found = environment(tmp_path)
    done(started(*words, "larger-of-two", "--share", "0.5", env=found))
    listed = done(started("methods", env=found))
    assert "larger-of-two" in listed.out and not listed.err


@pytest.mark.parametrize(("body", "why"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_package_is_one_warning_and_takes_nothing_from_the_others(
    body: str, why: str, words: list[str], tmp_path: Path
) -> None:
    offered(tmp_path, "broken", body)
    offered(tmp_path, "sound", GOOD.replace("larger-of-two", "of-the-sound"))
    found = environment(tmp_path)
    listed = done(started("methods", env=found))
    assert "of-the-sound" in listed.out and "weighted-sum" in listed.out
    (line,) = listed.err.splitlines()
    assert line.startswith("warning: the methods of broken (broken_methods) cannot be loaded: ") and why in line
    done(started(*words, "of-the-sound", env=found))
    refused(started(*words, "broken-method", env=found), 2, "unknown method 'broken-method'", "methods of broken", why)


def test_json_and_the_log_have_the_warning_too(tmp_path: Path) -> None:
    offered(tmp_path, "broken", GOOD, "broken_methods:no_such_thing")
    found = environment(tmp_path)
    (warning,) = json.loads(done(started("methods", "--json", env=found)).out)["warnings"]
    assert warning["code"] == "unusable_package" and "no attribute 'no_such_thing'" in warning["text"]
    assert not done(started("methods", "-q", env=found)).err
    script = "import logging, sdsurgery; logging.basicConfig(); assert 'slerp' in sdsurgery.methods()"
    from subprocess import run

    ran = run([sys.executable, "-c", script], env={**os.environ, **found}, capture_output=True, text=True, check=True)
    assert ran.stderr.startswith("WARNING:sdsurgery:the methods of broken (broken_methods:no_such_thing)")


@pytest.mark.parametrize("method", ["weighted-sum", "Slerp", "ties.sum", "clamp(A,B):slerp"])
def test_a_merge_by_a_method_of_ours_does_not_look_at_other_packages(
    method: str, words: list[str], tmp_path: Path
) -> None:
    offered(tmp_path, "broken", f"open({str(tmp_path / 'looked')!r}, 'w')\nraise RuntimeError")
    done(started(*words, method, env=environment(tmp_path)))
    assert not (tmp_path / "looked").exists()
