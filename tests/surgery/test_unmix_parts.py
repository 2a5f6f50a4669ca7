"""unmix: a component in a file of its own, such as a VAE, is a candidate of that component."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import sds as command
from mix_tools import QUICK, a_family, mixed, pick, ratios
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return a_family(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def loose(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Components of D in files of their own, in the names of such files and in a model's, and a finer VAE."""
    folder = tmp_path_factory.mktemp("loose")
    found = {name: folder / f"{name}.safetensors" for name in ("vae", "long", "encoder", "other", "fine")}
    sds.extract(models["d"], out=found["vae"], component="vae", strip_prefix=True)
    sds.extract(models["d"], out=found["long"], component="vae")
    sds.extract(models["f"], out=found["other"], component="vae", strip_prefix=True)
    sds.extract(models["d"], out=found["encoder"], component="text_encoder", strip_prefix=True)
    rng = np.random.default_rng(4)
    fine = {
        key: tensor.astype(np.float32) * (1 + rng.normal(size=tensor.shape) * 1e-3).astype(np.float32)
        for key, tensor in load_file(found["vae"]).items()
    }
    save_file(fine, found["fine"])
    return found


BAKED: list[tuple[dict[str, str], str, str, str]] = [
    ({"vae": "vae"}, "keep", "vae other", "0.7·a + 0.3·b; vae of vae"),
    ({"vae": "vae"}, "keep", "other long", "0.7·a + 0.3·b; vae of long"),
    ({"vae": "fine"}, "fp16", "other fine", "0.7·a + 0.3·b; vae of fine"),
    ({"vae": "fine"}, "keep", "fine", "0.7·a + 0.3·b; vae of fine"),
    (
        {"vae": "vae", "text_encoder": "encoder"}, "bf16", "encoder vae",
        "0.7·a + 0.3·b; text_encoder of encoder; vae of vae",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", BAKED, ids=[f"{given} {dtype}" for _, dtype, given, _ in BAKED])
def test_a_component_in_a_file_of_its_own(
    models: dict[str, Path], loose: dict[str, Path], tmp_path: Path, case: tuple[dict[str, str], str, str, str]
) -> None:
    baked, dtype, given, formula = case
    mix, again = tmp_path / "baked.safetensors", tmp_path / "OUT.safetensors"
    body = mixed(models, "a b", "weighted-sum", alpha=0.3)
    sds.replace(body, {part: loose[name] for part, name in baked.items()}, out=mix, dtype=dtype, **QUICK)
    found = sds.unmix(mix, [*pick(models, "a b c"), *pick(loose, given)], prove=True)
    assert found.formula == formula and found.complete and "VAE" not in found.blocks
    said = dict(each.split(" of ") for each in formula.split("; ")[1:])
    assert found.parts == {part: str(loose[name]) for part, name in said.items()}
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    assert {Path(path).stem for path in found.left_out} == {"c", *given.split()} - set(said.values())
    steps = found.command.split(" && ")
    assert " replace " in steps[-1]
    for step in steps:
        words = [
            str(tmp_path / word) if word in ("MERGED.safetensors", "BODY.safetensors", "OUT.safetensors") else word
            for word in shlex.split(step)[1:]
        ]
        assert command(*words).rc == 0
    assert sds.compare(mix, again).verdict.startswith("equal")


def test_a_component_that_is_not_the_mixs_is_left_out(models: dict[str, Path], loose: dict[str, Path]) -> None:
    mix = mixed(models, "a b", "weighted-sum", alpha=0.3)
    found = sds.unmix(mix, [*pick(models, "a b"), *pick(loose, "vae other")])
    assert found.formula == "0.7·a + 0.3·b" and found.parts == {} and "VAE" in found.blocks
    assert found.left_out == [str(loose["vae"]), str(loose["other"])]


def test_a_component_of_no_candidate_makes_no_parent(
    models: dict[str, Path], loose: dict[str, Path], tmp_path: Path
) -> None:
    mix = tmp_path / "baked.safetensors"
    sds.replace(mixed(models, "a b", "weighted-sum", alpha=0.3), {"vae": loose["vae"]}, out=mix, **QUICK)
    found = sds.unmix(mix, pick(models, "a b c"))  # C is nearest to the base, and so to any other VAE
    assert set(ratios(found)) == {"a", "b"} and not found.complete
    assert found.block_residuals["VAE"]["over_rounding"] > 10


def test_a_model_that_has_the_component_comes_first(
    models: dict[str, Path], loose: dict[str, Path], tmp_path: Path
) -> None:
    mix = tmp_path / "baked.safetensors"
    sds.replace(mixed(models, "a b", "weighted-sum", alpha=0.3), {"vae": loose["vae"]}, out=mix, **QUICK)
    found = sds.unmix(mix, [*pick(models, "a b d"), loose["vae"]])
    assert found.parts == {} and "vae is that of d, unchanged" in found.notes
    alone = sds.unmix(mix, pick(loose, "vae") + pick(models, "c a b"))
    assert alone.parts == {"vae": str(loose["vae"])} and "vae is that of vae, unchanged" in alone.notes
    text = command("unmix", mix, *pick(models, "a b"), loose["vae"]).out
    assert any(line.split() == ["vae", "of", "vae", "–", "–"] for line in text.splitlines())


def test_parts_of_a_folder_and_of_a_mix_without_them(
    models: dict[str, Path], loose: dict[str, Path], tmp_path: Path
) -> None:
    folder, mix, unet = tmp_path / "folder", tmp_path / "baked.safetensors", tmp_path / "unet.safetensors"
    folder.mkdir()
    for path in (*pick(models, "a b"), *pick(loose, "vae other")):
        (folder / path.name).write_bytes(path.read_bytes())
    sds.replace(models["a"], {"vae": loose["vae"]}, out=mix, **QUICK)
    found = sds.unmix(mix, [], folder=folder)
    assert found.formula == "a; vae of vae" and not any("not models" in note for note in found.notes)
    assert "a has the weights of the mix, but for its vae, bit for bit in value" in found.notes
    sds.extract(mix, out=unet, component="unet")
    assert sds.unmix(unet, [*pick(models, "a b"), loose["vae"]]).left_out == [str(models["b"]), str(loose["vae"])]
