"""Channel variants: A with more input channels than B and C, bit-checked against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from sdsurgery.errors import InputRefused
from sdsurgery.testing import write_checkpoint

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def tiny(path: Path, family: str, seed: int) -> Path:
    write_checkpoint(path, family, size="tiny", seed=seed, keep=lambda tensor: tensor.component == "unet")
    return path


def first(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(FIRST)


VARIANTS = [("sd1-inpainting", "sd1"), ("sd1-pix2pix", "sd1"), ("sd2-inpainting", "sd2"), ("sd2-depth", "sd2")]


@pytest.mark.parametrize(("wide", "plain"), VARIANTS)
@pytest.mark.parametrize("dtype", ["keep", "fp32", "bf16"])
def test_channels_0_to_3_are_merged_and_the_rest_is_a(wide: str, plain: str, dtype: str, tmp_path: Path) -> None:
    import torch

    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate((wide, plain, plain))]
    out = tmp_path / "out.safetensors"
    report = sdsurgery.merge("add-diff", paths, out=out, dtype=dtype)
    a, b, c = (first(path).float() for path in paths)
    want = a.clone()
    want[:, :4] = a[:, :4] + (b - c)
    kind = {"keep": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    got = first(out)
    assert got.dtype == kind
    assert torch.equal(got, want.to(kind))
    assert any("channels 0-3 merged" in note for note in report.notes)


def test_the_opposite_order_is_refused_with_the_advice_to_swap(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(("sd1", "sd1-inpainting"))]
    with pytest.raises(InputRefused, match="swap the inputs"):
        sdsurgery.merge("weighted-sum", paths, out=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def whole(path: Path, family: str, seed: int) -> Path:
    write_checkpoint(path, family, size="tiny", seed=seed)
    return path


def test_inpainting_plus_custom_minus_base_is_what_torch_computes(tmp_path: Path) -> None:
    """The famous recipe for an inpainting model of one's own, over every tensor of the true layout."""
    import torch
    from safetensors.torch import load_file

    families = ("sd1-inpainting", "sd1", "sd1")
    paths = [whole(tmp_path / f"{i}.safetensors", family, i) for i, family in enumerate(families)]
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("add-diff", paths, out=out, alpha=1.0, dtype="fp32")
    inpainting, custom, base, got = (load_file(path) for path in (*paths, out))
    assert sorted(got) == sorted(inpainting)
    for name, a in inpainting.items():
        if a.dtype != torch.float16:
            assert torch.equal(got[name], a), name
            continue
        b, c = custom[name].float(), base[name].float()
        if name == FIRST:
            assert (a.shape[1], b.shape[1], c.shape[1]) == (9, 4, 4)
            want = torch.cat([a[:, :4].float() + (b - c), a[:, 4:].float()], dim=1)
        else:
            want = a.float() + (b - c)
        assert torch.equal(got[name], want), name


@pytest.mark.parametrize("dtype", ["keep", "fp32"])
def test_a_plain_model_takes_the_difference_of_two_wide_ones(dtype: str, tmp_path: Path) -> None:
    import torch

    families = ("sd1", "sd1-inpainting", "sd1-inpainting")
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(families)]
    out = tmp_path / "out.safetensors"
    report = sdsurgery.merge("add-diff", paths, out=out, dtype=dtype, alpha=0.5)
    a, b, c = (first(path).float() for path in paths)
    got = first(out)
    assert torch.equal(got, (a + 0.5 * (b[:, :4] - c[:, :4])).to(got.dtype))
    assert got.shape[1] == 4
    assert any("channels 0-3 merged (input channels: A 4, B 9, C 9)" in note for note in report.notes)
    assert report.family == "sd1"


def test_weights_that_cancel_are_a_difference_too(tmp_path: Path) -> None:
    families = ("sd1", "sd1-inpainting", "sd1-inpainting")
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(families)]
    sdsurgery.merge("weighted-sum", paths, out=tmp_path / "o.safetensors", weights=[1, 0.5, -0.5])
    a, b, c = (first(path).float() for path in paths)
    assert first(tmp_path / "o.safetensors").equal((a + 0.5 * b[:, :4] + -0.5 * c[:, :4]).half())
    with pytest.raises(InputRefused, match="swap the inputs"):
        sdsurgery.merge("weighted-sum", paths, dry_run=True, weights=[0.5, 0.25, 0.25])


def test_three_wide_models_are_merged_in_all_channels(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / f"{i}.safetensors", "sd1-inpainting", i) for i in range(3)]
    report = sdsurgery.merge("add-diff", paths, out=tmp_path / "o.safetensors")
    a, b, c = (first(path).float() for path in paths)
    assert first(tmp_path / "o.safetensors").equal((a + (b - c)).half())
    assert not any("channels" in note for note in report.notes)


def test_where_only_some_of_the_others_are_wide_channels_0_to_3_are_merged(tmp_path: Path) -> None:
    import torch

    families = ("sd1-inpainting", "sd1-inpainting", "sd1")
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(families)]
    sdsurgery.merge("add-diff", paths, out=tmp_path / "o.safetensors")
    a, b, c = (first(path).float() for path in paths)
    want = torch.cat([a[:, :4] + (b[:, :4] - c), a[:, 4:]], dim=1)
    assert first(tmp_path / "o.safetensors").equal(want.half())


@pytest.mark.parametrize("families", [("sd1", "sd1-inpainting", "sd1"), ("sd1", "sd1-inpainting", "sd1-pix2pix")])
def test_a_plain_model_takes_no_difference_between_models_of_different_width(
    families: tuple[str, ...], tmp_path: Path
) -> None:
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(families)]
    with pytest.raises(InputRefused, match="swap the inputs"):
        sdsurgery.merge("add-diff", paths, dry_run=True)


def test_the_first_convolution_of_a_bare_unet_is_known_and_takes_in00s_ratio(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    prefix = "model.diffusion_model."
    paths = [tiny(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(("sd1-inpainting", "sd1"))]
    for path in paths:
        save_file({name.removeprefix(prefix): value for name, value in load_file(path).items()}, path)
    sdsurgery.merge("weighted-sum", paths, out=tmp_path / "o.safetensors", alpha=0.5, blocks="IN00=0.25")
    a, b, got = (load_file(path)[FIRST.removeprefix(prefix)] for path in (*paths, tmp_path / "o.safetensors"))
    assert got[:, :4].equal((0.75 * a[:, :4].float() + 0.25 * b.float()).half())
    assert got[:, 4:].equal(a[:, 4:])


def test_notes_on_a_depth_model_and_on_one_file_given_twice(tmp_path: Path) -> None:
    """One channel is only A's, and what a file lacks is noted once, though it is B and C."""
    paths = [whole(tmp_path / f"{i}.safetensors", name, i) for i, name in enumerate(("sd2-depth", "sd2"))]
    report = sdsurgery.merge("add-diff", [paths[0], paths[1], paths[1]], dry_run=True)
    assert any("channels 0-3 merged, 4 is A's (input channels: A 5, B 4, C 4)" in note for note in report.notes)
    lacking = report.missing[str(paths[1])]
    assert len(lacking) == len(set(lacking)) == 368 and lacking[0].startswith("depth_model.")
    back = sdsurgery.merge("add-diff", [paths[1], paths[0], paths[0]], dry_run=True)
    assert len(back.only_there[str(paths[0])]) == 368
