"""What a file lacks of its family's tensors, has in another form, or beside them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from layout_tools import NAMES, UNET, whole
from sdsurgery import layouts
from sdsurgery.layouts.completeness import Completeness, completeness
from sdsurgery.testing import tiny_shape

VAE = "first_stage_model."
Shapes = dict[str, tuple[int, ...]]


def shapes(name: str) -> Shapes:
    return {key: info.shape for key, info in whole(name).items()}


def check(found: Shapes, name: str = "sd1") -> Completeness:
    return completeness({key: SimpleNamespace(shape=shape) for key, shape in found.items()}, layouts.get(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_family_lacks_nothing(name: str) -> None:
    assert check(shapes(name), name).lines() == []
    tiny = {row.key: tiny_shape(layouts.get(name), row) for row in layouts.get(name).tensors()}
    assert check(tiny, name).lines() == [], "nor does a file of reduced size"


def test_absent_tensors_are_counted_by_component_and_named() -> None:
    lost = [UNET + "output_blocks.2.1.conv.weight", UNET + "output_blocks.2.1.conv.bias", VAE + "encoder.conv_in.bias"]
    found = check({key: shape for key, shape in shapes("sd1").items() if key not in lost})
    assert set(found.absent) == set(lost)
    assert {part.component: (part.found, part.expected) for part in found.parts} == {
        "unet": (684, 686),
        "vae": (247, 248),
        "text_encoder": (196, 196),
    }
    (line,) = found.lines()
    assert all(key in line for key in lost)


def test_a_component_that_is_not_there_at_all_is_another_matter() -> None:
    found = check({key: shape for key, shape in shapes("sd1").items() if not key.startswith(VAE)})
    assert found.lines() == []
    assert dict(found.lacking) == {"vae": 248}


def test_what_files_may_lack_is_not_missed() -> None:
    own = shapes("sd2")
    spared = [key for key in own if key.startswith("cond_stage_model.model.transformer.resblocks.23.")]
    spared += ["cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection", "betas"]
    assert check({key: shape for key, shape in own.items() if key not in spared}, "sd2").lines() == []


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_shapes_that_careless_converters_write_are_named(leaf: str) -> None:
    key = f"{VAE}encoder.mid.attn_1.q.{leaf}"
    bent = {"weight": (512, 512), "bias": (512, 1, 1)}[leaf]
    found = check({**shapes("sd1"), key: bent})
    assert found.misshapen == ((key, bent, shapes("sd1")[key]),)
    assert key in found.lines()[0]


def test_old_and_wrapped_names_count_as_the_tensors_that_they_are() -> None:
    old = {f"module.{key.replace('.text_model.', '.')}": shape for key, shape in shapes("sd1").items()}
    assert check(old).lines() == []


def test_names_that_the_family_lacks_in_a_component_are_extra() -> None:
    assert check({**shapes("sd1"), UNET + "time_embed.cond_proj.weight": (320, 256)}).extra == (
        UNET + "time_embed.cond_proj.weight",
    )
    assert check({**shapes("sd1"), "something.else": (1,)}).extra == ()


def test_nothing_is_said_of_a_family_that_lists_nothing() -> None:
    assert check({"joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "sd3") == Completeness((), {}, (), ())
