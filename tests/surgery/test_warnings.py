"""Warnings: what is probably not meant is said, with a code that programs can match, and nothing else is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, on_terminal, plain, sds
from sdsurgery.report.warnings import KINDS, warned
from sdsurgery.testing import write_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("warnings")
    made = {}
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        made[name] = plain(folder / f"{name}.safetensors", value, names=("x", "y"))
    made["twin"] = folder / "twin.safetensors"
    made["twin"].write_bytes(made["b"].read_bytes())
    return made


def codes(method: str, inputs: list[Path], **given: Any) -> list[str]:
    return [each.code for each in sdsurgery.merge(method, inputs, dry_run=True, hash=False, **given).warnings]


@pytest.mark.parametrize(
    ("method", "inputs", "given", "expected"),
    [
        ("weighted-sum", "a b", {"alpha": 0.4}, []),
        ("weighted-sum", "a b", {"alpha": -1}, []),
        ("weighted-sum", "a b", {"alpha": 2}, []),
        ("weighted-sum", "a b", {"alpha": 40}, ["out_of_range"]),
        ("weighted-sum", "a b", {"alpha": -1.5}, ["out_of_range"]),
        ("weighted-sum", "a b", {"rules": {"x": 30}}, ["out_of_range"]),
        ("n-sum", "a b c", {"weights": (50, 30, 20)}, ["weights_sum"]),
        ("weighted-sum", "a b", {"alpha": 0}, ["copy"]),
        ("weighted-sum", "a b", {"alpha": 1}, ["copy"]),
        ("weighted-sum.lerp", "a b", {"alpha": 1}, ["copy"]),
        ("add-diff", "a b c", {"alpha": 0}, ["copy"]),
        ("slerp", "a b", {"alpha": 0}, ["copy"]),
        ("slerp", "a b", {"alpha": 1}, ["copy"]),
        ("slerp", "a b", {"alpha": 0.5}, []),
        ("ties", "a b c", {"lam": 50}, ["out_of_range"]),
        ("add-diff", "a b c", {"alpha": 1}, []),
        ("weighted-sum", "a b", {"alpha": 0, "rules": {"x": 0.5}}, []),
        ("weighted-sum", "b b", {"alpha": 0.4}, ["same_file"]),
        ("slerp", "b twin", {"alpha": 0.4}, ["same_file"]),
        ("add-diff", "a b twin", {"alpha": 0.4}, ["zero_difference"]),
        ("add-diff", "b a twin", {"alpha": 0.4}, ["same_file"]),
        ("formula:A + 0.3*(B - C)", "a twin b", {}, ["zero_difference"]),
    ],
)
def test_what_is_probably_not_meant_is_said(
    files: dict[str, Path], method: str, inputs: str, given: dict[str, Any], expected: list[str]
) -> None:
    assert codes(method, [files[name] for name in inputs.split()], **given) == expected


def test_files_that_differ_in_one_byte_are_not_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["b"].read_bytes())
    data[-1] ^= 1
    (tmp_path / "other.safetensors").write_bytes(data)
    assert codes("weighted-sum", [files["b"], tmp_path / "other.safetensors"]) == []


def test_weights_by_block_that_do_not_sum_to_1_are_said(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        write_checkpoint(path, "sd1", size="tiny", seed=seed)

    def said(blocks: dict[str, str]) -> list[str]:
        report = sdsurgery.merge("weighted-sum", paths, weights=(0.5, 0.3, 0.2), blocks=blocks, dry_run=True)
        return [each.text for each in report.warnings if each.code == "weights_sum"]

    assert said({"A": "IN03=0.4", "B": "IN03=0.4"}) == []
    (text,) = said({"B": "IN03=1"})
    assert text.startswith("the weights of IN03 sum to 1.7, not 1;") and "A gets what they leave" in text


def test_a_percentage_is_named(files: dict[str, Path]) -> None:
    (found,) = sdsurgery.merge("weighted-sum", [files["a"], files["b"]], alpha=30, dry_run=True).warnings
    assert found.text == "alpha is 30, outside −1…2; did you mean 0.3 (30 %)?"


def test_ema_that_inference_drops_is_named_with_the_option_that_takes_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny", ema=True)
    result = done(sds("prune", tmp_path / "a.safetensors", "--preset", "inference", "-o", tmp_path / "o.safetensors"))
    assert "warning: " in result.err and "EMA" in result.err and "--preset ema-only" in result.err
    report = sdsurgery.prune(tmp_path / "a.safetensors", preset="ema-only", dry_run=True)
    assert report.warnings == []


def test_json_has_codes_and_text_has_the_word(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    numbers = ("--alpha", "1e6", "--dtype", "fp16", "--json")
    result = done(sds("merge", "--method", "weighted-sum", files["a"], files["b"], *numbers, "-o", out))
    assert [row["code"] for row in result.json()["warnings"]] == ["out_of_range", "overflow"]
    assert not any("outside" in note for note in result.json()["notes"])
    assert result.err.count("\nwarning: ") == 2


def test_warnings_are_yellow_on_a_terminal_only(files: dict[str, Path]) -> None:
    pytest.importorskip("pty")
    command = ["merge", "--method", "weighted-sum", files["a"], files["b"], "--alpha", "30", "--dry-run"]
    shown = {}
    for name, extra in (("colour", {}), ("none", {"NO_COLOR": "1"})):
        code, shown[name] = on_terminal(*command, columns=80, env={"TERM": "xterm-256color", **extra})
        assert code == 0
    assert "\x1b[33mwarning: alpha is 30" in shown["colour"]
    assert "warning: alpha is 30" in shown["none"] and "\x1b[" not in shown["none"]
    assert "\x1b[" not in done(sds(*command)).out


def test_a_warning_is_text_that_keeps_its_code() -> None:
    made = warned("copy", numbers="alpha 0", which="A (a.safetensors)")
    for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (each.code, each) == ("copy", "warning: with alpha 0 the output is a copy of A (a.safetensors)")
    assert all(kind.when and kind.text for kind in KINDS.values())
