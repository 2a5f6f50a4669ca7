"""position_ids: what is wrong with them is noted, and fix-clip repairs it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import sdsurgery
from cli_support import Raw, done, f32, read_raw, refused, sds, write_raw
from sdsurgery.testing import write_checkpoint

KEY = "cond_stage_model.transformer.text_model.embeddings.position_ids"
RIGHT: Raw = ("I64", [1, 77], struct.pack("<77q", *range(77)))


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Raw]:
    path = tmp_path_factory.mktemp("clip") / "in.safetensors"
    write_checkpoint(path, "sd1", size="tiny")
    return read_raw(path)[0]


def damaged(tensors: dict[str, Raw], kind: str) -> dict[str, Raw]:
    wrong = [*range(76), 75.5]
    cases: dict[str, Raw] = {
        "float": ("F32", [1, 77], f32(*range(77))),
        "wrong": ("F16", [1, 77], struct.pack("<77e", *wrong)),
        "bf16": ("BF16", [1, 77], b"".join(struct.pack("<f", value)[2:] for value in range(77))),
        "integers": ("I64", [1, 77], struct.pack("<77q", *range(76), 3)),
    }
    rest = {name: raw for name, raw in tensors.items() if name != KEY}
    return rest if kind == "missing" else {**rest, KEY: cases[kind]}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["missing"]),
        ("float", ["F32"]),
        ("bf16", ["BF16"]),
        ("wrong", ["F16", "75.5 at 76"]),
        ("integers", ["3 at 76"]),
    ],
)
def test_faulty_ids_are_reported_and_repaired(
    kind: str, words: list[str], tensors: dict[str, Raw], tmp_path: Path
) -> None:
    path = write_raw(tmp_path / "in.safetensors", damaged(tensors, kind), {"note": "kept"})
    for notes in (sdsurgery.inspect(path).notes, sdsurgery.verify(path, hash=False).notes):
        (note,) = [note for note in notes if KEY in note]
        assert all(word in note for word in words), note
    out = tmp_path / "out.safetensors"
    done(sds("fix-clip", path, "-o", out))
    found, metadata = read_raw(out)
    assert found == tensors
    assert metadata["note"] == "kept"
    assert not [note for note in sdsurgery.inspect(out).notes if "position_ids" in note]


def test_right_ids_are_not_mentioned(tensors: dict[str, Raw], tmp_path: Path) -> None:
    path = write_raw(tmp_path / "in.safetensors", tensors)
    assert not [note for note in sdsurgery.inspect(path).notes if "position_ids" in note]
    report = sdsurgery.fix_clip(path, out=tmp_path / "out.safetensors")
    assert any("nothing was repaired" in note for note in report.notes)


def test_misplaced_ids_are_dropped(tensors: dict[str, Raw], tmp_path: Path) -> None:
    stray = "cond_stage_model.model.transformer.text_model.embeddings.position_ids"
    path = write_raw(tmp_path / "in.safetensors", {**tensors, stray: RIGHT})
    assert any(stray in note and "does not belong" in note for note in sdsurgery.inspect(path).notes)
    done(sds("fix-clip", path, "-o", tmp_path / "out.safetensors"))
    assert read_raw(tmp_path / "out.safetensors")[0] == tensors


def test_old_names_keep_their_spelling(tensors: dict[str, Raw], tmp_path: Path) -> None:
    old = {name.replace(".text_model.", "."): raw for name, raw in tensors.items() if name != KEY}
    path = write_raw(tmp_path / "in.safetensors", old)
    done(sds("fix-clip", path, "-o", tmp_path / "out.safetensors"))
    assert read_raw(tmp_path / "out.safetensors")[0] == {**old, KEY.replace(".text_model.", "."): RIGHT}


def test_a_family_without_ids_gets_none(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    write_checkpoint(path, "sd2", size="tiny")
    done(sds("fix-clip", path, "-o", tmp_path / "out.safetensors"))
    assert read_raw(tmp_path / "out.safetensors")[0] == read_raw(path)[0]


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_a_text_encoder_without_its_prefix(prefix: str, tensors: dict[str, Raw], tmp_path: Path) -> None:
    """As extract --strip-prefix and diffusers write it, with ids or without: wrong ids are repaired, none are added."""
    place = "cond_stage_model.transformer.text_model."
    right = {prefix + name.removeprefix(place): raw for name, raw in tensors.items() if name.startswith(place)}
    key, out = prefix + "embeddings.position_ids", tmp_path / "out.safetensors"
    path = write_raw(tmp_path / "in.safetensors", {**right, key: damaged(tensors, "wrong")[KEY]})
    assert any(key in note and "75.5 at 76" in note for note in sdsurgery.inspect(path).notes)
    done(sds("fix-clip", path, "-o", out))
    assert read_raw(out)[0] == right
    for less in ({name: raw for name, raw in right.items() if name != key}, {**right, key: ("I64", [2], bytes(16))}):
        assert not [note for note in sdsurgery.inspect(write_raw(path, less)).notes if "position_ids" in note]
        refused(sds("fix-clip", path, "--force", "-o", out), 3, "family clip-l")


def test_ids_that_no_rule_places_are_kept(tensors: dict[str, Raw], tmp_path: Path) -> None:
    """Another encoder's, say: only the two places where careless converters put them are known to be wrong."""
    others = {"aesthetic.text_model.embeddings.position_ids": RIGHT, "vision.position_ids": ("I64", [1, 3], bytes(24))}
    path = write_raw(tmp_path / "in.safetensors", {**tensors, **others})
    assert not [note for note in sdsurgery.inspect(path).notes if "position_ids" in note]
    done(sds("fix-clip", path, "-o", tmp_path / "out.safetensors"))
    assert read_raw(tmp_path / "out.safetensors")[0] == {**tensors, **others}


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "in.safetensors", {"w": ("F32", [1], f32(1))})
    refused(sds("fix-clip", path, "-o", tmp_path / "out.safetensors"), 3, "family unknown")
