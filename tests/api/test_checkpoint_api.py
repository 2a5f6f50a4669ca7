"""Checkpoints as safetensors spells them, ``save``, what stands in a file's place, results, log and progress."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import sdsurgery
import torch
from cli_support import f32, floats, plain, read_raw, started, write_raw
from sdsurgery.testing import write_checkpoint


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return plain(tmp_path / "a.safetensors", 1.0, 2.0, 3.0), plain(tmp_path / "b.safetensors", 3.0, 4.0, 5.0)


# ---- opened checkpoints


def test_a_checkpoint_answers_as_safetensors_does(tmp_path: Path) -> None:
    tensors = {"x": ("F32", [2, 3], f32(*range(6))), "y": ("F16", [2], b"\0<\0@")}
    path = write_raw(tmp_path / "a.safetensors", tensors, {"k": "v"})
    with safetensors.safe_open(path, "pt") as theirs, sdsurgery.open(path) as ours:
        assert list(ours.keys()) == list(theirs.keys()) == [name for name, _ in ours.items()]
        assert len(ours) == 2
        for name in tuple(theirs.keys()):
            assert torch.equal(ours[name], theirs.get_tensor(name))
            assert torch.equal(ours.get_tensor(name), ours[name])
        part, other = ours.get_slice("x"), theirs.get_slice("x")
        assert part.get_shape() == other.get_shape() == [2, 3]
        assert part.get_dtype() == other.get_dtype() == "F32"
        assert torch.equal(part[1:, :2], other[1:, :2])
        for ask in (ours.__getitem__, ours.get_tensor, ours.get_slice):
            with pytest.raises(KeyError, match="no tensor 'z'"):
                ask("z")


def test_the_framework_decides_what_a_tensor_is(pair: tuple[Path, Path]) -> None:
    with sdsurgery.open(pair[0], framework="numpy") as opened:
        assert isinstance(opened["w"], np.ndarray)
    with sdsurgery.open(pair[0], framework="torch") as opened:
        assert isinstance(opened["w"], torch.Tensor)
    with pytest.raises(sdsurgery.UsageError, match="framework="):
        sdsurgery.open(pair[0], framework="jax")  # type: ignore[arg-type]


def test_an_opened_checkpoint_can_take_a_file_s_place_and_stays_open(pair: tuple[Path, Path], tmp_path: Path) -> None:
    by_path, by_object = tmp_path / "paths" / "o.safetensors", tmp_path / "objects" / "o.safetensors"
    by_path.parent.mkdir()
    by_object.parent.mkdir()
    with sdsurgery.open(pair[0]) as a, sdsurgery.open(pair[1]) as b:
        for out, inputs in ((by_path, list(pair)), (by_object, [a, pair[1]])):
            report = sdsurgery.merge("weighted-sum", inputs, alpha=0.25, out=out)  # type: ignore[arg-type]
            assert report.inputs == [str(path) for path in pair]
        assert by_object.read_bytes() == by_path.read_bytes()
        sdsurgery.cast(a, dtype="fp16", out=tmp_path / "c.safetensors")
        assert sdsurgery.compare(a, b).total.tensors == 1
        tree = sdsurgery.merge("weighted-sum", [a, sdsurgery.model(pair[1])], out=tmp_path / "t.safetensors")
        assert tree.counts["merged"] == 1
        assert float(a["w"][0]) == 1


def test_fix_names_leaves_the_caller_s_checkpoint_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, "sd1", size="tiny", metadata={"k": "v"})
    with sdsurgery.open(path) as opened:
        names = opened.keys()
        sdsurgery.cast(opened, fix_names=True, dry_run=True)
        assert opened.keys() == names


# ---- save


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_save_writes_what_others_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    tensors: dict[str, Any] = {
        "half": torch.arange(6, dtype=torch.float16).reshape(2, 3).T,
        "brain": torch.tensor(1.5, dtype=torch.bfloat16),
        "wide": np.arange(4, dtype=">f8")[::-1],
        "flags": np.array([True, False]),
        "count": np.int64(7),
        "none": np.zeros((0, 3), np.float32),
    }
    sdsurgery.save(tensors, path, metadata={"note": "α"})
    if suffix == ".safetensors":
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "note": "α"}
    else:
        found = torch.load(path, weights_only=True)
        found = found.get("state_dict", found)
    for name, value in tensors.items():
        native = value if isinstance(value, torch.Tensor) else np.array(value.astype(value.dtype.newbyteorder("=")))
        wanted = native if isinstance(native, torch.Tensor) else torch.from_numpy(native)
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted), name
    assert sdsurgery.verify(path).ok


def test_save_writes_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sdsurgery.save({"w": np.ones(3, np.float32)}, path)
    before = path.read_bytes()
    with pytest.raises(sdsurgery.UsageError, match="overwrite=True") as caught:
        sdsurgery.save({"w": np.zeros(3, np.float32)}, path)
    assert caught.value.code == "exists"
    for wrong in ([1.0, 2.0], np.array(["x"]), torch.ones(4).to_sparse(), np.ones(2, np.complex128)):
        with pytest.raises(sdsurgery.UsageError) as caught:
            sdsurgery.save({"v": np.ones(1), "w": wrong}, path, overwrite=True)
        assert (caught.value.code, caught.value.tensor) == ("bad_array", "w")
    with pytest.raises(sdsurgery.UsageError, match="must be text"):
        sdsurgery.save({"w": np.ones(1)}, path, metadata={"n": 1}, overwrite=True)  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]
    with sdsurgery.open(path) as opened:
        sdsurgery.save(opened, tmp_path / "b.safetensors")  # type: ignore[arg-type]
    assert read_raw(tmp_path / "b.safetensors")[0] == read_raw(path)[0]


def test_f4_is_given_as_torch_has_it(tmp_path: Path) -> None:
    path = write_raw(
        tmp_path / "a.safetensors",
        {
            "w": ("F4", [2, 4], bytes([0x21, 0x43, 0x65, 0x87])),
            "odd": ("F4", [2, 1], b"\x21"),
            "none": ("F4", [0, 4], b""),
        },
    )
    with sdsurgery.open(path) as opened:
        found = opened.torch("w")
        assert found.dtype == torch.float4_e2m1fn_x2 and found.shape == (2, 2)
        assert found.view(torch.uint8).tolist() == [[0x21, 0x43], [0x65, 0x87]]
        assert opened.torch("none").shape == (0, 2)
        with pytest.raises(TypeError, match="'odd' is odd"):
            opened.torch("odd")
        with pytest.raises(TypeError, match="NumPy has no F4"):
            opened.numpy("w")
    whole = safetensors.torch.load_file(write_raw(tmp_path / "b.safetensors", {"w": read_raw(path)[0]["w"]}))["w"]
    assert torch.equal(whole.view(torch.uint8), found.view(torch.uint8))


# ---- apply_many


def test_apply_many_takes_files_checkpoints_and_dictionaries(pair: tuple[Path, Path]) -> None:
    with sdsurgery.open(pair[1], framework="numpy") as opened:
        for inputs in ((pair[0], opened), (str(pair[0]), {"w": np.array([3, 4, 5], np.float32)})):
            found = sdsurgery.apply_many("weighted_sum", *inputs, alpha=0.25)
            assert found["w"].tolist() == [1.5, 2.5, 3.5]


# ---- spellings


def test_underscores_torch_dtypes_and_the_home_folder(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    report = sdsurgery.merge(
        "weighted_sum", ["~/a.safetensors", "~/b.safetensors"], dtype=torch.float16, out="~/o.safetensors"
    )
    assert report.recipe["method"] == "weighted-sum"
    assert report.recipe["dtype"] == "fp16"
    assert sdsurgery.inspect("~/o.safetensors").total.dtypes == {"F16": 1}
    for dtype, word in ((torch.bfloat16, "bf16"), (torch.float32, "fp32"), (torch.float8_e4m3fn, "fp8_e4m3")):
        assert sdsurgery.Settings(dtype=dtype).dtype == word  # type: ignore[arg-type]
    with pytest.raises(sdsurgery.UsageError, match=r"dtype= cannot be 'torch\.int8'"):
        sdsurgery.cast(pair[0], dtype=torch.int8, dry_run=True)
    x = np.ones(2, np.float32)
    assert sdsurgery.apply("weighted_sum", x, x, dtype=torch.float16).dtype == np.float16


# ---- results


def test_results_are_dataclasses_of_public_types_with_a_short_repr(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_checkpoint(a, "sd1", size="tiny")
    write_checkpoint(b, "sd1", size="tiny", seed=1)
    results: list[Any] = [
        sdsurgery.merge("weighted-sum", [a, b], out=tmp_path / "o.safetensors"),
        sdsurgery.merge("weighted-sum", [a, b], dry_run=True),
        sdsurgery.compare(a, b),
        sdsurgery.inspect(a),
        sdsurgery.verify(a),
        sdsurgery.convert_all([a], out_dir=tmp_path / "many", to="ckpt")[0],
        sdsurgery.scan(a),
    ]
    for result in results:
        assert dataclasses.is_dataclass(result)
        assert getattr(sdsurgery, type(result).__name__) is type(result)
        assert 20 < len(repr(result)) < 300 + 2 * len(str(tmp_path)), repr(result)
        assert "\n" not in repr(result)
    compared = results[2]
    assert isinstance(compared.total, sdsurgery.Likeness)
    assert isinstance(compared.tensors[0], sdsurgery.TensorComparison)
    assert isinstance(compared.tensors[0].place, sdsurgery.Place)
    assert isinstance(results[3].total, sdsurgery.Component)


# ---- log and progress


def test_the_logger_says_what_was_written(pair: tuple[Path, Path], tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="sdsurgery"):
        sdsurgery.merge("weighted-sum", list(pair), weights=[1, 1], out=tmp_path / "o.safetensors")
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "sdsurgery"]
    assert any(level == "DEBUG" and "opened" in text and str(pair[0]) in text for level, text in said)
    assert any(level == "INFO" and text.startswith("merge: wrote") for level, text in said)
    assert any("the weights sum to 2" in text for _, text in said)


def test_nothing_is_printed_and_the_command_line_imports_no_logging(pair: tuple[Path, Path], tmp_path: Path) -> None:
    program = (
        "import logging, sys, sdsurgery\n"
        "sdsurgery.merge('weighted-sum', sys.argv[1:3], weights=[1, 1], out=sys.argv[3])\n"
        "assert isinstance(logging.getLogger('sdsurgery').handlers[0], logging.NullHandler)"
    )
    ended = started(*pair, tmp_path / "o.safetensors", python=("-c", program))
    assert (ended.rc, ended.out, ended.err) == (0, "", "")
    cast = ("cast", pair[0], "-o", tmp_path / "c.safetensors")
    ended = started(*cast, python=("-X", "importtime", "-m", "sdsurgery"))
    assert "sdsurgery.log" in ended.err
    assert "| logging\n" not in ended.err.replace("   ", "")


def test_what_only_reads_tells_how_much_it_has_read(pair: tuple[Path, Path]) -> None:
    """One number may be all that is made of a large tensor."""
    seen: list[tuple[int, int]] = []
    found = sdsurgery.compare(*pair, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.bytes_read, found.bytes_read)
    assert found.bytes_read == 2 * 3 * 4  # two tensors of three float32 numbers
    assert seen == sorted(seen)
    seen.clear()
    sdsurgery.unmix(pair[0], [pair[1]], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.bytes_read, found.bytes_read)
    assert seen == sorted(seen)


def test_progress_true_shows_a_bar(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdsurgery.report import progress

    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(progress._Bar, "update", lambda self, done, total: shown.append((done, total)))
    sdsurgery.merge("weighted-sum", list(pair), out=tmp_path / "o.safetensors", progress=True)
    assert shown and shown[-1][0] == shown[-1][1]
    assert floats(read_raw(tmp_path / "o.safetensors")[0]["w"]) == [2.0, 3.0, 4.0]
    assert sys.stderr is not None


def test_in_a_notebook_the_bar_is_text_that_needs_no_widgets(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from sdsurgery.report import progress

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(progress, "_QUICK", 0)
    with progress.bar("merge") as update:
        update(1_000_000, 4_000_000)
        update(4_000_000, 4_000_000)
    first, *rest = capsys.readouterr().err.split("\r")[1:]
    assert first.startswith("merge ███████░") and "1.00 MB of 4.00 MB" in first
    assert "".join(rest).strip() == "" and len(rest[0]) == len(first), "the line is wiped"


def test_apply_many_copies_what_merge_copies(tmp_path: Path) -> None:
    """Integers and exact-copy names; the same tensors as merging the files."""
    torch = pytest.importorskip("torch")
    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, "sd1", size="tiny", seed=seed)
    sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, dtype="fp16", out=out)
    with sdsurgery.open(out) as merged, sdsurgery.open(a) as first:
        found = sdsurgery.apply_many("weighted-sum", a, b, alpha=0.3, dtype="fp16")
        assert list(found) == first.keys()
        for name, value in merged.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
        betas, ids = found["betas"], found["cond_stage_model.transformer.text_model.embeddings.position_ids"]
        assert betas.dtype == torch.float32 and torch.equal(betas, first["betas"]) and ids.dtype == torch.int64


def test_apply_many_puts_copies_where_they_are_wanted() -> None:
    a = {"w": np.ones(2, np.float32), "count": np.array([3]), "none": np.zeros((0, 4), np.float32)}
    b = {"w": np.zeros(2, np.float32)}  # a name that is copied may be missing here
    found = sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25)
    assert found["count"] is not a["count"] and found["count"][0] == 3 and found["none"].shape == (0, 4)
    assert list(found["w"]) == [0.75, 0.75]
    out = {"count": np.array([0])}
    assert (
        sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25, out=out)["count"] is out["count"] and out["count"] == 3
    )
    with pytest.raises(sdsurgery.UsageError, match="'count' is copied exactly"):
        sdsurgery.apply_many("weighted-sum", a, b, alpha=0.25, out={"count": np.array([0.0])})
    mixed = sdsurgery.apply_many("weighted-sum", {"w": np.ones(2, np.float32)}, {"w": np.array([5, 5])}, alpha=0.25)
    assert list(mixed["w"]) == [1, 1]  # integers are never averaged
