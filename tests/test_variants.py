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
