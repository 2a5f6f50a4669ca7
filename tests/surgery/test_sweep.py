"""Several outputs from one reading of the inputs: each is its own merge's file; a failure leaves none half-written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from sdsurgery.surgery.sweep import values


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from sdsurgery.testing import write_checkpoint

    folder = tmp_path_factory.mktemp("sweep")
    for seed in (1, 2, 3):
        write_checkpoint(folder / f"{seed}.safetensors", size="tiny", seed=seed)
    return [folder / f"{seed}.safetensors" for seed in (1, 2, 3)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def singles(method: str, files: list[Path], folder: Path, names: dict[str, dict[str, float]], **more: Any) -> list[str]:
    """Digests of the files that single merges write under the sweep's names."""
    folder.mkdir()
    for name, parameters in names.items():
        sds.merge(method, files, out=folder / name, **parameters, **more)
    return [digest(folder / name) for name in names]


@pytest.mark.parametrize(
    ("method", "count", "more"),
    [
        ("weighted-sum", 2, {}),
        ("add-diff", 3, {"dtype": "fp32", "blocks": "IN04=0.9,BASE=0.25"}),
        ("slerp", 2, {"threads": 3, "tile_bytes": 4096}),
        ("weighted-sum", 2, {"hash": False}),
        ("weighted-sum", 2, {"backend": "reference"}),
    ],
)
def test_each_output_is_the_file_of_its_own_merge(
    method: str, count: int, more: dict[str, Any], files: list[Path], tmp_path: Path
) -> None:
    # Names of different lengths: the headers differ, and so does where the data begin.
    alphas = [0.1, 0.25, 0.30000000000000004, 1]
    names = {
        f"mix-{text}.safetensors": {"alpha": alpha}
        for text, alpha in zip(("0.1", "0.25", "0.30000000000000004", "1"), alphas, strict=True)
    }
    expected = singles(method, files[:count], tmp_path / "one", names, **more)
    reports = sds.sweep(
        method, files[:count], parameters={"alpha": alphas}, out=tmp_path / "mix-{alpha}.safetensors", **more
    )
    assert [os.path.basename(report.output or "") for report in reports] == list(names)
    assert [digest(tmp_path / name) for name in names] == expected
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["one", *names])


def test_whole_numbers_are_swept_like_others(files: list[Path], tmp_path: Path) -> None:
    names = {f"m-{seed}.safetensors": {"seed": seed} for seed in (1, 2)}
    expected = singles("dare", files[:2], tmp_path / "one", names, p=0.5)
    words = ["--method", "dare", "--p", "0.5", "--seed", "1:2:1", "-o", tmp_path / "m-{seed}.safetensors"]
    done(command("merge", *files[:2], *words))
    assert [digest(tmp_path / name) for name in names] == expected and expected[0] != expected[1]
    inner = sds.dare(files[0], files[1], p=0.5)
    sds.sweep(sds.mean(inner), parameters={"A.seed": [1, 2]}, out=tmp_path / "r-{A.seed}.safetensors")
    assert digest(tmp_path / "r-1.safetensors") != digest(tmp_path / "r-2.safetensors")


def test_a_ckpt_is_written_too_and_a_format_of_the_number(files: list[Path], tmp_path: Path) -> None:
    expected = singles(
        "weighted-sum", files[:2], tmp_path / "one", {f"m{a:.2f}.ckpt": {"alpha": a} for a in (0.5, 0.75)}
    )
    sds.sweep("weighted-sum", files[:2], parameters={"alpha": (0.5, 0.75)}, out=tmp_path / "m{alpha:.2f}.ckpt")
    assert [digest(tmp_path / f"m{a:.2f}.ckpt") for a in (0.5, 0.75)] == expected


def test_a_placeholder_is_any_name_of_the_number(files: list[Path], tmp_path: Path) -> None:
    for name, given in (("ratio", [0.25, 0.5]), ("alpha", [0.75, 1])):
        sds.sweep("weighted-sum", files[:2], parameters={"ratio": given}, out=tmp_path / f"o-{{{name}}}.safetensors")
    done(command("merge", "--method", "ties", *files, "--alpha", "2,3", "-o", tmp_path / "o-{lambda:.1f}.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"o-{number}.safetensors" for number in ("0.25", "0.5", "0.75", "1", "2.0", "3.0")
    }


def test_two_lists_make_their_product(files: list[Path], tmp_path: Path, registry: None) -> None:
    from sdsurgery.methods import Param, method

    @method("two-numbers", inputs="A B", x=Param(1.0, "x"), y=Param(0.0, "y"))
    def two_numbers(a: Any, b: Any, x: Any, y: Any) -> Any:
        """x·A + y·B"""
        return x * a + y * b

    out = tmp_path / "o-{x}-{y}.safetensors"
    sds.sweep("two-numbers", files[:2], parameters={"x": [1, 2], "y": [0.5, 0.25]}, out=out)
    names = {f"o-{x}-{y}.safetensors": {"x": x, "y": y} for x in (1, 2) for y in (0.5, 0.25)}
    assert [digest(tmp_path / name) for name in names] == singles("two-numbers", files[:2], tmp_path / "one", names)


def test_the_command_line_takes_lists_and_ranges(files: list[Path], tmp_path: Path) -> None:
    given = ["--method", "weighted-sum", files[0], files[1], "-o", tmp_path / "{alpha}.safetensors", "--json"]
    ended = done(command("merge", *given, "--alpha", "0.1:0.3:0.1,0.5"))
    outputs = json.loads(ended.out)["outputs"]
    assert [os.path.basename(item["output"]) for item in outputs] == [f"{a}.safetensors" for a in (0.1, 0.2, 0.3, 0.5)]
    for alpha in (0.1, 0.2, 0.3, 0.5):
        assert (tmp_path / f"{alpha}.safetensors").exists()
    ended = done(command("merge", *given[:-1], "--alpha", "0.1,0.2", "--dry-run", "--force"))
    assert "0.2.safetensors" in ended.out
    done(command("merge", *given[:-1], "--alpha", "0.75"))  # a single number fills the placeholder as well
    assert (tmp_path / "0.75.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.3", [0.3]), ("1,2", [1, 2]), ("0.1:0.5:0.1", [0.1, 0.2, 0.3, 0.4, 0.5]), ("0:1:0.4", [0, 0.4, 0.8]),
        ("1:0:-0.5", [1, 0.5, 0]), ("-1:1:1,7", [-1, 0, 1, 7]), ("1e-1:3e-1:1e-1", [0.1, 0.2, 0.3]),
    ],
)  # fmt: skip
def test_ranges_are_decimal_and_contain_their_end(text: str, found: list[float]) -> None:
    assert values(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[(text, "is not a number like") for text in ("", "x", "1:2", "1:2:3:4", "0:inf:1", "nan:1:1", "1,,2")],
        ("1:2:0", "'1:2:0': steps of 0 do not lead from 1 to 2"),
        ("1:2:-1", "'1:2:-1': steps of -1 do not lead from 1 to 2"),
        ("0.5,1:0:0.1", "steps of 0.1 do not lead from 1 to 0"),
        ("0:1:0.001", "'0:1:0.001': more than 256 numbers, which is the limit of one run"),
        ("0:1e999:1e-999", "more than 256 numbers"),
        ("0:1e999999:1e-999999", "is not a number like"),
    ],
)
def test_what_is_no_number_nor_several_is_refused(text: str, why: str, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "{alpha}.safetensors"
    refused(
        command("merge", "--method", "weighted-sum", files[0], files[1], f"--alpha={text}", "-o", out),
        2,
        why,
    )
    assert not list(tmp_path.iterdir())


def test_a_list_without_a_placeholder_is_refused_with_an_example(files: list[Path], tmp_path: Path) -> None:
    given = ["merge", "--method", "weighted-sum", files[0], files[1], "--alpha", "0.1,0.2"]
    refused(command(*given, "-o", tmp_path / "mix.safetensors"), 2, "mix-{alpha}.safetensors")
    refused(command(*given, "-o", tmp_path / "{{alpha}}.safetensors"), 2, "does not say which")
    refused(command(*given, "-o", tmp_path / "{alpha:.0f}.safetensors"), 2, "several outputs would be named")
    refused(command(*given, "-o", tmp_path / "{alpha:q}.safetensors"), 2, "does not format a number")
    assert not list(tmp_path.iterdir())
    (tmp_path / "0.2.safetensors").write_bytes(b"mine")
    refused(command(*given, "-o", tmp_path / "{alpha}.safetensors"), 2, "0.2.safetensors exists")
    assert [item.name for item in tmp_path.iterdir()] == ["0.2.safetensors"]


@pytest.mark.parametrize(
    ("words", "name", "why"),
    [
        ("ties --density 0.5,0.7", "{density}", "density is a list with a number for each input, which is not a sweep"),
        ("ties --density 0.5,0.7 --lam 0.5,1", "{density}-{lam}", "density is a list"),
        ("ties", "{normalize}", "normalize is yes or no, not a number"),
        ("n-sum", "{weights}", "weights is a list"),
        ("weighted-sum --weights 0.5,0.3,0.2", "{alpha}", "alpha has no number where --weights is given"),
        ("weighted-sum --weights 0.5,0.3,0.2", "{ratio}", "alpha has no number where --weights is given"),
        ("add-diff", "{alpha}-{alhpa}", "nothing fills {alhpa} in the output's name"),
        ("add-diff", "{alhpa:.2f}", "add-diff has no such number; did you mean 'alpha'? (braces that"),
        ("add-diff --alpha 0.1,0.2", "{beta}", "nothing fills {beta}"),
        ("add-diff --alpha 0.1,0.2", "{alpha}-{beta}", "nothing fills {beta}"),
        ("add-diff --alpha 0.1,0.2", "{alpha.real}", "nothing fills {alpha.real}"),
        ("add-diff --alpha 0.1,0.2", "{alpha!r}", "nothing fills {alpha!r}"),
        ("add-diff", "{lora}", "the run has 0 adapters (braces that are meant are doubled: {{lora}})"),
    ],
)
def test_a_placeholder_that_nothing_fills_is_refused_with_the_reason(
    words: str, name: str, why: str, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / f"o-{name}.safetensors"
    line = refused(command("merge", *files, "--method", *words.split(), "-o", out), 2, why)
    assert str(out) in line and not list(tmp_path.iterdir())


def test_python_refuses_such_a_placeholder_too(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "o-{B.alpha}.safetensors"
    recipe = sds.weighted_sum(files[0], sds.mean(files[1], files[2]), alpha=0.25)
    for run in (
        lambda: sds.merge("weighted-sum", files[:2], alpha=0.25, out=out),
        lambda: sds.sweep("weighted-sum", files[:2], parameters={"alpha": 0.25}, out=out),
        lambda: recipe.save(out),
    ):
        with pytest.raises(sds.UsageError, match=r"nothing fills \{B\.alpha\}") as caught:
            run()
        assert caught.value.code == "bad_output"
    recipe.save(tmp_path / "o-{alpha}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["o-0.25.safetensors"]


def test_a_default_fills_its_placeholder_and_a_name_may_be_spelled_as_the_option(
    files: list[Path], tmp_path: Path
) -> None:
    sds.merge("karcher", files[:2], out=tmp_path / "o-{max-iter}-{tol:.0e}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["o-10-1e-05.safetensors"]


@pytest.mark.parametrize(
    ("given", "written"),
    [("{1}", "{1}"), ("{}", "{}"), ("{my model}", "{my model}"), ("a{", "a{"), ("{{x}}", "{x}"),
     ("{{{alpha}}}", "{0.5}"), ("a{-{alpha}", "a{-0.5")],
)  # fmt: skip
def test_other_braces_stay_and_doubled_ones_are_braces(
    given: str, written: str, files: list[Path], tmp_path: Path
) -> None:
    sds.merge("weighted-sum", files[:2], out=tmp_path / f"{given}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [f"{written}.safetensors"]


def test_the_braces_of_a_folder_that_exists_are_its_name(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "{mine}-{alpha}"
    folder.mkdir()
    sds.merge("weighted-sum", files[:2], out=folder / "{alpha}.safetensors")
    assert [path.name for path in folder.iterdir()] == ["0.5.safetensors"]


def test_a_failure_leaves_none_half_written_and_says_which_were_finished(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "o-{alpha}.safetensors"
    with pytest.raises(sds.RunFailed) as caught:
        sds.sweep("weighted-sum", files[:2], parameters={"alpha": [0.5, 1e9]}, out=out, overflow="error")
    assert caught.value.details["finished"] == [] and "none of the outputs is written" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failure_between_commits_says_which_were_finished(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o-{alpha}.safetensors"
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if done == total:  # everything is computed: take the second name away before it is committed
            (tmp_path / "o-0.5.safetensors").mkdir(exist_ok=True)

    with pytest.raises(sds.SdsError) as caught:
        sds.sweep("weighted-sum", files[:2], parameters={"alpha": [0.25, 0.5]}, out=out, progress=progress)
    assert [os.path.basename(path) for path in caught.value.details["finished"]] == ["o-0.25.safetensors"]
    assert "finished before: o-0.25.safetensors" in str(caught.value) and calls
    assert sorted(item.name for item in tmp_path.iterdir()) == ["o-0.25.safetensors", "o-0.5.safetensors"]
    sds.inspect(tmp_path / "o-0.25.safetensors")
