"""``sdsurgery compare``: exit codes, table, JSON, and the picture."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, f32, refused, sds, started, write_raw
from diffusers_files import as_diffusers
from sdsurgery.report import heatmap
from sdsurgery.testing import write_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny SD 1.5 checkpoints."""
    folder = tmp_path_factory.mktemp("pair")
    files = folder / "a.safetensors", folder / "b.safetensors"
    for seed, file in enumerate(files):
        write_checkpoint(file, "sd1", size="tiny", seed=seed)
    return files


def test_exit_code_0_for_equal_files_and_4_for_different_ones(pair: tuple[Path, Path]) -> None:
    same = done(sds("compare", pair[0], pair[0]))
    assert same.out.splitlines()[-1].startswith("equal: 1,143 tensors") and same.err == ""
    other = sds("compare", *pair)
    assert other.rc == 4 and other.err == ""
    assert other.out.splitlines()[-1].startswith("different: 1 of 1143 tensors")  # position_ids


def test_quiet_says_nothing_and_the_exit_code_all(pair: tuple[Path, Path]) -> None:
    for files, code in ((pair, 4), (pair[:1] * 2, 0)):
        result = sds("compare", "-q", *files)
        assert (result.rc, result.out, result.err) == (code, "", "")


def test_the_table_has_a_row_for_every_component_and_block(pair: tuple[Path, Path]) -> None:
    lines = sds("compare", *pair).out.splitlines()
    rows = {tuple(line.split()[:2]) for line in lines}
    assert {("unet", "686"), ("vae", "248"), ("text_encoder", "197"), ("buffers", "12"), ("total", "1143")} <= rows
    assert {line.split()[0] for line in lines} >= {"IN00", "IN11", "M00", "OUT00", "OUT11", "BASE"}
    numbers = next(line for line in lines if line.startswith("unet")).split()
    assert -1 <= float(numbers[3]) <= 1 and 1 < float(numbers[4]) < 2  # independent weights: √2, nearly


def test_every_tensor_is_listed_on_request_and_only_then(pair: tuple[Path, Path]) -> None:
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    assert name not in sds("compare", *pair).out
    (line,) = [line for line in sds("compare", "-v", *pair).out.splitlines() if line.startswith(name)]
    assert "F16" in line and "cosine" in line and "elements equal" in line


def test_json_has_one_object_with_every_table(pair: tuple[Path, Path]) -> None:
    result = sds("compare", "--json", "--threads", "2", *pair)
    assert result.rc == 4 and result.err == ""
    found = result.json()
    assert set(found) == {
        *("schema", "a", "b", "a_family", "b_family", "equal", "total", "components", "blocks", "kinds", "tensors"),
        *("only_in_a", "only_in_b", "shape_differs", "dtype_differs", "notes", "bytes_read", "seconds", "how"),
        "effects",
    }
    numbers = set(found["total"])
    assert {"tensors", "equal", "equal_share", "cosine", "relative_l2", "difference_max", "a_nonfinite"} <= numbers
    for table, names in (
        ("components", {"component"}),
        ("blocks", {"component", "block"}),
        ("kinds", {"component", "block", "kind"}),
        ("tensors", {"component", "block", "kind", "name", "shape", "a_dtype", "b_dtype"}),
    ):
        assert found[table] and all(set(row) == names | numbers for row in found[table])
    assert found["equal"] is False and found["how"]["threads"] == 2
    assert found["bytes_read"] == 2 * sum(item.nbytes for item in sdsurgery.open(pair[0]).tensors.values())
    assert all(row["equal"] in (True, False) for row in found["tensors"])


def test_undefined_numbers_are_null_in_json_and_a_dash_in_the_table(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [2], f32(0, math.nan))})
    b = write_raw(tmp_path / "b.safetensors", {"w": ("F32", [2], f32(1, 1))})
    total = sds("compare", "--json", a, b).json()["total"]
    assert total["cosine"] is None and total["relative_l2"] is None and total["a_nonfinite"] == 1
    lines = sds("compare", a, b).out.splitlines()
    assert next(line for line in lines if line.startswith("total")).split()[3:5] == ["-", "-"]
    assert any("1 in A, 0 in B" in line for line in lines)


def test_names_from_the_files_are_escaped(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", {"evil\x1b[2J\n": ("F32", [1], f32(1)), "w": ("F32", [1], f32(1))})
    b = write_raw(tmp_path / "b.safetensors", {"w\u202e": ("F32", [1], f32(1)), "w": ("F32", [1], f32(2))})
    for options in ((), ("-v",)):
        out = sds("compare", *options, a, b).out
        assert "\x1b" not in out and "\u202e" not in out and "\\x1b" in out


@pytest.mark.parametrize("side", [0, 1])
def test_damaged_missing_and_foreign_inputs_are_refused(pair: tuple[Path, Path], tmp_path: Path, side: int) -> None:
    data = pair[0].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.safetensors").write_bytes(b"not a checkpoint at all")
    for name in ("cut.safetensors", "text.safetensors", "missing.safetensors", "."):
        files: list[object] = [pair[0], pair[0]]
        files[side] = tmp_path / name
        refused(sds("compare", *files), 3)


def test_wrong_usage(pair: tuple[Path, Path], tmp_path: Path) -> None:
    refused(sds("compare", pair[0]), 2)
    refused(sds("compare", *pair, pair[0]), 2, "one file too many")
    refused(sds("compare", *pair, "--threads", "-2"), 2, "--threads")


# ---- the picture


def test_the_picture_is_a_png(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    assert sds("compare", "-q", *pair, "--plot", out).rc == 4
    data = out.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82") and min(width, height) > 300
    refused(sds("compare", *pair, "--plot", out), 2, "--force")
    assert out.read_bytes() == data
    assert sds("compare", "-q", pair[0], pair[0], "--plot", out, "--force").rc == 0  # no distance anywhere
    assert out.read_bytes() != data


def test_the_picture_has_a_title_plain_ticks_and_says_what_is_absent(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "map.svg"
    assert sds("compare", "-q", *pair, "--plot", out).rc == 4
    text = out.read_text(encoding="utf-8")
    assert "How far B is from A" in text and pair[0].name in text and pair[1].name in text
    assert re.search(r">0?\.?[125]0*</text>", text) and "no such weights" in text
    rows, columns, values = heatmap.cells(sdsurgery.compare(*pair))
    absent = sum(value is None for line in values for value in line)
    assert 0 < absent < len(rows) * len(columns) and "pattern" in text  # hatched


def test_fix_names_pairs_a_vae_alone_with_the_one_in_a_model(models: Path, tmp_path: Path) -> None:
    model, bare, foreign = models / "b.safetensors", tmp_path / "bare.safetensors", tmp_path / "foreign.safetensors"
    sdsurgery.extract(model, "vae", strip_prefix=True, out=bare)
    write_raw(foreign, as_diffusers(model, "sd1", "vae"))
    for a, b in ((model, bare), (bare, model), (model, foreign), (foreign, model), (bare, foreign)):
        found = sdsurgery.compare(a, b, fix_names=True)
        assert found.total.equal == found.total.tensors == 248
        assert not [note for note in found.notes if "different families" in note]
    assert sdsurgery.compare(model, bare).total.tensors == 0  # as they are written


def test_a_picture_that_cannot_be_is_refused_before_anything_is_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    refused(sds("compare", *pair, "--plot", tmp_path / "map.gif"), 2, ".png or .svg or .pdf")
    refused(sds("compare", *pair, "--plot", tmp_path / "missing" / "map.png"), 2, "no folder")
    empty = write_raw(tmp_path / "empty.safetensors", {})
    refused(sds("compare", empty, empty, "--plot", tmp_path / "map.png"), 2, "no weights")
    assert not (tmp_path / "map.png").exists()


def test_the_cells_are_the_distances_of_blocks_and_kinds(pair: tuple[Path, Path]) -> None:
    from sdsurgery.report import heatmap

    found = sdsurgery.compare(*pair)
    rows, columns, values = heatmap.cells(found)
    groups = found.by("component", "block", "kind")
    assert ("unet", "M00") in rows and columns[:3] == ["attn1", "attn2", "ff"]
    for row, line in zip(rows, values, strict=True):
        for column, value in zip(columns, line, strict=True):
            assert value == (groups[(*row, column)].relative_l2 if (*row, column) in groups else None)


def test_without_matplotlib_it_says_what_to_install(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    env = {"PYTHONPATH": str(tmp_path)}
    refused(started("compare", *pair, "--plot", tmp_path / "map.png", env=env), 2, "pip install", "matplotlib")
    assert started("compare", "-q", *pair, env=env).rc == 4


def test_another_backend_gives_the_same_output_or_is_refused(pair: tuple[Path, Path]) -> None:
    wanted = sds("compare", *pair)
    reference = sds("compare", "--backend", "reference", *pair)
    assert (reference.rc, reference.out) == (4, wanted.out)
    refused(sds("compare", "--backend", "gpu", *pair), 2, "unknown backend")
    triton = refused(sds("compare", "--backend", "triton", *pair), 2)
    assert "triton has no reductions" in triton or "triton cannot be used" in triton
    cuda = sds("compare", "--backend", "cuda", *pair)
    if cuda.rc == 2:  # no GPU here
        refused(cuda, 2, "cuda cannot be used here")
        fallback = sds("compare", "--backend", "cuda", "--fallback", "cpu", "--gpu-memory", "64M", *pair)
        notes = [line for line in fallback.out.splitlines() if line not in wanted.out.splitlines()]
        assert fallback.rc == 4 and len(notes) == 1 and "done by the backend cpu, because" in notes[0]
    else:
        assert (cuda.rc, cuda.out) == (4, wanted.out)
