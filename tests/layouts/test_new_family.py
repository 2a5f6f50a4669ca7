"""A family that isn't a U-Net is added from outside: one network, one layout, no edit of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sdsurgery
from safetensors.numpy import load_file
from sdsurgery import layouts
from sdsurgery.cli import run
from sdsurgery.errors import UsageError
from sdsurgery.layouts import base
from sdsurgery.layouts.base import Encoder, Layout, Part, Release
from sdsurgery.layouts.blocks import parse_blocks
from sdsurgery.layouts.names import UNET
from sdsurgery.metadata import merge_metadata
from sdsurgery.testing import write_checkpoint


class Transformer:
    """Three double blocks behind an embedding of 16 channels."""

    anchor, component, title = "patch_in.weight", "transformer", "transformer"
    blocks = ("D00", "D01", "D02")
    lists = (blocks,)

    def owns(self, key: str) -> bool:
        return key.startswith(("patch_in.", "twin_blocks.", "patch_out."))

    def block(self, key: str) -> str | None:
        head, _, rest = key.partition(".")
        return f"D{int(rest.partition('.')[0]):02d}" if head == "twin_blocks" else "D00"

    def discriminators(self) -> dict[str, tuple[int, ...]]:
        return {self.anchor: (96, 16)}

    def presets(self) -> dict[str, tuple[float, ...]]:
        return {}

    def rows(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "patch_in.weight", (96, 16)
        for number in range(3):
            yield f"twin_blocks.{number}.attn.weight", (96, 96)
        yield "patch_out.weight", (16, 96)


@pytest.fixture
def family() -> Iterator[Layout]:
    network = Transformer()
    made = Layout(
        "dream",
        "Dream",
        "dream-1",
        (Part(network.component, UNET, network.rows, evidence=(network.anchor,)),),
        network,
        encoders=(Encoder("t5.final_layer_norm.weight", 512, "T5"),),
        releases=(Release("dream-1", "1024x1024"),),
        implementation="dreams",
    )
    base.REGISTRY.insert(0, made)
    yield made
    base.REGISTRY.remove(made)


def test_it_is_recognised_listed_inspected_and_merged_by_blocks(
    family: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        write_checkpoint(path, "dream", size="tiny", seed=seed, dtype="fp32")
    found = sdsurgery.inspect(paths[0])
    assert (found.family, list(found.components)) == ("dream", ["transformer"])
    assert run(["layouts", "--keys", "dream"]) == 0
    assert f"{UNET}twin_blocks.1.attn.weight\t96x96\tfloat\ttransformer\tD01" in capsys.readouterr().out
    assert run(["layouts", "--blocks", "dream"]) == 0
    assert f"D02\ttransformer\t1\t9216\t{UNET}twin_blocks.2." in capsys.readouterr().out
    out = tmp_path / "out.safetensors"
    assert (
        run(
            ["merge", *map(str, paths), "--method", "weighted-sum", "--alpha", "0", "--blocks", "D02=1", "-o", str(out)]
        )
        == 0
    )
    assert b"dream-1" in out.read_bytes()[:20000]
    merged, a, b = (load_file(path) for path in (out, *paths))
    for number, parent in ((0, a), (1, a), (2, b)):
        name = f"{UNET}twin_blocks.{number}.attn.weight"
        assert np.array_equal(merged[name], parent[name])


def test_its_facts_reach_the_metadata_and_its_encoder_is_known(family: Layout) -> None:
    written = merge_metadata(
        recipe={"method": "weighted-sum"}, parents=[], title="t", kind=layouts.kind_of(family), body_sha256=None,
        version="1",
    )  # fmt: skip
    assert written["modelspec.implementation"] == "dreams"
    assert written["modelspec.resolution"] == "1024x1024"
    assert family.encoders[0] in layouts.known_encoders()


def test_block_lists_fit_its_own_blocks(family: Layout) -> None:
    assert parse_blocks("d1=0.5", family) == {"D01": 0.5}
    assert parse_blocks("1,2,3", family) == {"D00": 1, "D01": 2, "D02": 3}
    with pytest.raises(UsageError, match="neither an assignment nor a preset"):
        parse_blocks("GRAD_V", family)
