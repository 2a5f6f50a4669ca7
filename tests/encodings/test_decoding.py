"""Encoded weights: what they stand for, the same bits everywhere, and what an output makes of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from encoded_files import KINDS, below, layer, write
from numeric_tools import TARGETS
from safetensors.numpy import load_file
from sdsurgery import _native, encodings
from sdsurgery.backends.cpu import compute_into
from sdsurgery.plan import Operand

SHAPES = ((7, 48), (130, 160), (33, 64))
NORM = ("F16", (4,), np.array([1, 2, 3, 4], np.float16).tobytes())


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def made(path: Path, kind: str, shape: tuple[int, int], seed: int = 0) -> tuple[Path, np.ndarray]:
    tensors, weights = layer(kind, *shape, seed)
    return write(path, {**below("net.l", tensors), "net.norm.weight": NORM}), weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cast_gives_the_weights_that_the_codes_stand_for(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    path, weights = made(tmp_path / "a.safetensors", kind, shape)
    sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp32")
    found = load_file(tmp_path / "b.safetensors")
    assert list(found) == ["net.l.weight", "net.norm.weight"]
    assert found["net.l.weight"].shape == shape
    assert np.array_equal(bits(found["net.l.weight"]), bits(weights))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_tiles_io_targets_and_backends_decode_to_the_same_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = made(tmp_path / "a.safetensors", kind, (260, 640))
    other, _ = made(tmp_path / "b.safetensors", kind, (260, 640), seed=1)
    out = tmp_path / "out.safetensors"

    def merged(**settings: object) -> bytes:
        sds.merge("weighted-sum", [path, other], alpha=0.3, out=out, overwrite=True, hash=False, **settings)
        return out.read_bytes()

    first = merged(threads=1)
    assert merged(threads=3, tile_bytes=4096) == first
    assert merged(tile_bytes=12288, io="pread") == first
    assert merged(backend="reference") == first
    for target in TARGETS:
        monkeypatch.setenv("SDS_CPU", target)
        assert merged(tile_bytes=8192) == first


@pytest.mark.parametrize("kind", KINDS)
def test_any_stretch_decodes_as_it_does_in_the_whole(tmp_path: Path, kind: str) -> None:
    path, weights = made(tmp_path / "a.safetensors", kind, (33, 80))
    with sds.open(path) as checkpoint:
        encodings.decode(checkpoint)
        info = checkpoint.tensors["net.l.weight"]
        assert info.encoded is not None
        encoding = info.encoded.encoding
        operand = Operand(0, info.dtype, info.offset, None, encoding)
        flat = bits(weights).reshape(-1)
        rng = np.random.default_rng(5)
        for _ in range(40):
            start, first = (int(at) for at in rng.integers(0, flat.size // 3, 2))
            count = int(rng.integers(1, flat.size - start - first + 1))
            buffer = np.empty(count, np.float32)
            compute_into(operand.at(start), checkpoint.files, first, buffer)
            assert np.array_equal(bits(buffer), flat[start + first :][:count])
        with pytest.raises(_native.Error, match="past the end"):
            compute_into(operand, checkpoint.files, 1, np.empty(flat.size, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_keep_copies_codes_scales_and_markers_untouched(tmp_path: Path, kind: str) -> None:
    tensors, _ = layer(kind, 32, 64)
    metadata = {"_quantization_metadata": '{"layers": {}}', "title": "x"}
    given = {**below("net.l", tensors), "net.scaled_fp8": ("F8_E4M3", (0,), b""), "net.norm.weight": NORM}
    path = write(tmp_path / "a.safetensors", given, metadata)
    for verb in (sds.cast, sds.prune):
        verb(path, out=tmp_path / "b.safetensors", overwrite=True)
        with sds.open(tmp_path / "b.safetensors") as kept:
            assert {name: kept.read(kept.info(name)) for name in kept} == {
                name: data for name, (_, _, data) in given.items()
            }
            assert kept.metadata()["_quantization_metadata"] == metadata["_quantization_metadata"]


def test_markers_go_where_weights_are_decoded(tmp_path: Path) -> None:
    tensors, weights = layer("fp8 of one scale", 16, 16)
    given = {**below("net.l", tensors), "net.scaled_fp8": ("F8_E4M3", (0,), b""), "net.norm.weight": NORM}
    path = write(tmp_path / "a.safetensors", given, {"_quantization_metadata": '{"layers": {}}', "title": "x"})
    report = sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp16")
    assert any("1 encoded weight (scaled fp8) decoded and written as F16" in note for note in report.notes)
    with sds.open(tmp_path / "b.safetensors") as plain:
        assert plain.keys() == ["net.l.weight", "net.norm.weight"]
        assert "_quantization_metadata" not in plain.metadata()
        assert plain.metadata()["title"] == "x"
    found = load_file(tmp_path / "b.safetensors")
    assert np.array_equal(found["net.l.weight"], weights.astype(np.float16))


def test_a_merge_writes_plain_weights_in_the_dtype_of_the_plain_input(tmp_path: Path) -> None:
    encoded, weights = made(tmp_path / "a.safetensors", "nf4", (12, 20))
    plain = np.random.default_rng(2).normal(size=(12, 20)).astype(np.float32)
    write(tmp_path / "b.safetensors", {"net.l.weight": ("F32", (12, 20), plain.tobytes()), "net.norm.weight": NORM})
    for inputs, dtype in (((encoded, tmp_path / "b.safetensors"), np.float32), ((encoded, encoded), np.float16)):
        sds.merge("weighted-sum", inputs, alpha=0.25, out=tmp_path / "c.safetensors", overwrite=True)
        found = load_file(tmp_path / "c.safetensors")
        assert found["net.l.weight"].dtype == dtype
        other = plain if dtype == np.float32 else weights
        expected = np.float32(0.75) * weights + np.float32(0.25) * other
        assert np.array_equal(found["net.l.weight"], expected.astype(dtype))


def test_compare_and_verify_see_weights(tmp_path: Path) -> None:
    path, weights = made(tmp_path / "a.safetensors", "nf4", (12, 20))
    plain = {"net.l.weight": ("F32", (12, 20), weights.tobytes()), "net.norm.weight": NORM}
    write(tmp_path / "b.safetensors", plain)
    found = sds.compare(path, tmp_path / "b.safetensors")
    assert found.total.difference_max == 0
    assert found.total.weights == 2
    tensors, _ = layer("nf4", 12, 20)
    absmax = np.full(4, np.inf, np.float32)
    write(tmp_path / "c.safetensors", below("l", {**tensors, "weight.absmax": ("F32", (4,), absmax.tobytes())}))
    assert sds.verify(tmp_path / "c.safetensors").nonfinite == {"l.weight": 240}


def test_scales_beside_a_plain_weight_are_left_out_with_a_warning(tmp_path: Path) -> None:
    half = np.arange(12, dtype=np.float16)
    scale = ("F32", (), np.float32(0.5).tobytes())
    given = {"l.weight": ("F16", (3, 4), half.tobytes()), "l.scale_weight": scale}
    path = write(tmp_path / "a.safetensors", given)
    report = sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp32")
    assert any(note.startswith("warning: 1 scales lie beside weights that are not encoded") for note in report.notes)
    found = load_file(tmp_path / "b.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {"l.weight": half.reshape(3, 4).tolist()}


BAD = {
    "no scales": ({"weight": ("I8", (4, 8), bytes(32))}, "it is I8 and no scales lie beside it"),
    "three scales for four rows": (
        {"weight": ("F8_E4M3", (4, 8), bytes(32)), "weight_scale": ("F32", (3,), bytes(12))},
        r"the shape \[3\], which does not fit \[4, 8\]",
    ),
    "an unknown format": (
        {"weight": ("U8", (4, 8), bytes(32)), "comfy_quant": ("U8", (24,), b'{"format": "secret_one"}')},
        r"encoded \(secret_one\) and cannot be decoded: this format is not known",
    ),
    "unmarked nvfp4": (
        {
            "weight": ("U8", (32, 32), bytes(1024)),
            "weight_scale": ("F8_E4M3", (32, 4), bytes(128)),
            "weight_scale_2": ("F32", (), bytes(4)),
        },
        "no marker says in which order its codes and scales lie",
    ),
    "a quant_state that is not JSON": (
        {"weight": ("U8", (4, 1), bytes(4)), "weight.quant_state.bitsandbytes__nf4": ("U8", (3,), b"{a}")},
        "is not valid JSON",
    ),
    "GPTQ": ({"qweight": ("I32", (4, 8), bytes(128)), "qzeros": ("I32", (1, 8), bytes(32))}, "GPTQ or AWQ"),
    "SDNQ": ({"weight": ("U8", (32,), bytes(32)), "scale": ("F32", (4, 1), bytes(16))}, "SDNQ"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_decoded_is_refused_by_name_and_kept_when_nothing_is_computed(tmp_path: Path, case: str) -> None:
    tensors, reason = BAD[case]
    path = write(tmp_path / "a.safetensors", {**below("l", tensors), "norm.weight": NORM})
    with pytest.raises(sds.InputRefused, match=reason) as refused:
        sds.cast(path, out=tmp_path / "b.safetensors", dtype="fp16")
    assert refused.value.code == "encoded"
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(sds.InputRefused, match=reason):
        sds.merge("weighted-sum", [path, path], alpha=0.5, out=tmp_path / "b.safetensors")
    sds.cast(path, out=tmp_path / "b.safetensors")
    with sds.open(tmp_path / "b.safetensors") as kept:
        assert kept.read(kept.info(f"l.{next(iter(tensors))}")) == next(iter(tensors.values()))[2]


# ---- the values of the programs that own the formats, where they are at hand


def golden() -> Path | None:
    places = [parent / "shared" / "encoded" / "golden" for parent in Path(__file__).resolve().parents]
    return next((place for place in places if place.is_dir()), None)


def golden_rows() -> dict[str, list[dict[str, str]]]:
    folder = golden()
    if folder is None:
        return {}
    cases: dict[str, list[dict[str, str]]] = {}
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            cases.setdefault(row["case"], []).append(row)
    return cases


EVERY = golden_rows()
GOLDEN = {case: rows for case, rows in EVERY.items() if rows[0]["tolerance"] != "write"}
WRITTEN = {case: rows for case, rows in EVERY.items() if rows[0]["tolerance"] == "write"}
NOT_DECODED = ("awq_w4a16", "asym_w4a8_int8", "torchao", "nvfp4 compressed-tensors")


@pytest.mark.skipif(not GOLDEN, reason="no golden files (a folder shared/encoded above the repository)")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_files_decode_to_their_programs_values(tmp_path: Path, case: str, backend: str) -> None:
    folder, rows = golden(), GOLDEN[case]
    assert folder is not None
    out = tmp_path / "out.safetensors"
    path = folder / rows[0]["file"]
    if rows[0]["tolerance"] == "refuse" or rows[0]["encoding"] in NOT_DECODED:
        with pytest.raises(sds.InputRefused, match="tensor '"):
            sds.cast(path, out=out, dtype="fp32", backend=backend)
        return
    sds.cast(path, out=out, dtype="fp32", backend=backend)
    found = load_file(out)
    assert sorted(found) == sorted(row["tensor"] for row in rows)
    with sds.open(folder / rows[0]["expected"]) as expected:
        for row in rows:
            values = np.array(expected.numbers(expected.info(row["tensor"])), np.float32)
            assert_close(found[row["tensor"]].reshape(-1), values, row["tolerance"])


@pytest.mark.skipif(not WRITTEN, reason="no golden files (a folder shared/encoded above the repository)")
@pytest.mark.parametrize("case", WRITTEN)
def test_golden_files_are_encoded_to_their_program_s_bytes(tmp_path: Path, case: str) -> None:
    folder, rows = golden(), WRITTEN[case]
    assert folder is not None
    sds.cast(folder / rows[0]["file"], out=tmp_path / "out.safetensors", dtype="fp8_scaled")
    with sds.open(tmp_path / "out.safetensors") as found, sds.open(folder / rows[0]["expected"]) as expected:
        for name, info in expected.tensors.items():
            assert (found.info(name).dtype, found.info(name).shape) == (info.dtype, info.shape)
            assert found.read(found.info(name)) == expected.read(info)
        assert sorted(found) == sorted(expected)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: str) -> None:
    if tolerance.startswith("rel"):
        assert np.abs(found - expected).max() <= float(tolerance.split()[1]) * np.abs(expected).max()
    elif tolerance == "bits except signed zeros":
        assert np.array_equal(found, expected)
    else:
        both_nan = np.isnan(found) & np.isnan(expected)
        assert (both_nan | (bits(found) == bits(expected))).all()
