"""What the commands write: what becomes of which tensor, and the file itself (mode, links, order, readers)."""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, f32, floats, listing, no_new_entries, plain, read_raw, sds, started, write_raw

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes, links and terminals")


# ---- what becomes of which tensor


def test_a_tensor_that_b_lacks_is_kept_and_counted(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.5, names=("x", "y", "z", "only_a"))
    b = plain(tmp_path / "b.safetensors", 2.5, names=("z", "y", "x"))
    out = tmp_path / "o.safetensors"
    report = done(sds("merge", "--method", "weighted-sum", a, b, "-o", out, "--json")).json()
    assert (report["counts"]["kept"], report["counts"]["merged"]) == (1, 3)
    assert report["missing"] == {str(b): ["only_a"]}
    tensors, _ = read_raw(out)
    assert list(tensors) == ["x", "y", "z", "only_a"]
    assert floats(tensors["only_a"]) == [1.5]
    assert floats(tensors["x"]) == [2.0]


def test_a_tensor_that_c_of_add_diff_lacks_is_kept(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0, names=("x", "y"))
    b = plain(tmp_path / "b.safetensors", 3.0, names=("x", "y"))
    c = plain(tmp_path / "c.safetensors", 2.0, names=("x",))
    out = tmp_path / "o.safetensors"
    report = done(sds("merge", "--method", "add-diff", a, b, c, "-o", out, "--json")).json()
    assert report["missing"] == {str(c): ["y"]}
    assert {name: floats(raw) for name, raw in read_raw(out)[0].items()} == {"x": [2.0], "y": [1.0]}


def test_a_tensor_only_in_b_is_not_added_unless_asked(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0, names=("x", "y"))
    b = plain(tmp_path / "b.safetensors", 3.0, names=("x", "y", "only_b"))
    out = tmp_path / "o.safetensors"
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", out, "--json", "--force")
    report = done(sds(*merge)).json()
    assert report["only_there"] == {str(b): ["only_b"]}
    assert set(read_raw(out)[0]) == {"x", "y"}
    report = done(sds(*merge, "--add-missing")).json()
    assert report["counts"]["added"] == 1
    assert floats(read_raw(out)[0]["only_b"]) == [3.0], "B's tensor itself, not a share of it"


def test_ema_is_left_out_of_merges_and_kept_by_cast(models: Path, tmp_path: Path) -> None:
    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "o.safetensors"
    done(sds("merge", "--method", "weighted-sum", a, b, "--no-hash", "-o", out))
    assert sdsurgery.inspect(out).ema == "none"
    done(sds("cast", a, "--dtype", "fp32", "--no-hash", "--force", "-o", out))
    assert sdsurgery.inspect(out).ema == "full"
    # The unet of A is merged with that of B even when A's EMA is there: nothing of it leaks in.
    assert sdsurgery.merge("weighted-sum", [a, b], dry_run=True).counts["dropped"] == 688


POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def test_integers_position_ids_buffers_and_markers_are_copied_exactly(models: Path, tmp_path: Path) -> None:
    extra = {
        "v_pred": ("F32", [0], b""),
        "ztsnr": ("F32", [0], b""),
        "cond_stage_model.counter": ("I32", [2], struct.pack("<2i", 7, -9)),
        "cond_stage_model.flags": ("BOOL", [3], b"\1\0\1"),
    }
    names = ("a", "b")
    for name in names:
        tensors, _ = read_raw(models / f"{name}.safetensors")
        write_raw(tmp_path / f"{name}.safetensors", {**tensors, **(extra if name == "a" else dict.fromkeys(()))})
    # B's differ from A's: an average would show.
    tensors, _ = read_raw(tmp_path / "b.safetensors")
    tensors[POSITION_IDS] = ("I64", [1, 77], struct.pack("<77q", *range(1, 78)))
    tensors["betas"] = ("F32", [1000], f32(*[0.5] * 1000))
    tensors["cond_stage_model.counter"] = ("I32", [2], struct.pack("<2i", 100, 100))
    write_raw(tmp_path / "b.safetensors", tensors)
    a, b, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "o.safetensors"
    given, _ = read_raw(a)
    exact = [*extra, POSITION_IDS, "betas", "alphas_cumprod", "log_one_minus_alphas_cumprod"]
    merge = ("merge", "--method", "weighted-sum", a, b, "--no-hash", "--force", "-o", out)
    for command in (
        merge,
        (*merge, "--dtype", "fp16"),
        ("cast", a, "--dtype", "fp16", "--no-hash", "--force", "-o", out),
    ):
        done(sds(*command))
        tensors, _ = read_raw(out)
        for name in exact:
            assert tensors[name] == given[name], (command[0], name)


def test_an_empty_tensor_of_any_name_keeps_its_dtype_in_a_cast(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [1], f32(1)), "my_marker": ("F32", [0], b"")})
    done(sds("cast", path, "--dtype", "fp16", "-o", tmp_path / "o.safetensors"))
    tensors, _ = read_raw(tmp_path / "o.safetensors")
    assert tensors["my_marker"] == ("F32", [0], b"")
    assert tensors["w"][0] == "F16"


def test_float_position_ids_are_not_averaged(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 1.0)):
        data = f32(*[i + shift for i in range(77)])
        write_raw(
            tmp_path / f"{name}.safetensors", {POSITION_IDS: ("F32", [1, 77], data), "w": ("F32", [1], f32(shift))}
        )
    out = tmp_path / "o.safetensors"
    done(sds("merge", "--method", "weighted-sum", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", out))
    tensors, _ = read_raw(out)
    assert floats(tensors[POSITION_IDS]) == [float(i) for i in range(77)]
    assert floats(tensors["w"]) == [0.5]


def test_keep_means_the_dtype_of_a_tensor_by_tensor(tmp_path: Path) -> None:
    one = struct.pack("<e", 1.0)
    a = {"h": ("F16", [1], one), "f": ("F32", [1], f32(1)), "b": ("BF16", [1], b"\x80\x3f")}
    b = {"h": ("F32", [1], f32(2)), "f": ("F16", [1], one), "b": ("F32", [1], f32(3))}
    paths = [write_raw(tmp_path / "a.safetensors", a), write_raw(tmp_path / "b.safetensors", b)]
    out = tmp_path / "o.safetensors"
    done(sds("merge", "--method", "weighted-sum", *paths, "-o", out))
    tensors, _ = read_raw(out)
    assert {name: raw[0] for name, raw in tensors.items()} == {"h": "F16", "f": "F32", "b": "BF16"}
    assert floats(tensors["h"]) == [1.5]
    assert tensors["b"][2] == b"\x00\x40"  # 2.0


def test_alpha_is_the_weight_of_b(tmp_path: Path) -> None:
    a, b, out = (
        plain(tmp_path / "a.safetensors", 0.0),
        plain(tmp_path / "b.safetensors", 8.0),
        tmp_path / "o.safetensors",
    )
    done(sds("merge", "--method", "weighted-sum", a, b, "--alpha", "0.25", "-o", out))
    assert floats(read_raw(out)[0]["w"]) == [2.0]


def test_unknown_layouts_merge_key_by_key_with_a_note(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.safetensors", 0.0), plain(tmp_path / "b.safetensors", 8.0)
    result = done(sds("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "o.safetensors"))
    assert "note: the layout is unknown" in result.err


def test_non_finite_values_and_overflows_are_counted_and_reported(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1e6, float("nan"), float("inf"), 2.0)
    out = tmp_path / "o.safetensors"
    cast = ("cast", path, "--dtype", "fp16", "--force", "-o", out)
    report = done(sds(*cast, "--json")).json()
    assert (report["nonfinite"], report["overflow"]) == ({"w": 2}, {"w": 1})
    assert floats(read_raw(out)[0]["w"])[0] == float("inf")
    text = done(sds(*cast)).err
    assert "NaN or Inf in the inputs: 2" in text
    assert "did not fit the dtype: 1" in text
    done(sds(*cast, "--overflow", "saturate"))
    assert floats(read_raw(out)[0]["w"])[0] == 65504.0


# ---- the file that is written


@posix
def test_a_replaced_target_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    path, out = plain(tmp_path / "a.safetensors", 1.0), tmp_path / "o.safetensors"
    cast = ("cast", path, "--dtype", "fp16", "--force", "-o", out)
    for umask, mode in ((0o027, 0o640), (0o077, 0o600), (0o002, 0o664)):
        out.unlink(missing_ok=True)
        done(started(*cast, umask=umask))
        assert stat.S_IMODE(out.stat().st_mode) == mode
    out.chmod(0o604)
    done(started(*cast, umask=0o077))
    assert stat.S_IMODE(out.stat().st_mode) == 0o604


@posix
def test_a_symlink_is_written_through_and_stays_a_symlink(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real.safetensors", tmp_path / "link.safetensors"
    real.write_bytes(b"old")
    link.symlink_to(Path("elsewhere") / "real.safetensors")
    before = listing(tmp_path)
    done(sds("cast", path, "--dtype", "fp16", "--force", "-o", link))
    assert link.is_symlink()
    assert read_raw(real)[0]["w"][0] == "F16"
    no_new_entries(before, tmp_path)
    assert os.listdir(tmp_path / "elsewhere") == ["real.safetensors"]


@posix
@pytest.mark.parametrize("name", ["itself", "symlink", "hard link"])
@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_the_target_may_be_an_input_under_any_of_its_names(tmp_path: Path, name: str, io: str) -> None:
    a, b, other = plain(tmp_path / "a.safetensors", 1.0), plain(tmp_path / "b.safetensors", 3.0), tmp_path / "other"
    old = a.read_bytes()
    if name == "symlink":
        other.symlink_to(a)
    elif name == "hard link":
        other.hardlink_to(a)
    target = a if name == "itself" else other
    before = listing(tmp_path)
    done(sds("merge", "--method", "weighted-sum", a, b, "--force", "--io", io, "-o", target))
    assert floats(read_raw(target)[0]["w"]) == [2.0]
    no_new_entries(before, tmp_path)
    if name == "symlink":
        assert other.is_symlink()
    if name == "hard link":
        assert a.read_bytes() == old, "the other name keeps the old bytes"


def test_a_chain_of_merges_keeps_what_went_before(models: Path, tmp_path: Path) -> None:
    a, b, c = (models / f"{name}.safetensors" for name in "abc")
    step, out = tmp_path / "step.safetensors", tmp_path / "out.safetensors"
    done(sds("merge", "--method", "weighted-sum", a, b, "--alpha", "0.3", "-o", step))
    done(sds("merge", "--method", "add-diff", step, c, b, "--alpha", "0.5", "-o", out))
    found = sdsurgery.inspect(out)
    assert found.recipe["method"] == "add-diff"
    parents = json.loads(found.metadata["sd_merge_models"])
    assert {"step", "b", "c"} <= {entry["name"] for entry in parents.values()}
    kept = next(entry["sd_merge_recipe"] for entry in parents.values() if entry["name"] == "step")
    assert (json.loads(kept) if isinstance(kept, str) else kept)["method"] == "weighted-sum"
    assert done(sds("verify", out, "--json")).json()["ok"] is True


def test_in_place_chains_work(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.safetensors", 0.0), plain(tmp_path / "b.safetensors", 8.0)
    for value in (4.0, 6.0, 7.0):
        done(sds("merge", "--method", "weighted-sum", a, b, "--force", "--no-sync", "-o", a))
        assert floats(read_raw(a)[0]["w"]) == [value]


def test_the_file_begins_is_aligned_and_is_ordered_as_readers_want_it(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    done(sds("merge", "--method", "weighted-sum", models / "a.safetensors", models / "b.safetensors", "-o", out))
    content = out.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert content[8:10] == b'{"'
    assert (8 + length) % 8 == 0
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    width = {"I64": 8, "F32": 4, "F16": 2}
    rows = sorted(header.values(), key=lambda row: row["data_offsets"])
    assert rows == list(header.values()), "the header lists tensors as they lie in the file"
    widths = [width[row["dtype"]] for row in rows]
    assert widths == sorted(widths, reverse=True)
    assert all(row["data_offsets"][0] % each == 0 for row, each in zip(rows, widths, strict=True))
    order = [name for name in read_raw(models / "a.safetensors")[0] if name in header]
    assert [name for name in order if header[name]["dtype"] == "F16"] == [
        n for n in header if header[n]["dtype"] == "F16"
    ]


def test_the_output_loads_in_safetensors_and_torch(models: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    a, b, out = models / "a.safetensors", models / "b.safetensors", tmp_path / "o.safetensors"
    done(sds("merge", "--method", "weighted-sum", a, b, "--alpha", "0.3", "-o", out))
    left, right, merged = load_file(a), load_file(b), load_file(out)
    assert len(merged) == 1143
    for name, tensor in merged.items():
        if tensor.dtype != torch.float16:
            assert torch.equal(tensor, left[name])
            continue
        want = ((1 - 0.3) * left[name].float() + 0.3 * right[name].float()).half()
        assert torch.equal(tensor.view(torch.int16), want.view(torch.int16)), name


def test_the_bytes_do_not_depend_on_threads_io_or_backend(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", models / "b.safetensors"
    seen = set()
    out = tmp_path / "o.safetensors"
    for options in ("--threads 1", "--threads 7", "--io mmap", "--io pread", "--backend reference"):
        done(sds("merge", "--method", "weighted-sum", a, b, "--force", *options.split(), "-o", out))
        seen.add(out.read_bytes())
    assert len(seen) == 1
