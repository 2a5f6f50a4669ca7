"""Metadata that the user gives, and what of A's a merge keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, read_raw, refused, sds
from sdsurgery.testing import write_checkpoint


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for seed, name in enumerate(("kittens", "puppies")):
        facts = {"modelspec.author": "someone", "ss_seed": "1", "workflow": "{}"}
        write_checkpoint(tmp_path / f"{name}.safetensors", "sd1", size="tiny", seed=seed, metadata=facts)
    return tmp_path


def test_title_author_licence_and_texts_can_be_given(two: Path) -> None:
    words = (
        "--title",
        "My Mix",
        "--author",
        "me",
        "--license",
        "CC0",
        "--metadata",
        "a=b=c",
        "--metadata",
        "modelspec.tags=x",
    )
    verbs = (
        ("merge", "kittens.safetensors", "puppies.safetensors", "--method", "weighted-sum"),
        ("cast", "kittens.safetensors"),
    )
    for verb in verbs:
        done(sds(*verb, *words, "-o", "out.safetensors", "--force", cwd=two))
        found = read_raw(two / "out.safetensors")[1]
        assert found["modelspec.title"] == "My Mix"
        assert found["modelspec.author"] == "me"
        assert found["modelspec.license"] == "CC0"
        assert (found["a"], found["modelspec.tags"]) == ("b=c", "x")
    refused(sds("cast", "kittens.safetensors", "--metadata", "x", "-o", "o", cwd=two), 2, "KEY=VALUE")
    again = sdsurgery.cast(two / "kittens.safetensors", metadata={"k": "v"}, out=two / "k.safetensors")
    assert read_raw(two / "k.safetensors")[1]["k"] == "v"
    assert not again.nonfinite


def test_a_merge_keeps_a_s_author_and_lists_what_it_leaves_out(two: Path) -> None:
    inputs = [two / "kittens.safetensors", two / "puppies.safetensors"]
    report = sdsurgery.merge("weighted-sum", inputs, alpha=0.5, out=two / "out.safetensors")
    assert read_raw(two / "out.safetensors")[1]["modelspec.author"] == "someone"
    (note,) = [note for note in report.notes if "left out" in note]
    assert "ss_seed" in note
    assert "workflow" in note


def test_recipe_and_names_can_be_left_out(two: Path) -> None:
    words = ("merge", "--method", "weighted-sum", "kittens.safetensors", "puppies.safetensors", "--force")
    done(sds(*words, "--no-recipe", "-o", "out.safetensors", cwd=two))
    assert not [key for key in read_raw(two / "out.safetensors")[1] if "merge" in key]
    done(sds(*words, "--no-names", "-o", "mix.safetensors", cwd=two))
    text = json.dumps(read_raw(two / "mix.safetensors")[1])
    assert not any(word in text for word in ("kittens", "puppies", "mix"))
    for old, new in (("kittens", "x"), ("puppies", "y")):
        (two / f"{old}.safetensors").rename(two / f"{new}.safetensors")
    words = ("merge", "--method", "weighted-sum", "x.safetensors", "y.safetensors", "--no-names")
    done(sds(*words, "-o", "other.safetensors", cwd=two))
    assert (two / "mix.safetensors").read_bytes() == (two / "other.safetensors").read_bytes()
