"""Recipes in files, on the command line, swept, and of one leaf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from sdsurgery.testing import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for seed, name in enumerate("abcd"):
        write_checkpoint(folder / f"{name}.safetensors", size="tiny", seed=seed)
    (folder / "r.json").write_text(json.dumps(tree(folder).to_json()))
    return folder


def tree(folder: Path, alpha: float = 0.4, inner: float = 0.7) -> sds.Call:
    a, b, c, d = (folder / f"{name}.safetensors" for name in "abcd")
    return sds.weighted_sum(a, sds.add_diff(b, c, d, alpha=inner), alpha=alpha)


def saved(recipe: sds.Call, path: Path) -> bytes:
    path.parent.mkdir(exist_ok=True)
    recipe.save(path)
    return path.read_bytes()


def test_a_file_holds_a_recipe_and_the_command_line_runs_it(folder: Path, tmp_path: Path) -> None:
    assert sds.load_recipe(folder / "r.json") == tree(folder)
    done(command("merge", "--recipe", folder / "r.json", "-o", tmp_path / "out.safetensors"))
    assert (tmp_path / "out.safetensors").read_bytes() == saved(tree(folder), tmp_path / "py" / "out.safetensors")


def test_every_number_of_it_has_a_flag(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done(command("merge", "--recipe", folder / "r.json", "--alpha", "0.25", "--B.alpha", "-1e-1", "-o", out))
    assert out.read_bytes() == saved(tree(folder, 0.25, -0.1), tmp_path / "py" / "out.safetensors")
    shown = done(command("merge", "--recipe", folder / "r.json", "--help")).out
    assert "--B.alpha" in shown and "weighted-sum(a, add-diff(b, c, d, alpha=0.7), alpha=0.4)" in shown


def test_set_gives_a_number_of_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    done(command("merge", "--recipe", folder / "r.json", "--set", "B.alpha=0.2", "-o", out))
    assert out.read_bytes() == saved(tree(folder, inner=0.2), tmp_path / "py" / "out.safetensors")
    more = ("--set", "B.alpah=0.2", "--force", "-o", out)
    refused(command("merge", "--recipe", folder / "r.json", *more), 2, "did you mean 'B.alpha'")


def test_a_file_in_it_may_be_a_path_alone(folder: Path) -> None:
    a, b = str(folder / "a.safetensors"), str(folder / "b.safetensors")
    found = sds.recipe_from_json({"method": "weighted-sum", "inputs": [a, {"path": b}], "parameters": {"alpha": 0.3}})
    assert found == sds.weighted_sum(a, b, alpha=0.3)
    assert sds.recipe_from_json(a) == sds.model(a)


def test_a_sweep_of_a_recipe_writes_the_files_of_its_own_merges(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix-{alpha}-{B.alpha}.safetensors"
    arguments = ("--alpha", "0.1:0.2:0.1", "--B.alpha", "0.3,0.5")
    done(command("merge", "--recipe", folder / "r.json", *arguments, "-o", out))
    names = [f"mix-{alpha}-{inner}.safetensors" for alpha in (0.1, 0.2) for inner in (0.3, 0.5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        alpha, inner = map(float, name.removesuffix(".safetensors").split("-")[1:])
        assert (tmp_path / name).read_bytes() == saved(tree(folder, alpha, inner), tmp_path / "py" / name)


def test_a_sweep_takes_recipes_among_its_inputs(folder: Path, tmp_path: Path) -> None:
    given = [folder / "a.safetensors", sds.add_diff(*(folder / f"{name}.safetensors" for name in "bcd"), alpha=0.7)]
    sds.sweep("weighted-sum", given, parameters={"alpha": [0.1, 0.2]}, out=tmp_path / "s-{alpha}.safetensors")
    for alpha in (0.1, 0.2):
        name = f"s-{alpha}.safetensors"
        assert (tmp_path / name).read_bytes() == saved(tree(folder, alpha), tmp_path / "py" / name)
    weights = {"weights": [0.75, 0.25]}
    (report,) = sds.sweep("weighted-sum", given, parameters=weights, out=tmp_path / "w.safetensors")
    assert report.recipe["parameters"]["weights"] == (0.75, 0.25)


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_leaf_alone_is_a_cast_or_its_ema(tmp_path: Path, use_ema: bool) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, size="tiny", ema=True)
    for kind in ("verb", "leaf"):
        (tmp_path / kind).mkdir()
    verb = sds.ema if use_ema else sds.cast
    verb(path, dtype="bf16", out=tmp_path / "verb" / "o.safetensors")
    (tmp_path / "leaf.json").write_text(json.dumps(sds.model(path, use_ema=use_ema).to_json()))
    command_line = ("merge", "--recipe", tmp_path / "leaf.json", "--dtype", "bf16")
    done(command(*command_line, "-o", tmp_path / "leaf" / "o.safetensors"))
    assert (tmp_path / "leaf" / "o.safetensors").read_bytes() == (tmp_path / "verb" / "o.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a recipe"),
        ('{"method":', "not a recipe"),
        ("[1]", "neither a file's path nor an object"),
        ('{"method": "mean", "inputs": [{"path": "a"}, 3]}', "neither a file's path nor an object"),
        ('{"method": "mean", "inputs": "ab"}', "inputs is no list"),
        ('{"method": "slerpp", "inputs": []}', "did you mean 'slerp'"),
        ('{"method": "slerp", "imputs": []}', "did you mean 'inputs'"),
        ('{"path": "a", "parameters": {}}', "unknown key 'parameters'"),
        ('{"method": "slerp", "inputs": [{"path": "a"}, {"path": "b"}], "parameters": {"alpha": NaN}}', "finite"),
        (b"\xff\xfe", "not UTF-8"),
        ("[" * 100_000, "not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(command("merge", "--recipe", path, "-o", tmp_path / "o.safetensors"), 2, "r.json", words)


def test_what_the_recipe_has_itself_is_refused_beside_it(folder: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "o.safetensors")
    for more, words in (
        (("--method", "add-diff"), "has a method of its own"),
        ((folder / "a.safetensors",), "has files of its own"),
        (("--blocks", "GRAD_V"), "has block weights of its own"),
        (("--formula", "A"), "has a method of its own"),
        (("--clamp",), 'as in "clamp(A,B):add-diff"'),
        (("--bounds", "A,B"), 'as in "clamp(A,B):add-diff"'),
        (("--curve", "smoothstep"), 'as in "smoothstep:weighted-sum"'),
        (("--adjust", "1,2,3,4,5,6,7,8"), 'as in "adjust:add-diff"'),
        (("--variant", "sum"), 'as in "ties.sum"'),
        (("--compat", "supermerger"), 'as in "supermerger:weighted-sum"'),
        (("--map", "x=y"), "--map goes with --method"),
        (("--B.alpah", "1"), "did you mean '--B.alpha'"),
    ):
        refused(command("merge", "--recipe", folder / "r.json", *more, *out), 2, words)
    refused(command("merge", "--recipe", tmp_path / "none.json", *out), 3, "none.json")
    (tmp_path / "one.json").write_text(json.dumps({"path": str(folder / "a.safetensors")}))
    for option in ("--vae=b.safetensors", "--add-missing", "--use-ema=A", "--set=alpha=1"):
        words = f"{option.partition('=')[0]} goes with a recipe that merges"
        refused(command("merge", "--recipe", tmp_path / "one.json", option, *out), 2, words)
    with pytest.raises(sds.UsageError, match="of its own"):
        sds.sweep(tree(folder), ["a"], parameters={}, out=tmp_path / "o.safetensors")
    with pytest.raises(sds.UsageError, match=r"did you mean 'B\.alpha'"):
        sds.sweep(tree(folder), parameters={"B.alhpa": [1]}, out=tmp_path / "o.safetensors")
    weighted = sds.weighted_sum("a", "b", weights=[0.5, 0.5])
    with pytest.raises(sds.UsageError, match="weights="):
        sds.sweep(weighted, parameters={"alpha": [0.1]}, out=tmp_path / "o-{alpha}.safetensors")
