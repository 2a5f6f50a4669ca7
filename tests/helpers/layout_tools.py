"""What the layout tests share: the reference tables, header entries as recognition sees them, the lists of families."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from sdsurgery import dtypes, layouts
from sdsurgery.checkpoint import Form, TensorInfo
from sdsurgery.layouts import LayoutTensor
from sdsurgery.layouts.unet import UNet

UNET = "model.diffusion_model."
NAMES = tuple(layout.name for layout in layouts.all_layouts() if layout.parts)
"""Every family that is generated."""
FULL = tuple(name for name in NAMES if isinstance(layouts.get(name).network, UNet) and not layouts.get(name).original)
"""Those that are whole checkpoints with a U-Net, in the original names."""
BASES = tuple(name for name in FULL if layouts.get(name).variant_of is None)
"""Those of them that are not variants of another one."""
VARIANTS = tuple((name, base) for name in FULL if (base := layouts.get(name).variant_of))
VAES = tuple(name for name in NAMES if layouts.get(name).components == {"vae"} and not layouts.get(name).original)
IN_DIFFUSERS = tuple(layout.original.name for layout in layouts.all_layouts() if layout.original)
"""The families that are known under diffusers' names too."""
OLD_VAE_NAMES = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))


def reference_tables() -> Path:
    """The folder with the reference tables; skips the test that asks when there is none."""
    given = os.environ.get("SDS_LAYOUTS")
    places = [Path(given)] if given else [parent / "shared" / "layouts" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / "sd1.ldm.tsv").is_file():
            return place
    pytest.skip("no reference tables (a folder shared/layouts above the repository, or SDS_LAYOUTS)")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def infos(tensors: Iterable[LayoutTensor | tuple[str, tuple[int, ...]]], wrapper: str = "") -> dict[str, TensorInfo]:
    """Header entries as recognition sees them."""
    found = {}
    for tensor in tensors:
        key, shape = (tensor.key, tensor.shape) if isinstance(tensor, LayoutTensor) else tensor
        found[wrapper + key] = TensorInfo(wrapper + key, 0, Form(dtypes.F16, shape, 0))
    return found


def whole(name: str) -> dict[str, TensorInfo]:
    return infos(layouts.get(name).tensors())
