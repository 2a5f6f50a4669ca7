"""A VAE of another family, which has the same names and shapes, is warned of."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import sdsurgery
from cli_support import Raw, done, read_raw, sds, write_raw
from sdsurgery.surgery import vae_kin
from sdsurgery.testing import write_checkpoint

FIRST = "first_stage_model."
SHAPES = {"encoder.conv_in.weight": [128, 3, 3, 3], "encoder.conv_out.weight": [8, 512, 3, 3]}


def filters(seed: int, near: int | None = None) -> dict[str, list[float]]:
    """The encoder's two layers in their real sizes: random, or a descendant of the ones with the seed ``near``."""
    found = {}
    for name, shape in SHAPES.items():
        draw = random.Random(f"{seed}{name}")
        own = [draw.gauss(0, 0.1) for _ in range(shape[0] * shape[1] * 9)]
        base = None if near is None else filters(near)[name]
        found[name] = own if base is None else [b + 0.3 * x for b, x in zip(base, own, strict=True)]
    return found


def model(path: Path, seed: int, near: int | None = None, front: str = FIRST, family: str = "sd1") -> Path:
    """A tiny checkpoint, or with ``front`` empty only a VAE, whose encoder has these filters."""
    write_checkpoint(path, family, size="tiny", overwrite=True)
    tensors: dict[str, Raw] = dict(read_raw(path)[0])
    if not front:
        tensors = {name.removeprefix(FIRST): raw for name, raw in tensors.items() if name.startswith(FIRST)}
    for name, numbers in filters(seed, near).items():
        tensors[front + name] = ("F16", SHAPES[name], struct.pack(f"<{len(numbers)}e", *numbers))
    return write_raw(path, tensors)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vae")
    return {
        "base": model(folder / "base.safetensors", 1),
        "kin": model(folder / "kin.safetensors", 2, near=1),
        "stranger": model(folder / "stranger.safetensors", 3),
        "kin alone": model(folder / "kin.vae.safetensors", 4, near=1, front=""),
        "stranger alone": model(folder / "stranger.vae.safetensors", 5, front=""),
    }


@pytest.mark.parametrize(
    ("donor", "expected"), [("kin alone", []), ("stranger alone", ["vae_unrelated"]), ("stranger", ["vae_unrelated"])]
)
def test_a_vae_that_is_no_relative_is_warned_of(files: dict[str, Path], donor: str, expected: list[str]) -> None:
    replaced = sdsurgery.replace(files["base"], {"vae": files[donor]}, dry_run=True)
    assert [each.code for each in replaced.warnings] == expected
    baked = sdsurgery.merge("weighted-sum", [files["base"], files["kin"]], vae=files[donor], dry_run=True, hash=False)
    assert [each.code for each in baked.warnings] == expected


def test_models_with_unrelated_vaes_are_merged_with_a_warning(files: dict[str, Path]) -> None:
    for other, expected in (("kin", []), ("stranger", ["vae_unrelated"])):
        report = sdsurgery.merge("weighted-sum", [files["base"], files[other]], dry_run=True, hash=False)
        assert [each.code for each in report.warnings] == expected


def test_the_donor_s_family_and_its_metadata_say_whose_vae_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    xl = model(tmp_path / "xl.safetensors", 6, family="sdxl-base")
    result = done(sds("replace", files["base"], "--component", "vae", "--with", xl, "-o", tmp_path / "o.safetensors"))
    assert "warning: the VAE of" in result.err and "Stable Diffusion XL, by its family (sdxl-base)" in result.err
    tensors, _ = read_raw(files["kin alone"])
    stated = {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
    named = write_raw(tmp_path / "vae.safetensors", tensors, stated)
    (found,) = sdsurgery.replace(files["base"], {"vae": named}, dry_run=True).warnings
    assert (found.code, "by its metadata" in found) == ("vae_family", True)


def test_published_files_are_known_by_their_hash(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    data = files["kin alone"].read_bytes()
    known = {len(data): (hashlib.sha256(data).hexdigest(), "Stable Diffusion XL", "sdxl_vae.safetensors")}
    monkeypatch.setattr(vae_kin, "_FILES", known)
    (found,) = sdsurgery.replace(files["base"], {"vae": files["kin alone"]}, dry_run=True).warnings
    assert found.text.startswith(f"the VAE of {files['kin alone']} is that of Stable Diffusion XL, by its SHA-256")
