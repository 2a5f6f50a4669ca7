"""Methods that look at whole models, or at which tensor it is: statistics in a pass of their own, ``adjust``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command

UNET = "model.diffusion_model."


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from sdsurgery.testing import write_checkpoint

    folder = tmp_path_factory.mktemp("whole")
    for seed in (1, 2):
        write_checkpoint(folder / f"{seed}.safetensors", size="tiny", seed=seed)
    return [folder / f"{seed}.safetensors" for seed in (1, 2)]


def tensors(path: Path) -> dict[str, np.ndarray]:
    with sds.open(path) as opened:
        return {
            name: each
            for name, each in ((name, np.array(opened.numpy(name))) for name in opened)
            if each.dtype.kind == "f"
        }


@pytest.mark.parametrize("method", ["cosine-a", "cosine-b"])
def test_a_merge_uses_the_statistics_of_all_tensors_and_keeps_a_s_vae(
    method: str, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    sds.merge(method, files, out=out, alpha=0.3, threads=2, tile_bytes=4096)
    a, b = ({name: each for name, each in tensors(path).items() if "model." in name} for path in files)
    wanted, got = sds.apply_many(method, a, b, alpha=0.3), tensors(out)
    for name, each in a.items():
        assert np.array_equal(got[name], wanted[name]), name
        assert np.array_equal(got[name], each) or not name.startswith("first_stage_model."), name
    one = f"{UNET}time_embed.0.weight"
    assert not np.array_equal(got[one], a[one])
    assert not np.array_equal(sds.apply(method, a[one], b[one], alpha=0.3), wanted[one])  # alone it is its own model


def test_a_sweep_and_a_dry_run(files: list[Path], tmp_path: Path) -> None:
    done(command("merge", *files, "--method", "cosine-a", "--dry-run"))
    sds.sweep("cosine-a", files, parameters={"alpha": [0.1, 0.2]}, out=tmp_path / "{alpha}.safetensors")
    sds.merge("cosine-a", files, alpha=0.2, out=tmp_path / "one.safetensors")
    one, two = tensors(tmp_path / "one.safetensors"), tensors(tmp_path / "0.2.safetensors")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_within_a_recipe_it_is_refused(files: list[Path]) -> None:
    tree = sds.weighted_sum(sds.cosine_a(str(files[0]), str(files[1])), str(files[1]))
    with pytest.raises(sds.UsageError, match="looks at whole models"):
        tree.save("out.safetensors")


def test_adjust_changes_six_tensors_after_any_method(files: list[Path], tmp_path: Path) -> None:
    numbers = [1, 2, -3, 0.5, 1, -0.5, 0.25, 2]
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    sds.merge("weighted-sum", files, out=plain, alpha=0.3, dtype="fp32")
    given = ",".join(map(str, numbers))
    result = command("merge", *files, "--method", "weighted-sum", "--alpha", "0.3", f"--adjust={given}", "--dtype",
                     "fp32", "-o", out)  # fmt: skip
    done(result)
    before, after = tensors(plain), tensors(out)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {UNET + part for part in ("input_blocks.0.0.weight", "input_blocks.0.0.bias", "out.0.weight",
                                                "out.0.bias", "out.2.weight", "out.2.bias")}  # fmt: skip
    first = f"{UNET}input_blocks.0.0.weight"
    assert np.array_equal(after[first], before[first] * np.float32(0.99))
    rows = np.array([[-1, 1 / 3, 2 / 3], [1, 1, 0], [0, -1, -1], [1, 0, 1]])
    colours = 0.02 * np.array([0.5, *(np.array(numbers[4:]) @ rows)])
    last = f"{UNET}out.2.bias"
    assert np.allclose(after[last], before[last] + colours.astype(np.float32), atol=1e-7)
    assert "adjust:weighted-sum" in done(command("inspect", out)).out


def test_adjust_takes_eight_numbers(files: list[Path]) -> None:
    refused(command("merge", *files, "--method", "weighted-sum", "--adjust", "1,2"), 2, "--adjust takes 8 numbers")
