"""convert, and ``-o X.ckpt`` of every verb: torch and the safetensors library read it, and nothing is lost."""

from __future__ import annotations

import argparse
import os
import zipfile
from pathlib import Path

import pytest
import safetensors.torch as safetensors
import sdsurgery
from cli_support import done, no_new_entries, refused, sds, started
from sdsurgery.testing import write_checkpoint
from torch_support import DTYPES, raw, sample, saved, torch

SAFE = [name for name in DTYPES if not name.endswith(("FNUZ", "E8M0"))]  # what the library can load


def everything() -> dict[str, torch.Tensor]:
    """Every dtype, odd shapes and names, a view, shared tensors."""
    values = {name: sample(DTYPES[name], 3, 5) for name in SAFE}
    values |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "żółw 😀": torch.ones(2)}
    values["view"] = torch.randn(40, 30).t()
    values["tied"] = values["F32"]
    return values


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert raw(found[name]) == raw(value), name


def loaded(path: Path, **options: bool) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, **options)["state_dict"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("form", "protocol"), [("zip", 2), ("zip", 4), ("legacy", 2), ("legacy", 4)])
def test_ckpt_to_safetensors_and_back(tmp_path, form, protocol, backend):
    values = everything()
    (tmp_path / "in.ckpt").write_bytes(saved({"state_dict": values, "epoch": 7}, form, protocol))
    given = {"backend": backend, "sync": False}
    there = sdsurgery.convert(tmp_path / "in.ckpt", out=tmp_path / "there.safetensors", **given)
    back = sdsurgery.convert(tmp_path / "there.safetensors", out=tmp_path / "back.pt", **given)
    again = sdsurgery.convert(tmp_path / "in.ckpt", out=tmp_path / "again.ckpt", **given)
    assert_same(safetensors.load_file(tmp_path / "there.safetensors"), values)
    for name in ("back.pt", "again.ckpt"):
        assert_same(loaded(tmp_path / name), values)
        assert_same(loaded(tmp_path / name, mmap=True), values)
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert archive.testzip() is None  # every CRC-32
            assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
    assert any("'tied'" in note and "written out in full" in note for note in there.notes)
    assert not any("written out in full" in note for note in (*back.notes, *again.notes))
    tensors = loaded(tmp_path / "again.ckpt")
    assert tensors["tied"].data_ptr() == tensors["F32"].data_ptr()
    assert again.bytes_written < back.bytes_written  # shared data once; the way through safetensors wrote them twice


def test_what_lies_beside_the_weights_is_summarised_in_the_metadata(tmp_path):
    nest = {
        "epoch": 3,
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": {"lr": 1e-4, "args": argparse.Namespace(size=512)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    }
    (tmp_path / "in.ckpt").write_bytes(saved(nest))
    for out in ("a.safetensors", "b.ckpt"):
        sdsurgery.convert(tmp_path / "in.ckpt", out=tmp_path / out)
        with sdsurgery.open(tmp_path / out) as checkpoint:
            metadata = checkpoint.metadata()
        assert metadata["ckpt.epoch"] == "3"
        assert "0.0001" in metadata["ckpt.hyper_parameters"] and "512" in metadata["ckpt.hyper_parameters"]
        assert '"method":"convert"' in metadata["sd_merge_recipe"]
    assert torch.load(tmp_path / "b.ckpt", weights_only=True)["__metadata__"] == metadata
    with sdsurgery.open(tmp_path / "a.safetensors") as first:
        sdsurgery.convert(tmp_path / "a.safetensors", out=tmp_path / "c.ckpt", hash=False)
        with sdsurgery.open(tmp_path / "c.ckpt") as second:
            kept = {key: text for key, text in first.metadata().items() if key.startswith("ckpt.")}
            assert kept.items() <= second.metadata().items()


@pytest.mark.parametrize(
    "command",
    [
        ("merge", "--method", "weighted-sum", "--alpha", "0.5", "a.safetensors", "b.safetensors"),
        ("cast", "--dtype", "fp16", "a.safetensors"),
        ("ema", "--to-ema", "a.safetensors"),
        ("prune", "--preset", "inference", "a.safetensors"),
        ("extract", "--component", "vae", "a.safetensors"),
        ("replace", "--component", "vae", "--with", "b.safetensors", "a.safetensors"),
        ("fix-clip", "a.safetensors"),
    ],
    ids=lambda command: command[0],
)
def test_every_writing_verb_writes_the_format_that_the_suffix_says(tmp_path, command):
    for seed, name in enumerate(("a", "b")):
        write_checkpoint(tmp_path / f"{name}.safetensors", "sd1", size="tiny", seed=seed)
    for out in ("one.safetensors", "two.ckpt"):
        done(started(*command, "-o", out, cwd=tmp_path, env={"SDS_CACHE": str(tmp_path / "cache")}))
    expected = safetensors.load_file(tmp_path / "one.safetensors")
    assert_same(loaded(tmp_path / "two.ckpt"), expected)
    first = (tmp_path / "two.ckpt").read_bytes()
    done(sds(*command, "-o", "two.ckpt", "--force", "--threads", "1", cwd=tmp_path))
    assert (tmp_path / "two.ckpt").read_bytes() == first


def test_a_torch_file_is_what_ever_the_file_is_called(tmp_path):
    """A pickle under a .safetensors name and the other way round are converted by their content."""
    values = {"w": torch.arange(6.0).reshape(2, 3)}
    (tmp_path / "a.safetensors").write_bytes(saved(values))
    (tmp_path / "b.ckpt").write_bytes(safetensors.save(values))
    done(sds("convert", "a.safetensors", "-o", "c.safetensors", cwd=tmp_path))
    done(sds("convert", "b.ckpt", "-o", "d.pt", cwd=tmp_path))
    assert_same(safetensors.load_file(tmp_path / "c.safetensors"), values)
    assert_same(loaded(tmp_path / "d.pt"), values)


def test_a_suffix_that_says_nothing_gives_safetensors_with_a_note(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(saved({"w": torch.ones(3)}))
    assert "safetensors is written" in done(sds("convert", "a.ckpt", "-o", "out.model", cwd=tmp_path)).err
    assert_same(safetensors.load((tmp_path / "out.model").read_bytes()), {"w": torch.ones(3)})


def test_tensors_that_cannot_be_read_are_refused_where_they_are_needed_and_ignored_elsewhere(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", "sd1", size="tiny")
    values = loaded(tmp_path / "a.ckpt")
    key = "model.diffusion_model.out.2.weight"
    (tmp_path / "b.ckpt").write_bytes(saved({**values, key: values[key].to(torch.complex128)}))
    refused(sds("convert", "b.ckpt", "-o", "c.safetensors", cwd=tmp_path), 3, key, "complex")
    refused(sds("extract", "b.ckpt", "--component", "unet", "-o", "c.safetensors", cwd=tmp_path), 3, key, "complex")
    done(sds("extract", "b.ckpt", "--component", "vae", "-o", "c.safetensors", cwd=tmp_path))
    assert len(safetensors.load_file(tmp_path / "c.safetensors")) == 248
    assert key in done(sds("inspect", "b.ckpt", cwd=tmp_path)).out


def test_long_metadata_survive(tmp_path):
    """An ancestry may take a megabyte; readers of pickles keep no text over 64 KiB, so it is written in parts."""
    metadata = {"sd_merge_models": "é" * 300_000, "short": "x", "exact": "y" * 16_000}
    write_checkpoint(tmp_path / "a.ckpt", "sd1", size="tiny", metadata=metadata)
    with sdsurgery.open(tmp_path / "a.ckpt") as checkpoint:
        assert metadata.items() <= checkpoint.metadata().items()
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["__metadata__"]
    assert "".join(stored["sd_merge_models"]) == metadata["sd_merge_models"]


# --- many files ------------------------------------------------------------------------------------------------------


def test_many_files_at_once_and_one_that_fails(tmp_path):
    values = {"w": torch.arange(5.0)}
    for name in ("a.ckpt", "b.pt", "c.bin"):
        (tmp_path / name).write_bytes(saved(values))
    (tmp_path / "bad.ckpt").write_bytes(saved(values)[:-100])
    names = ("a.ckpt", "bad.ckpt", "b.pt", "c.bin")
    result = sds("convert", *names, "--out-dir", "out", "--json", cwd=tmp_path)
    assert result.rc == 3
    last = result.err.splitlines()[-1]
    assert last.startswith("sdsurgery: 1 of 4 files were not written, the first: bad.ckpt: zip")
    rows = result.json()["files"]
    assert [row["error"] is None for row in rows] == [True, False, True, True]
    assert rows[1]["error"]["exit_code"] == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    for name in os.listdir(tmp_path / "out"):
        assert_same(safetensors.load_file(tmp_path / "out" / name), values)
    refused(sds("convert", "a.ckpt", "--out-dir", "out", "-q", cwd=tmp_path), 2, "exists", "--force")
    tried = done(sds("convert", "a.ckpt", "--out-dir", "new/er", "--dry-run", "--json", cwd=tmp_path)).json()["files"][
        0
    ]
    assert tried["report"]["output"] == tried["output"] == os.path.join("new/er", "a.safetensors")
    assert not (tmp_path / "new").exists()
    done(sds("convert", "a.ckpt", "--out-dir", "out", "--force", cwd=tmp_path))
    done(sds("convert", "out/a.safetensors", "--out-dir", "back", "--to", "ckpt", cwd=tmp_path))
    assert_same(loaded(tmp_path / "back" / "a.ckpt"), values)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.ckpt", "b.pt", "-o", "x.safetensors"), "--out-dir"),
        (("a.ckpt", "--out-dir", "out", "-o", "x.safetensors"), "can't be combined"),
        (("a.ckpt", "sub/a.pt", "--out-dir", "out"), "a.ckpt and sub/a.pt would both become"),
        (("a.ckpt", "b.pt", "a.ckpt", "--out-dir", "out"), "a.ckpt and a.ckpt would both become"),
        (("a.ckpt", "--out-dir", "out", "--to", "ckp"), "did you mean 'ckpt'"),
        (("a.ckpt", "--out-dir", "b.pt"), "b.pt is a file; --out-dir needs a folder"),
        (("a.ckpt", "--out-dir", "b.pt", "--dry-run"), "b.pt is a file; --out-dir needs a folder"),
        (("a.ckpt",), "no output given"),
    ],
)
def test_mistakes_are_usage_errors(tmp_path, arguments, words):
    (tmp_path / "sub").mkdir()
    for name in ("a.ckpt", "b.pt", "sub/a.pt"):
        (tmp_path / name).write_bytes(saved({"w": torch.ones(2)}))
    before = dict.fromkeys(os.listdir(tmp_path))
    refused(sds("convert", *arguments, cwd=tmp_path), 2, words)
    no_new_entries(before, tmp_path)


def test_a_dtype_that_torch_lacks_is_refused_for_ckpt(tmp_path):
    content = b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}  '
    (tmp_path / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + b"\0")
    refused(sds("convert", "a.safetensors", "-o", "b.ckpt", cwd=tmp_path), 2, "'w'", "F4", ".safetensors")


# --- options of the readers ------------------------------------------------------------------------------------------


def compressed(data: bytes, path: Path) -> None:
    """The same archive with every entry deflated, as repacking programs leave it."""
    Path(path.parent / "plain").write_bytes(data)
    with zipfile.ZipFile(path.parent / "plain") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))


def test_compressed_tensors_are_inflated_only_when_asked(tmp_path):
    values = {"w": torch.arange(70_000.0), "half": torch.randn(99).half(), "view": torch.randn(30, 20).t()}
    compressed(saved(values), tmp_path / "in.ckpt")
    (tmp_path / "temporary").mkdir()
    env = {"TMPDIR": str(tmp_path / "temporary")}
    command = ("convert", "in.ckpt", "-o", "out.safetensors")
    refused(started(*command, cwd=tmp_path, env=env), 3, "compressed", "--allow-inflate")
    done(started(*command, "--allow-inflate", cwd=tmp_path, env=env))
    assert_same(safetensors.load_file(tmp_path / "out.safetensors"), values)
    for verb in ("inspect", "verify"):
        refused(started(verb, "in.ckpt", cwd=tmp_path, env=env), 3, "--allow-inflate")
        done(started(verb, "in.ckpt", "--allow-inflate", cwd=tmp_path, env=env))
    with sdsurgery.open(tmp_path / "in.ckpt", allow_inflate=True) as checkpoint:
        assert torch.equal(checkpoint.torch("view"), values["view"])
    assert os.listdir(tmp_path / "temporary") == []


def test_suspicious_files_are_read_only_when_asked_and_never_run(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {canary}",)

    (tmp_path / "in.ckpt").write_bytes(saved({"state_dict": {"w": torch.ones(3)}, "x": Evil()}))
    for verb, *options in (("inspect",), ("verify",), ("convert", "-o", "out.safetensors"), ("cast", "-o", "b.ckpt")):
        refused(sds(verb, "in.ckpt", *options, cwd=tmp_path), 3, "system", "--allow-suspicious")
        done(sds(verb, "in.ckpt", *options, "--allow-suspicious", cwd=tmp_path))
    assert_same(safetensors.load_file(tmp_path / "out.safetensors"), {"w": torch.ones(3)})
    result = sds("scan", "in.ckpt", cwd=tmp_path)
    assert result.rc == 3
    assert "SUSPICIOUS" in result.out and "would have run posix.system" in result.out
    assert not canary.exists()


def test_neither_pickle_nor_torch_nor_numpy_is_imported(tmp_path):
    values = {"state_dict": {"w": torch.ones(3), "v": torch.ones(4, 5).t()}}
    (tmp_path / "in.ckpt").write_bytes(saved(values))
    (tmp_path / "old.ckpt").write_bytes(saved(values, "legacy"))
    compressed(saved(values), tmp_path / "packed.ckpt")
    program = (
        "import sys\nfrom sdsurgery.cli import run\ncode = run(sys.argv[1:])\n"
        "print(sorted({'pickle', '_pickle', 'torch', 'numpy'} & set(sys.modules)), code)\n"
    )
    for arguments in (
        ("convert", "in.ckpt", "-o", "a.safetensors", "-q"),
        ("convert", "old.ckpt", "-o", "b.ckpt", "-q"),
        ("convert", "packed.ckpt", "-o", "c.ckpt", "-q", "--allow-inflate"),
        ("convert", "in.ckpt", "old.ckpt", "--out-dir", "many", "-q"),
        ("merge", "--method", "weighted-sum", "--alpha", "0.5", "in.ckpt", "old.ckpt", "-o", "d.ckpt", "-q"),
        ("scan", ".", "-q"),
        ("verify", "in.ckpt", "-q"),
        ("inspect", "old.ckpt", "--json"),
    ):
        result = started(*arguments, cwd=tmp_path, python=("-c", program))
        assert result.out.splitlines()[-1] == "[] 0", (arguments, result.out, result.err)
